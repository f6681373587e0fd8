"""Backbone and head: photos → embeddings.

Any torchvision classification backbone by name (or ``small_cnn``), its classifier removed, and a
linear head. The
forward pass takes uint8 photos; normalisation is part of the network, so it cannot be forgotten
between training, export and service.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from index.errors import DsclError, InvalidArgumentError
from training import small_cnn

__all__ = ["Backbone", "EmbeddingNetwork", "WeightsError", "default_size"]

#: Output width of every torchvision classifier that was trained on ImageNet-1k.
IMAGENET_CLASSES = 1000

#: These two normalise once more inside, for weights that came from TensorFlow.
TRANSFORM_INPUT = ("googlenet", "inception_v3")

#: The one backbone that is not torchvision's.
SMALL_CNN = "small_cnn"


class WeightsError(DsclError):
    """Weights that cannot be had, read, or that belong to another architecture."""

    code = "weights_invalid"


class Backbone(nn.Module):
    """A torchvision classification network without its classifier.

    Attributes:
        name: torchvision's name of it.
        features: width of its output.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, weights: str = "none") -> None:
        """Build ``name`` and load ``weights``.

        Args:
            name: such as ``mobilenet_v2``, ``resnet50``, ``inception_v3``, ``vit_b_16``.
            weights: ``imagenet`` (torchvision's default, downloaded once into torch's cache),
                ``none`` (random), or the path of a state dict (``.pth`` or ``.safetensors``) of the
                whole torchvision network or of an earlier run of ours.

        Raises:
            InvalidArgumentError: no such backbone.
            WeightsError: see the class.
        """
        super().__init__()
        _check_name(name)
        self.name = name
        self.network = _download(name) if weights == "imagenet" else _build(name)
        if name in TRANSFORM_INPUT:
            _keep_main_branch(self.network)
        self._classifier, self.features = _cut_classifier(self.network)
        if weights not in ("imagenet", "none"):
            self.load_weights(Path(weights))
        _, mean, std = _preset(name)
        self.register_buffer("mean", _channels(mean), persistent=False)
        self.register_buffer("std", _channels(std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 [n, 3, h, w] RGB → float [n, features]."""
        features: Tensor = self.network((pixels.float() - self.mean) / self.std)
        return features.flatten(1)

    def check_size(self, side: int) -> None:
        """Send one photo through; leaves the network in evaluation mode.

        Raises:
            InvalidArgumentError: photos of ``side`` × ``side`` pixels do not go through.
        """
        try:
            with torch.inference_mode():
                self.eval()(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InvalidArgumentError(
                f"--size is {side}, and {self.name} cannot take photos of {side} × {side} pixels "
                f"({error}). Leave --size away for its own {default_size(self.name)}."
            ) from error

    def load_weights(self, path: Path) -> None:
        """Load a state dict of the torchvision network, or of a model folder of ours.

        Raises:
            WeightsError: unreadable, or of another architecture (says which keys differ).
        """
        state = _read_state(path)
        prefix = "backbone.network."
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()
                     if key.startswith(prefix)}  # fmt: skip
        # What was cut off above: the classifier, and Inception's auxiliary ones.
        cut = (f"{self._classifier}.", "AuxLogits.", "aux1.", "aux2.")
        state = {key: value for key, value in state.items() if not key.startswith(cut)}
        own = self.network.state_dict()
        # Files from before PyTorch 0.4.1 lack BatchNorm's counters, which nothing here reads.
        missing = sorted(
            key for key in own.keys() - state.keys() if not key.endswith(".num_batches_tracked")
        )
        unexpected = sorted(state.keys() - own.keys())
        shapes = sorted(
            key for key in own.keys() & state.keys() if own[key].shape != state[key].shape
        )
        if missing or unexpected or shapes:
            raise WeightsError(
                f"{path} does not fit backbone {self.name}: {_some('missing', missing)}; "
                f"{_some('unexpected', unexpected)}; {_some('of another shape', shapes)}. "
                "Give weights of this backbone, or name the backbone they belong to."
            )
        self.network.load_state_dict(state)


class EmbeddingNetwork(nn.Module):
    """Backbone and linear head: uint8 photos [n, 3, h, w] → float embeddings [n, dim]."""

    def __init__(self, backbone: Backbone, dim: int) -> None:
        """``dim`` must not exceed the backbone's width.

        Raises:
            InvalidArgumentError: ``dim`` out of range.
        """
        super().__init__()
        if not 1 <= dim <= backbone.features:
            raise InvalidArgumentError(
                f"--dim is {dim}: {backbone.name} gives {backbone.features} features, so the "
                f"embedding can have 1 … {backbone.features} dimensions."
            )
        self.backbone = backbone
        self.head = nn.Linear(backbone.features, dim)
        nn.init.orthogonal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def dim(self) -> int:
        """Dimensions of the embedding."""
        return self.head.out_features

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 [n, 3, h, w] RGB → float [n, dim], not of unit length."""
        embeddings: Tensor = self.head(self.backbone(pixels))
        return embeddings

    def freeze_until(self, name: str) -> int:
        """Freeze the backbone's parameters that are defined before module ``name``.

        Returns:
            How many parameters (numbers, not tensors) are frozen.

        Raises:
            InvalidArgumentError: the backbone has no such module.
        """
        parameters = list(self.backbone.network.named_parameters())
        first = next(
            (i for i, (key, _) in enumerate(parameters) if key.startswith(f"{name}.")), None
        )
        if first is None:
            known = [key for key, module in self.backbone.network.named_modules()
                     if key.count(".") < 2 and any(True for _ in module.parameters())]  # fmt: skip
            raise InvalidArgumentError(
                f"--freeze-until is {name!r}, which {self.backbone.name} does not have. "
                f"It has: {', '.join(known[1:])}."
            )
        for _, parameter in parameters[:first]:
            parameter.requires_grad_(False)
        return sum(parameter.numel() for _, parameter in parameters[:first])


def default_size(name: str) -> int:
    """The side in pixels that torchvision's weights of backbone ``name`` were trained for.

    Raises:
        InvalidArgumentError: no such backbone.
    """
    _check_name(name)
    return _preset(name)[0]


def _preset(name: str) -> tuple[int, list[float], list[float]]:
    """Side in pixels, mean and standard deviation per channel that ``name`` is used with."""
    if name == SMALL_CNN:
        return small_cnn.SIDE, small_cnn.MEAN, small_cnn.STD
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return int(preset.crop_size[0]), preset.mean, preset.std


def _build(name: str) -> nn.Module:
    """The whole network with random weights, as its trained ones expect it."""
    if name == SMALL_CNN:
        return small_cnn.SmallCNN()
    options: dict[str, Any] = {}
    if name in TRANSFORM_INPUT:
        options = {"aux_logits": True, "init_weights": False}
    elif name.startswith("vit_"):
        options = {"image_size": default_size(name)}  # else ViT-H/14 would be built for another
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


def _check_name(name: str) -> None:
    # `module=models` leaves out the detection, segmentation and video networks.
    known = [*models.list_models(module=models), SMALL_CNN]
    if name not in known:
        raise InvalidArgumentError(
            f"--backbone is {name!r}: expected one of torchvision's classification networks: "
            f"{', '.join(known)}."
        )


def _keep_main_branch(network: Any) -> None:
    """Drop the auxiliary classifiers, which exist to train the classifier that is cut off."""
    network.aux_logits = False
    network.transform_input = True
    for auxiliary in ("AuxLogits", "aux1", "aux2"):
        if hasattr(network, auxiliary):
            setattr(network, auxiliary, None)


def _download(name: str) -> nn.Module:
    if name == SMALL_CNN:
        raise WeightsError(f"{name} has no ImageNet weights: train it with --weights none.")
    weights = models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
    try:
        network: nn.Module = models.get_model(name, weights=weights)
    except OSError as error:  # URLError and the rest of the network's failures derive from it
        raise WeightsError(
            f"the ImageNet weights of {name} could not be downloaded ({error}). Offline, put "
            f"{file.name} into {file.parent}, or name a state dict with --weights PATH."
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"the ImageNet weights of {name} arrived or lie damaged ({error}). Remove {file}, if "
            "it is there, to download them anew."
        ) from error
    return network


def _cut_classifier(network: nn.Module) -> tuple[str, int]:
    """Replace the classifier by the identity; its name and input width."""
    name, classifier = [
        (name, module)
        for name, module in network.named_modules()
        # SqueezeNet classifies with a convolution
        if (isinstance(module, nn.Linear) and module.out_features == IMAGENET_CLASSES)
        or (isinstance(module, nn.Conv2d) and module.out_channels == IMAGENET_CLASSES)
    ][-1]
    network.set_submodule(name, nn.Identity())
    width = classifier.in_features if isinstance(classifier, nn.Linear) else classifier.in_channels
    return name, int(width)


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        path = path / "weights.safetensors"
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            f"--weights: {path} does not exist: give `imagenet`, `none`, or the path of a state "
            "dict (.pth, .safetensors) or model folder."
        ) from None
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} cannot be read as a state dict: {error}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} is not a state dict (name → tensor).")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _channels(values: list[float]) -> Tensor:
    """Per-channel constants for pixels in 0 … 255."""
    return torch.tensor(values).mul(255).reshape(1, 3, 1, 1)


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} {what}" + (f" ({shown})" if keys else "")
