"""The network that is exported: backbone, head and whitening as one linear map, unit length.

Turning it into files is the business of ``training.export``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.backbones import Backbone
from training.network import EmbeddingNetwork
from training.settings import Embedding
from training.whitening import Whitening

__all__ = ["Features", "InferenceNetwork", "chosen"]


class Features(nn.Module):
    """A backbone's features, or the mean of those of a photo and its mirror image."""

    def __init__(self, backbone: Backbone, *, mirror: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.mirror = mirror

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 [n, 3, h, w] → float [n, features]."""
        features: Tensor = self.backbone(pixels)
        if self.mirror:
            features = (features + self.backbone(pixels.flip(3))) / 2
        return features


class InferenceNetwork(nn.Module):
    """Uint8 photos [n, 3, h, w] → float32 unit vectors [n, m]."""

    def __init__(
        self, backbone: Backbone, projection: nn.Linear | None, *, mirror: bool = False
    ) -> None:
        super().__init__()
        self.features = Features(backbone, mirror=mirror)
        self.projection = projection

    @classmethod
    def trained(
        cls,
        network: EmbeddingNetwork,
        whitening: Whitening,
        *,
        embedding: Embedding = "head",
        mirror: bool = False,
    ) -> InferenceNetwork:
        """Backbone, and head (if ``embedding`` is that) and whitening as one linear layer."""
        if embedding == "features":
            return cls.frozen(network.backbone, whitening, mirror=mirror)
        weight = network.head.weight.detach().to("cpu", torch.float64)
        bias = network.head.bias.detach().to("cpu", torch.float64)
        matrix = whitening.matrix.T
        linear = _linear(matrix @ weight, matrix @ (bias - whitening.mean))
        return cls(network.backbone, linear, mirror=mirror)

    @classmethod
    def frozen(
        cls, backbone: Backbone, whitening: Whitening | None, *, mirror: bool = False
    ) -> InferenceNetwork:
        """The backbone's own features, whitened or as they are."""
        if whitening is None:
            return cls(backbone, None, mirror=mirror)
        matrix = whitening.matrix.T
        return cls(backbone, _linear(matrix, -matrix @ whitening.mean), mirror=mirror)

    @property
    def backbone(self) -> Backbone:
        """The backbone."""
        return self.features.backbone

    @property
    def dim(self) -> int:
        """Dimensions of the embedding."""
        return self.backbone.features if self.projection is None else self.projection.out_features

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed."""
        features: Tensor = self.features(pixels)
        if self.projection is not None:
            features = self.projection(features)
        return F.normalize(features)


def chosen(features: Tensor, head: nn.Linear, embedding: Embedding) -> Tensor:
    """What is whitened of float features [n, p]: themselves, or the head's float64 [n, d]."""
    if embedding == "features":
        return features
    weight, bias = (t.detach().to("cpu", torch.float64) for t in (head.weight, head.bias))
    return features.to("cpu", torch.float64) @ weight.T + bias


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
