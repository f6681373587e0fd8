"""The backbone of an embedding network: uint8 photos → features.

Normalisation is part of the network, so it cannot be forgotten between training, export and
service.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from index.errors import DsclError, InvalidArgumentError
from training.backbones import torchvision_networks
from training.backbones.source import Source
from training.backbones.weights import WeightsError, misfit, read_state

__all__ = ["Backbone", "default_size"]

#: Prefix of the names of timm's networks.
TIMM = "timm:"


class Backbone(nn.Module):
    """A classification network without its classifier.

    Attributes:
        name: as given.
        side: of the photos it is built for, pixels; networks without position embeddings take
            others too.
        features: width of its output.
        interpolation: how photos were resized when its ImageNet weights were trained, such as
            ``bilinear``. To know, not to obey: each model is evaluated as it was trained here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, weights: str = "none", size: int | None = None) -> None:
        """Build ``name`` and load ``weights``.

        Args:
            name: one of torchvision's, such as ``mobilenet_v2``, ``resnet50``, ``vit_b_16``;
                ``small_cnn``; or ``timm:NAME`` with any name of timm's, such as
                ``timm:vit_small_patch16_224.augreg_in21k_ft_in1k``.
            weights: ``imagenet`` (the library's own, downloaded once into its cache; with timm,
                whatever they were trained on), ``none`` (random), or the path of a state dict
                (``.pth`` or ``.safetensors``) of the whole network or of an earlier run of ours.
            size: side of the photos in pixels; default: ``default_size(name)``. timm's
                transformers are built for it, and position embeddings in ``weights`` resampled.

        Raises:
            InvalidArgumentError: no such backbone, or it cannot be built for that size.
            DsclError: the name is timm's, and timm is not installed.
            WeightsError: see the class.
        """
        super().__init__()
        source = _source(name)
        preset = source.preset(name)
        self.name = name
        self.side = preset.side if size is None else size
        self.interpolation = preset.interpolation
        trunk = source.build(name, side=self.side, imagenet=weights == "imagenet")
        self.network = trunk.network
        self.features = trunk.features
        self._cut = trunk.cut
        if weights not in ("imagenet", "none"):
            self.load_weights(Path(weights))
        self.register_buffer("mean", _per_channel(preset.mean), persistent=False)
        self.register_buffer("std", _per_channel(preset.std), persistent=False)

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
        """Load a state dict of the whole network, or of a model folder of ours.

        Raises:
            WeightsError: unreadable, or of another architecture (says which keys differ).
        """
        own = self.network.state_dict()
        state = {
            key: value
            for key, value in read_state(path).items()
            if key in own or not key.startswith(self._cut)
        }
        difference = misfit(state, own)
        if difference is not None:
            converted = _source(self.name).converted(self.name, self.side, state)
            if converted is None or misfit(converted, own) is not None:
                raise WeightsError(
                    f"{path} does not fit backbone {self.name}: {difference}. "
                    "Give weights of this backbone, or name the backbone they belong to."
                )
            state = converted
        self.network.load_state_dict(state)

    def layers(self) -> list[list[nn.Parameter]]:
        """The trainable parameters by block (stem, blocks, what follows), from input to output.

        Each is in exactly one block; blocks without any are left out.
        """
        parameters = dict(self.network.named_parameters())
        blocks = (
            [parameters[name] for name in names if parameters[name].requires_grad]
            for names in _source(self.name).layers(self.network)
        )
        return [block for block in blocks if block]

    def undecayed(self) -> list[nn.Parameter]:
        """What weight decay should spare: vectors (biases, normalisation), position embeddings."""
        names = _source(self.name).undecayed(self.network)
        return [
            parameter
            for name, parameter in self.network.named_parameters()
            if parameter.ndim <= 1 or name in names
        ]


def default_size(name: str) -> int:
    """The side in pixels that the weights of backbone ``name`` were trained for.

    Raises:
        InvalidArgumentError: no such backbone.
        DsclError: the name is timm's, and timm is not installed.
    """
    return _source(name).preset(name).side


def _source(name: str) -> Source:
    """Where ``name`` comes from; checks that it is there."""
    source = _timm() if name.startswith(TIMM) else torchvision_networks
    if name not in source.names():
        known = list(torchvision_networks.names())
        if importlib.util.find_spec("timm") is not None:
            known += _timm().names()
        near = difflib.get_close_matches(name, known, n=5)
        raise InvalidArgumentError(
            f"--backbone is {name!r}, which there is not. "
            + (
                f"Nearest: {', '.join(near)}."
                if near
                else f"Expected {TIMM}NAME, or one of {', '.join(torchvision_networks.names())}."
            )
        )
    return source


def _timm() -> Source:
    # timm is optional, and takes a second to import.
    if importlib.util.find_spec("timm") is None:
        raise DsclError(
            f"backbones named {TIMM}… need timm, which is not installed: "
            "pip install 'dscl-retrieval[timm]'"
        )
    from training.backbones import timm_networks

    return timm_networks


def _per_channel(values: Sequence[float]) -> Tensor:
    """Constants for pixels in 0 … 255."""
    return torch.tensor(values).mul(255).reshape(1, 3, 1, 1)
