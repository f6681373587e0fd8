"""Whitening: the coordinates in which cosine search is meant.

The DSCL loss does not change under F → F A for any invertible A, while cosine similarity does. So
the embedding that is indexed is fixed by whitening with the statistics of the training photos.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from index.errors import InvalidArgumentError

__all__ = ["Whitening"]


@dataclass(frozen=True)
class Whitening:
    """The affine map x → (x − mean) @ matrix."""

    mean: Tensor  #: float64 (d,)
    matrix: Tensor  #: float64 (d, m)

    @classmethod
    def fit(cls, embeddings: Tensor, *, ridge: float = 0.1, dim: int | None = None) -> Whitening:
        """PCA whitening, damped: principal axes divided by √(eigenvalue + ridge · mean eigenvalue).

        Args:
            embeddings: float (n, d) of the training photos, n ≥ 2.
            ridge: ≥ 0; keeps directions that hardly vary from being blown up.
            dim: keep the m = ``dim`` axes of the largest variance; default: all d.

        Raises:
            InvalidArgumentError: too few embeddings, or ``dim`` or ``ridge`` out of range.
        """
        n, d = embeddings.shape
        dim = d if dim is None else dim
        if n < 2:
            raise InvalidArgumentError(f"whitening needs at least 2 photos, and got {n}.")
        if not 1 <= dim <= d:
            raise InvalidArgumentError(f"--dim is {dim}: whitening keeps 1 … {d} dimensions.")
        if not ridge >= 0:
            raise InvalidArgumentError(f"the whitening ridge is {ridge}: expected 0 or more.")
        x = embeddings.to("cpu", torch.float64)
        mean = x.mean(dim=0)
        centred = x - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / (n - 1))
        variances = variances.clamp(min=0)
        damped = variances + ridge * variances.mean()
        # Directions that vary by rounding alone carry nothing.
        noise = torch.finfo(torch.float64).eps * max(n, d) * x.square().sum() / (n - 1)
        scales = torch.where(damped > noise, damped, torch.inf).rsqrt()
        keep = slice(d - dim, d)  # eigh sorts ascending
        return cls(mean=mean, matrix=(axes * scales)[:, keep].flip(1))

    def apply(self, embeddings: Tensor) -> Tensor:
        """(n, d) → float64 (n, m)."""
        return (embeddings.to("cpu", torch.float64) - self.mean) @ self.matrix
