"""What a library of networks must offer to be a source of backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

__all__ = ["Preset", "Source", "Trunk"]


@dataclass(frozen=True)
class Preset:
    """How photos were prepared when a backbone's weights were trained."""

    side: int  #: of a square photo, pixels
    mean: Sequence[float]  #: per channel, of pixels in 0 … 1
    std: Sequence[float]
    interpolation: str  #: such as ``bilinear``


@dataclass(frozen=True)
class Trunk:
    """A network whose classifier is cut off."""

    network: nn.Module  #: float photos [n, 3, h, w] → [n, features, …], trailing axes of length 1
    features: int
    cut: tuple[
        str, ...
    ]  #: prefixes, in the whole network's state dict, of keys that may be left over


class Source(Protocol):
    """A module with these functions; each ``name`` is one of ``names()``."""

    def names(self) -> Sequence[str]:
        """All backbones there are."""

    def preset(self, name: str) -> Preset:
        """How ``name`` wants its photos."""

    def build(self, name: str, *, side: int, imagenet: bool) -> Trunk:
        """Build ``name`` for photos of ``side`` pixels, with random or ImageNet weights.

        Raises:
            InvalidArgumentError: it cannot be built for that size.
            WeightsError: no ImageNet weights, or they cannot be had.
        """

    def converted(
        self, name: str, side: int, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """``state``, which does not fit as it is, in the form of ``build``'s network.

        None if the source knows no way.
        """

    def layers(self, network: nn.Module) -> list[list[str]]:
        """Names of the parameters of each block, blocks from input to output."""

    def undecayed(self, network: nn.Module) -> set[str]:
        """Names of the parameters that weight decay would harm, vectors aside."""
