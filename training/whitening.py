"""Whitening: the coordinates in which cosine search is meant.

The DSCL loss does not change under F → F A for any invertible A, while cosine similarity does. So
the embedding that is indexed is fixed by whitening with the statistics of the training photos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
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
        d = embeddings.shape[1]
        dim = d if dim is None else dim
        if not 1 <= dim <= d:
            raise InvalidArgumentError(f"--dim is {dim}: whitening keeps 1 … {d} dimensions.")
        x = _checked(embeddings, ridge)
        mean = x.mean(dim=0)
        axes = _whitening_axes(x - mean, _noise(x), ridge)
        return cls(mean=mean, matrix=axes[:, d - dim :].flip(1))

    @classmethod
    def fit_within(
        cls, embeddings: Tensor, labels: NDArray[np.int64], *, ridge: float = 0.1
    ) -> Whitening:
        """Whiten by how photos of one class differ from each other, not by how all of them do.

        Directions in which a class varies (view, light, background) shrink, those that tell classes
        apart stay: within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Interspeech
        2006). Damped as ``fit`` is.

        Args:
            embeddings: float (n, d) of the training photos, n ≥ 2.
            labels: int (n,), their classes.
            ridge: ≥ 0, relative to the mean variance within classes.

        Raises:
            InvalidArgumentError: too few embeddings, not one label each, or ``ridge`` out of range.
        """
        x = _checked(embeddings, ridge)
        if labels.shape != (len(x),):
            raise InvalidArgumentError(
                f"labels have shape {list(labels.shape)}: expected [{len(x)}], one per embedding."
            )
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), x.shape[1], dtype=x.dtype)
        sums.index_add_(0, torch.from_numpy(classes), x)
        class_means = sums / torch.from_numpy(counts)[:, None]
        within = x - class_means[torch.from_numpy(classes)]
        return cls(mean=x.mean(dim=0), matrix=_whitening_axes(within, _noise(x), ridge).flip(1))

    def apply(self, embeddings: Tensor) -> Tensor:
        """(n, d) → float64 (n, m)."""
        return (embeddings.to("cpu", torch.float64) - self.mean) @ self.matrix


def _checked(embeddings: Tensor, ridge: float) -> Tensor:
    """The embeddings in float64 on the CPU."""
    if len(embeddings) < 2:
        raise InvalidArgumentError(f"whitening needs at least 2 photos, and got {len(embeddings)}.")
    if not ridge >= 0:
        raise InvalidArgumentError(f"the whitening ridge is {ridge}: expected 0 or more.")
    return embeddings.to("cpu", torch.float64)


def _noise(x: Tensor) -> Tensor:
    """Variance that rounding alone gives a direction of embeddings (n, d)."""
    n, d = x.shape
    return torch.finfo(torch.float64).eps * max(n, d) * x.square().sum() / (n - 1)


def _whitening_axes(centred: Tensor, noise: Tensor, ridge: float) -> Tensor:
    """Principal axes (d, d), least variance first, each divided by its damped deviation."""
    variances, axes = torch.linalg.eigh(centred.T @ centred / (len(centred) - 1))
    variances = variances.clamp(min=0)
    damped = variances + ridge * variances.mean()
    # Directions that vary by rounding alone carry nothing.
    scaled: Tensor = axes * torch.where(damped > noise, damped, torch.inf).rsqrt()
    return scaled
