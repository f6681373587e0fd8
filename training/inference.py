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

__all__ = ["Features", "InferenceNetwork", "Power", "Views", "chosen"]


class Power(nn.Module):
    """Power normalisation, x → sign(x) · |x|^power, element by element.

    Below 1, it evens out features that respond strongly to few photos (Perronnin, Sánchez and
    Mensink, "Improving the Fisher kernel for large-scale image classification", ECCV 2010).
    """

    def __init__(self, power: float) -> None:
        """``power`` > 0."""
        super().__init__()
        self.power = power

    def forward(self, features: Tensor) -> Tensor:
        """Float, any shape → the same."""
        return features.sign() * features.abs() ** self.power


class Views(nn.Module):
    """A backbone's features of a photo or, with ``mirror``, of it and its mirror image."""

    def __init__(self, backbone: Backbone, *, mirror: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.mirror = mirror

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 [n, 3, h, w] → float [n, v, features], v = 1 or 2."""
        views = [pixels, pixels.flip(3)] if self.mirror else [pixels]
        return torch.stack([self.backbone(view) for view in views], dim=1)


class Features(nn.Module):
    """A backbone's features to a power, or the mean of those of a photo and its mirror image."""

    def __init__(self, backbone: Backbone, *, mirror: bool = False, power: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.mirror = mirror
        self.power = nn.Identity() if power == 1 else Power(power)

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 [n, 3, h, w] → float [n, features]."""
        features: Tensor = self.power(self.backbone(pixels))
        if self.mirror:
            features = (features + self.power(self.backbone(pixels.flip(3)))) / 2
        return features


class InferenceNetwork(nn.Module):
    """Uint8 photos [n, 3, h, w] → float32 unit vectors [n, m]."""

    def __init__(
        self,
        backbone: Backbone,
        projection: nn.Linear | None,
        *,
        mirror: bool = False,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        self.features = Features(backbone, mirror=mirror, power=power)
        self.projection = projection

    @classmethod
    def trained(
        cls,
        network: EmbeddingNetwork,
        whitening: Whitening,
        *,
        embedding: Embedding = "head",
        mirror: bool = False,
        power: float = 1.0,
    ) -> InferenceNetwork:
        """Backbone, and head (if ``embedding`` is that) and whitening as one linear layer.

        ``power`` is of features that are the embedding: the head has learned from them as they are.
        """
        if embedding == "features":
            return cls.frozen(network.backbone, whitening, mirror=mirror, power=power)
        weight = network.head.weight.detach().to("cpu", torch.float64)
        bias = network.head.bias.detach().to("cpu", torch.float64)
        matrix = whitening.matrix.T
        linear = _linear(matrix @ weight, matrix @ (bias - whitening.mean))
        return cls(network.backbone, linear, mirror=mirror)

    @classmethod
    def frozen(
        cls,
        backbone: Backbone,
        whitening: Whitening | None,
        *,
        mirror: bool = False,
        power: float = 1.0,
    ) -> InferenceNetwork:
        """The backbone's own features to a power, whitened or as they are."""
        linear = None
        if whitening is not None:
            matrix = whitening.matrix.T
            linear = _linear(matrix, -matrix @ whitening.mean)
        return cls(backbone, linear, mirror=mirror, power=power)

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


def chosen(views: Tensor, head: nn.Linear, embedding: Embedding, *, power: float = 1.0) -> Tensor:
    """What is whitened of a photo's features.

    Args:
        views: float [n, v, p], of ``Views``.
        head: of the network.
        embedding: which of the two.
        power: see ``InferenceNetwork.trained``.

    Returns:
        float64 [n, p] for ``features``, [n, d] for ``head``.
    """
    views = views.to("cpu", torch.float64)
    if embedding == "features":
        raised: Tensor = Power(power)(views)
        return raised.mean(dim=1)
    weight, bias = (t.detach().to("cpu", torch.float64) for t in (head.weight, head.bias))
    return views.mean(dim=1) @ weight.T + bias


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
