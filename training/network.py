"""The embedding network: a backbone and a linear head."""

from __future__ import annotations

from torch import Tensor, nn

from index.errors import InvalidArgumentError
from training.backbones import Backbone

__all__ = ["EmbeddingNetwork"]


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
