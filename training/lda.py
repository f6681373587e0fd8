"""Regularised linear discriminant analysis: the optimum of linear DSCL on fixed features.

Mathematics only: arrays in, a linear map out. Where features come from, and iterative training of
the same map, have modules of their own.

For embeddings F = X W of features X (n, p), with total scatter S_t and class scatter S_b of X, the
centred DSCL loss without ridge is (c − 1) − tr((Wᵀ S_t W)⁻¹ Wᵀ S_b W). Its least value over W
(p, d) is (c − 1) − Σ ρ_i over the d largest generalised eigenvalues ρ of (S_b, S_t), at any basis
of their eigenvectors: Fisher's discriminant analysis (Fukunaga, "Introduction to Statistical
Pattern Recognition", 2nd ed., section 10.2). With more features than photos that is 0, and worth
nothing, so S_t + λ tr(S_t)/p · I takes the place of S_t (Friedman, "Regularized Discriminant
Analysis", JASA 1989).

This λ is not the ridge of ``training.losses``. That one is r · tr(Wᵀ S_t W)/d · I, added to the
scatter of the *embedding*:

- For W with orthonormal columns the two are one: the loss with ridge r is that of λ where
  r · (mean variance of the embedding) = λ · (mean variance of the features).
- Over all W, the loss with ridge r does not regularise the subspace. As the ridge is the same for
  every direction of the embedding, W can always spread its scatter as it likes: with scatter g_i
  along eigenvector i, scaled to Σ g_i = d, the loss is (c − 1) − Σ ρ_i g_i / (g_i + r), which is
  least for the eigenvectors of (S_b, S_t) with λ = 0 and g_i = max(0, √(ρ_i r / ν) − r), ν being
  what makes their sum d. Against overfitting in the features, only λ helps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from index.errors import InvalidArgumentError

__all__ = ["Projection", "discriminant_projection"]


@dataclass(frozen=True, eq=False)
class Projection:
    """The affine map x → weight @ x + bias, as an ``nn.Linear`` has it."""

    weight: NDArray[np.float64]  #: (dim, p)
    bias: NDArray[np.float64]  #: (dim,)

    def apply(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, p) → (n, dim)."""
        return features @ self.weight.T + self.bias

    def copy_to(self, head: nn.Linear) -> None:
        """Set the weight [dim, p] and bias [dim] of ``head``, in its own dtype and device."""
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(self.weight))
            head.bias.copy_(torch.from_numpy(self.bias))


def discriminant_projection(
    features: NDArray[np.floating], labels: ArrayLike, *, dim: int, ridge: float
) -> Projection:
    """The ``dim`` directions of the features that tell their classes apart best.

    Rows of the weight are the generalised eigenvectors of (S_b, S_λ) with the largest eigenvalues,
    in falling order, where S_λ = S_t + ridge · tr(S_t)/p · I; they are orthogonal in S_λ. The
    projected features have mean 0 and, less what the ridge takes, variance 1.

    Means of c classes differ in at most c − 1 directions; all others have eigenvalue 0, and any of
    them, orthogonal to the first in S_λ, is as good an optimum. Beyond c − 1 come the principal
    directions of the features among those along which the class means do not differ: the loss is
    blind to them, the rank of the head is full, and classes that were not learned from often do
    differ along them.

    Computed in float64 from an orthogonal decomposition of the features themselves, never of their
    scatter, so collinear features and p > n cost no precision.

    Args:
        features: floating point (n, p), finite.
        labels: integers (n,), any values, at least 2 different ones.
        dim: directions; at most as many as the features vary in, which is at most min(n − 1, p).
        ridge: λ ≥ 0 relative to the mean variance of the features. With 0, directions in which
            the features vary by rounding alone are left out (the pseudo-inverse of S_t).

    Raises:
        InvalidArgumentError: other shapes, dtypes or ranges; NaN or infinity; one class only.
    """
    X, classes = _checked(features, labels)
    if not (math.isfinite(ridge) and ridge >= 0):
        raise InvalidArgumentError(
            f"the ridge of the closed form is {ridge}: expected a finite number >= 0; "
            "1 to 10 suits features of a network."
        )
    n, p = X.shape
    mean = X.mean(0)
    # Centring leaves rounding of the size of the values themselves, not of their spread.
    noise = np.finfo(np.float64).eps * max(n, p) * np.linalg.norm(X)
    X -= mean

    # S_t = axes.T @ diag(spreads²) @ axes, of full rank r in its own coordinates
    _, spreads, axes = np.linalg.svd(np.linalg.qr(X, mode="r"), full_matrices=False)
    varying = spreads > noise
    spreads, axes = spreads[varying], axes[varying]
    r = len(spreads)
    if not 1 <= dim <= r:
        raise InvalidArgumentError(
            f"--dim is {dim}: the features of {n} photos vary in {r} of {p} directions, so the "
            f"closed form can have 1 … {r} dimensions."
        )

    # S_b = offsets.T @ offsets, in the same coordinates
    counts = np.bincount(classes)
    one_hot = (classes[:, None] == np.arange(len(counts))).astype(np.float64)
    offsets = one_hot.T @ X / np.sqrt(counts)[:, None] @ axes.T
    _, differences, complete = np.linalg.svd(offsets)
    rank = min(len(counts) - 1, int((differences > noise).sum()))

    # Where S_λ is the identity, generalised eigenvectors of S_b are its singular vectors.
    shift = ridge * np.square(spreads).sum() / p
    scales = 1 / np.sqrt(np.square(spreads) + shift)
    _, _, directions = np.linalg.svd(offsets * scales, full_matrices=False)
    weight = directions[: min(dim, rank)] * scales
    if dim > rank:
        elsewhere = complete[rank:]
        turns, deviations, _ = np.linalg.svd(elsewhere * spreads, full_matrices=False)
        filling = turns.T @ elsewhere / np.sqrt(np.square(deviations) + shift)[:, None]
        weight = np.concatenate([weight, filling[: dim - rank]])
    weight = math.sqrt(n) * weight @ axes
    return Projection(weight=weight, bias=-weight @ mean)


def _checked(
    features: NDArray[np.floating], labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features as a float64 copy (n, p), classes numbered from 0 (n,)."""
    features, given = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or features.dtype.kind != "f" or 0 in features.shape:
        raise InvalidArgumentError(
            f"features are {features.dtype} {list(features.shape)}: expected floating point "
            "[n, p], one row per photo."
        )
    if given.shape != features.shape[:1] or given.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"labels are {given.dtype} {list(given.shape)}: expected integers "
            f"[{len(features)}], one per row of the features."
        )
    X = features.astype(np.float64)
    finite = np.isfinite(X).all(1)
    if not finite.all():
        raise InvalidArgumentError(
            f"{np.count_nonzero(~finite)} of {len(X)} rows of the features hold NaN or infinity: "
            "the weights of the backbone are damaged, or the features too large for their dtype."
        )
    values, classes = np.unique(given, return_inverse=True)
    if len(values) < 2:
        raise InvalidArgumentError(
            "all features have the same label: telling classes apart needs at least 2."
        )
    return X, classes
