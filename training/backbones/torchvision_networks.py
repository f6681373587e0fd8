"""Torchvision's classification networks, and ``small_cnn``, as backbones."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from training import small_cnn
from training.backbones.source import Preset, Trunk
from training.backbones.weights import WeightsError

__all__ = ["build", "converted", "layers", "names", "preset", "undecayed"]

#: Output width of every torchvision classifier that was trained on ImageNet-1k.
IMAGENET_CLASSES = 1000

#: These two normalise once more inside, for weights that came from TensorFlow.
TRANSFORM_INPUT = ("googlenet", "inception_v3")

#: Their auxiliary classifiers.
AUXILIARY = ("AuxLogits", "aux1", "aux2")

#: The one network that is not torchvision's.
SMALL_CNN = "small_cnn"

#: Names of the modules that are blocks, in all families that have blocks at all.
BLOCK = re.compile(
    r"""features\.(denseblock|transition)?\d+     # MobileNet, EfficientNet, ConvNeXt, VGG; DenseNet
    | layer\d+\.\d+                               # ResNet
    | stage\d+\.\d+                               # ShuffleNet
    | trunk_output\.block\d+\.block\d+-\d+        # RegNet
    | encoder\.layers\.encoder_layer_\d+          # ViT
    | (layers|blocks)\.\d+                        # MNASNet; MaxViT
    """,
    re.VERBOSE,
)

#: Last parts of the names of parameters that have more than one axis and yet are no matrices.
UNDECAYED = ("class_token", "pos_embedding", "relative_position_bias_table", "layer_scale")


def names() -> list[str]:
    """All networks, in torchvision's order."""
    # `module=models` leaves out the detection, segmentation and video networks.
    return [*models.list_models(module=models), SMALL_CNN]


def preset(name: str) -> Preset:
    """How torchvision's weights want their photos."""
    if name == SMALL_CNN:
        return Preset(small_cnn.SIDE, small_cnn.MEAN, small_cnn.STD, "bilinear")
    own = models.get_model_weights(name).DEFAULT.transforms()
    return Preset(int(own.crop_size[0]), own.mean, own.std, own.interpolation.value)


def build(name: str, *, side: int, imagenet: bool) -> Trunk:
    """Build ``name``; ``side`` is ignored, as torchvision's transformers take their own alone.

    Raises:
        WeightsError: ``small_cnn`` with ImageNet weights, or they cannot be had.
    """
    network = _download(name) if imagenet else _random(name)
    if name in TRANSFORM_INPUT:
        _keep_main_branch(network)
    classifier, features = _cut_classifier(network)
    return Trunk(network, features, tuple(f"{part}." for part in (classifier, *AUXILIARY)))


def converted(name: str, side: int, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """None: torchvision's weights have one form."""
    return None


def layers(network: nn.Module) -> list[list[str]]:
    """The stem, the blocks, and each child after them; each child if there are no blocks."""
    parameters = [name for name, _ in network.named_parameters()]
    matches = [BLOCK.match(name) for name in parameters]
    in_stem = any(matches)
    groups: dict[str, list[str]] = {}
    for name, match in zip(parameters, matches, strict=True):
        in_stem = in_stem and match is None
        group = "" if in_stem else match[0] if match else name.partition(".")[0]
        groups.setdefault(group, []).append(name)
    return list(groups.values())


def undecayed(network: nn.Module) -> set[str]:
    """Position embeddings, class tokens, and scales per channel."""
    return {name for name, _ in network.named_parameters() if name.endswith(UNDECAYED)}


def _random(name: str) -> nn.Module:
    """The whole network with random weights, as its trained ones expect it."""
    if name == SMALL_CNN:
        return small_cnn.SmallCNN()
    options: dict[str, Any] = {}
    if name in TRANSFORM_INPUT:
        options = {"aux_logits": True, "init_weights": False}
    elif name.startswith("vit_"):
        options = {"image_size": preset(name).side}  # else ViT-H/14 would be built for another
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


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


def _keep_main_branch(network: Any) -> None:
    """Drop the auxiliary classifiers, which exist to train the classifier that is cut off."""
    network.aux_logits = False
    network.transform_input = True
    for auxiliary in AUXILIARY:
        if hasattr(network, auxiliary):
            setattr(network, auxiliary, None)


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
