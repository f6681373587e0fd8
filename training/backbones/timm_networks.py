"""timm's networks (Wightman, "PyTorch Image Models", 2019) as backbones.

Imports timm, which is optional: import this module only where a name asks for it.
"""

from __future__ import annotations

import fnmatch
import pickle
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from timm.models import group_parameters
from torch import Tensor, nn

from index.errors import InvalidArgumentError
from training.backbones.source import Preset, Trunk
from training.backbones.weights import WeightsError

__all__ = ["build", "converted", "layers", "names", "preset", "undecayed"]

PREFIX = "timm:"


def names() -> list[str]:
    """All networks, without and with the tag that says which weights."""
    own = {*timm.list_models(), *timm.list_models(include_tags=True)}
    return [f"{PREFIX}{name}" for name in sorted(own)]


def preset(name: str) -> Preset:
    """How the weights of that tag, or the default ones, want their photos."""
    config = _config(name)
    # A few want portraits: photos here are square.
    return Preset(min(config.input_size[1:]), config.mean, config.std, config.interpolation)


def build(name: str, *, side: int, imagenet: bool) -> Trunk:
    """Build ``name`` for photos of ``side`` pixels; transformers for that size alone.

    Raises:
        InvalidArgumentError: it cannot be built for that size.
        WeightsError: there are no weights of this name, or they cannot be had.
    """
    _check_size(name, side)
    network = _download(name, side) if imagenet else _create(name, side)
    classifiers = network.pretrained_cfg["classifier"] or ()
    cut = (classifiers,) if isinstance(classifiers, str) else classifiers
    # Some drop a normalisation before the classifier with it, so all of the head may be cut.
    heads = tuple(f"{part.partition('.')[0]}." for part in cut)
    return Trunk(network, network.head_hidden_size, heads)


def converted(name: str, side: int, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """``state`` as timm itself converts it when it loads a network.

    From photos of another size (position embeddings are resampled), and from the original code of
    many architectures.
    """
    # With as many classes as the network has timm compares strictly.
    overlay = {"state_dict": dict(state), "num_classes": 0, "label_offset": 0}
    try:
        network = _create(name, side, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception:
        # Each architecture has a conversion of its own, which fails in its own way on what is
        # not its own; the caller says how the file differs.
        return None
    state_dict: dict[str, Tensor] = network.state_dict()
    return state_dict


def layers(network: nn.Module) -> list[list[str]]:
    """timm's own grouping for layer-wise learning rates; each child where it has none."""
    model: Any = network
    if hasattr(model, "group_matcher"):
        groups = group_parameters(model, model.group_matcher(coarse=False))
    else:
        groups = defaultdict(list)
        for name, _ in model.named_parameters():
            groups[name.partition(".")[0]].append(name)
    return list(groups.values())


def undecayed(network: nn.Module) -> set[str]:
    """What timm spares: position embeddings, class tokens and the like."""
    model: Any = network
    patterns = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return {
        name
        for name, _ in model.named_parameters()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def _config(name: str) -> Any:
    return timm.get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=False)


def _create(name: str, side: int, **options: Any) -> Any:
    if _config(name).fixed_input_size:
        options["img_size"] = side
    return timm.create_model(name.removeprefix(PREFIX), num_classes=0, **options)


def _check_size(name: str, side: int) -> None:
    own = preset(name).side
    if side == own:
        return
    try:
        with torch.device("meta"):  # costs neither time nor memory
            _create(name, side)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InvalidArgumentError(
            f"--size is {side}, and {name} cannot be built for it ({error}). Leave --size away for "
            f"its own {own}."
        ) from error


def _download(name: str, side: int) -> Any:
    config = _config(name)
    if not config.has_weights:
        raise WeightsError(
            f"timm has no weights for {name}: train it with --weights none, or name a state dict "
            "with --weights PATH."
        )
    if config.hf_hub_id:
        file = Path(constants.HF_HUB_CACHE, f"models--{config.hf_hub_id.replace('/', '--')}")
        origin = f"model.safetensors of {config.hf_hub_id} on the Hugging Face hub"
    else:
        file = Path(torch.hub.get_dir(), "checkpoints", str(config.url).rsplit("/", 1)[-1])
        origin = str(config.url)
    try:
        return _create(name, side, pretrained=True)
    except OSError as error:  # the hub's and urllib's failures of the network derive from it
        raise WeightsError(
            f"the weights of {name} could not be downloaded ({error}). Offline, bring {origin} "
            f"and name it with --weights PATH, or copy {file} from a machine that has it."
        ) from error
    except (RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"the weights of {name} arrived or lie damaged ({error}). Remove {file}, if it is "
            "there, to download them anew."
        ) from error
