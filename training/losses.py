"""Deep Spectral Clustering Learning (DSCL): the loss, and its gradient in closed form.

Mathematics only: what a batch is made of, how it is embedded and when a step is taken are the
business of the trainer. Nothing here depends on images or networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from index.errors import InvalidArgumentError

__all__ = [
    "BatchStatistics",
    "DeepSpectralClusteringLoss",
    "NonFiniteEmbeddingsError",
    "Solution",
    "solve",
]


class NonFiniteEmbeddingsError(InvalidArgumentError):
    """Embeddings with NaN or infinity: the network has diverged."""

    code = "embeddings_not_finite"


@dataclass(frozen=True)
class BatchStatistics:
    """All that the loss needs to know of a batch: three sums over its rows.

    The statistics of a batch are the sum of those of its parts, so parts may be embedded at
    different times or on different devices, as long as they number their c classes alike.
    """

    gram: Tensor  #: float64 [d, d], Σ f fᵀ
    class_sums: Tensor  #: float64 [c, d], Σ f over each class
    class_counts: Tensor  #: float64 [c], rows of each class; 0 where a class is absent

    @classmethod
    def of(cls, embeddings: Tensor, classes: Tensor, n_classes: int) -> BatchStatistics:
        """Sum up embeddings float64 [n, d] whose classes are int64 [n] in 0 … n_classes − 1."""
        # A matrix product, as scattered additions come in a random order on a GPU.
        one_hot = nn.functional.one_hot(classes, n_classes).to(embeddings.dtype)
        return cls(embeddings.T @ embeddings, one_hot.T @ embeddings, one_hot.sum(0))

    def __add__(self, other: BatchStatistics) -> BatchStatistics:
        return BatchStatistics(
            self.gram + other.gram,
            self.class_sums + other.class_sums,
            self.class_counts + other.class_counts,
        )


@dataclass(frozen=True)
class Solution:
    """The loss of a batch, and what each row needs in order to know its gradient."""

    loss: Tensor  #: float64 scalar
    mean: Tensor  #: float64 [d], 0 when not centred
    spread: Tensor  #: float64 [d, d], pushes a row away from the mean …
    pull: Tensor  #: float64 [c, d], … and towards its own class

    def gradient(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """∂loss/∂F, float64 [n, d], for any rows of the batch: float64 [n, d], int64 [n]."""
        return (embeddings - self.mean) @ self.spread - self.pull[classes]


def solve(statistics: BatchStatistics, *, ridge: float, center: bool, normalize: bool) -> Solution:
    """Compute the loss and its gradient from the sums over a batch.

    With total scatter S_t = Σ (f − μ)(f − μ)ᵀ, class scatter S_b = Σ_c N_c (μ_c − μ)(μ_c − μ)ᵀ and
    A = S_t + ridge · tr(S_t)/d · I,

        loss = k − tr(A⁻¹ S_b),    k = rank of the (centred) class matrix,
        ∂loss/∂f = 2 (M + ridge · tr(M)/d · I)(f − μ) − 2 A⁻¹ (μ_c − μ),    M = A⁻¹ S_b A⁻¹.

    With ridge 0 and μ = 0 these are the loss k − tr(P_F P_Y) and the gradient 2 (P_F − I) P_Y (F†)ᵀ
    of Law, Urtasun and Zemel, "Deep Spectral Clustering Learning" (ICML 2017).

    Args:
        statistics: sums over the whole batch.
        ridge: see ``DeepSpectralClusteringLoss``.
        center: μ is the mean of the batch; otherwise 0.
        normalize: divide by k.
    """
    gram, counts = statistics.gram, statistics.class_counts
    d, n = len(gram), counts.sum()
    class_means = statistics.class_sums / counts.clamp(min=1)[:, None]
    mean = statistics.class_sums.sum(0) / n if center else torch.zeros_like(gram[0])
    k = (counts > 0).to(gram.dtype).sum() - int(center)

    total = gram - n * torch.outer(mean, mean)
    shift = ridge * total.trace() / d
    # Rounding of the n products summed in each entry: below it, eigenvalues carry no information.
    noise = torch.finfo(gram.dtype).eps * max(d, int(n)) * gram.trace()
    inverse = _inverse(total, shift, noise)

    offsets = class_means - mean
    pull = offsets @ inverse
    M = pull.T @ (counts[:, None] * pull)
    loss = k - (counts[:, None] * pull * offsets).sum()
    identity = torch.eye(d, dtype=gram.dtype, device=gram.device)
    scale = 1 / k if normalize else torch.ones_like(loss)
    return Solution(
        loss=scale * loss,
        mean=mean,
        spread=2 * scale * (M + ridge * M.trace() / d * identity),
        pull=2 * scale * pull,
    )


class DeepSpectralClusteringLoss(nn.Module):
    """Deep Spectral Clustering Learning (Law, Urtasun and Zemel, ICML 2017).

    The loss is k − tr(P_F P_Y): how far the column space of the embeddings F is from containing
    that of the one-hot classes Y, P being the orthogonal projectors and k the rank of Y. It is 0
    when the classes are linear functions of F, and k (1 − d/n) on average for a random F. It does
    not change under F → FA for any invertible A, so the embeddings need whitening before they are
    compared by cosine.

    Two things to mind: n must be well above d, since with n <= d every F scores 0; and d should be
    at least the number of classes in the batch, since k − d is otherwise the least possible loss.

    Everything is computed in float64 from the d × d Gram matrix, whose condition number is the
    square of that of F. The gradient is in closed form; it cannot be differentiated again.

    Args:
        ridge: regularisation relative to the mean eigenvalue of the scatter; >= 0. With 0, or one
            that rounding would drown, the pseudo-inverse is used: eigenvalues of the scatter up to
            max(n, d) · 2⁻⁵² · tr(FᵀF) count as 0, so that P_F is the true projector of an F without
            full rank. Embeddings that are all alike score the worst value, with gradient 0.
        center: centre F and Y first. The constant vector lies in both column spaces and earns a
            worthless 1; without it the loss is (c − 1) − tr(S_t⁻¹ S_b) for c classes.
        normalize: divide by k, so that the loss lies in 0 … 1 whatever the number of classes.
    """

    def __init__(self, *, ridge: float = 1e-3, center: bool = True, normalize: bool = True) -> None:
        super().__init__()
        if not (math.isfinite(ridge) and ridge >= 0):
            raise InvalidArgumentError(
                f"ridge is {ridge}: it must be a finite number >= 0; 1e-4 to 1e-2 suits training."
            )
        self.ridge = ridge
        self.center = center
        self.normalize = normalize

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        classes: Tensor | None = None,
        reduce: Callable[[BatchStatistics], BatchStatistics] | None = None,
    ) -> Tensor:
        """Score a batch, or with ``classes`` and ``reduce`` a batch shared by several processes.

        Each process then passes its own rows and gets the loss of the whole batch, whose gradient
        flows into those rows. Errors about the batch are raised in all processes alike.

        Args:
            embeddings: floating point [n, d], finite. The whole batch has more rows than d (than
                d + 1 when centred).
            labels: integers [n], any values; in the whole batch at least 2 different ones when
                centred.
            classes: integers [c], the labels of the whole batch, ascending, each once. Those in
                ``labels`` by default.
            reduce: makes the statistics of the whole batch of those of these rows. By default these
                rows are the batch.

        Returns:
            Scalar of the embeddings' dtype, float32 for float16 and bfloat16.

        Raises:
            InvalidArgumentError: another shape or dtype, too few rows or classes, a label that is
                not in ``classes``.
            NonFiniteEmbeddingsError: embeddings of the batch are NaN or infinite.
        """
        _check_tensors(embeddings, labels)
        if classes is None:
            classes, positions = torch.unique(labels, return_inverse=True)
        else:
            positions = _positions(labels, classes)
        # MPS has no float64.
        device = "cpu" if embeddings.device.type == "mps" else embeddings.device
        # In float64, which autocast leaves alone
        F, positions = embeddings.detach().to(device).double(), positions.to(device)
        statistics = BatchStatistics.of(F, positions, len(classes))
        if reduce is not None:
            statistics = reduce(statistics)
        counts = statistics.class_counts
        n, d = int(counts.sum()), F.shape[1]
        self._check_sizes(n, d, int((counts > 0).sum()))
        if not torch.isfinite(statistics.gram).all():
            bad = int((~torch.isfinite(F)).any(1).sum())
            raise NonFiniteEmbeddingsError(
                f"{bad} of {len(F)} embeddings{' of this process' if len(F) < n else ''} hold NaN "
                "or infinity: the network has diverged. Lower the learning rate, or train without "
                "float16."
            )
        solution = solve(statistics, ridge=self.ridge, center=self.center, normalize=self.normalize)
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        value = solution.loss.to(dtype).to(embeddings.device)
        gradient = solution.gradient(F, positions).to(dtype).to(embeddings.device)
        loss: Tensor = _KnownGradient.apply(embeddings, value, gradient)
        return loss

    def random_level(self, n: int, d: int, classes: int) -> float:
        """Return the loss that embeddings without any information score on average.

        Without ridge this is k (1 − d/N), where N = n − 1 and k = classes − 1 when centred, N = n
        and k = classes otherwise: a random d-dimensional subspace holds d/N of any vector. The
        ridge shrinks the share of each direction; by how much is taken from the limit of large n
        and d (Marčenko and Pastur, 1967).

        Args:
            n: images in the batch; as for the loss, n > d (n − 1 > d when centred).
            d: embedding dimensions.
            classes: different labels in the batch.
        """
        self._check_sizes(n, d, classes)
        N, k = n - int(self.center), classes - int(self.center)
        ratio, ridge = d / N, self.ridge
        # ridge · E[1 / (x + ridge)] over the eigenvalues x of a random scatter of mean 1
        b = 1 - ratio + ridge
        shrinkage = (math.sqrt(b * b + 4 * ratio * ridge) - b) / (2 * ratio)
        level = 1 - ratio * (1 - shrinkage)
        return level if self.normalize else k * level

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"ridge={self.ridge}, center={self.center}, normalize={self.normalize}"

    def _check_sizes(self, n: int, d: int, classes: int) -> None:
        if n - int(self.center) <= d:
            flat, least = ("n - 1 <= d", d + 1) if self.center else ("n <= d", d)
            raise InvalidArgumentError(
                f"batch of {n} images cannot train a {d}-dimensional DSCL embedding: the "
                f"{'centred ' if self.center else ''}loss is flat when {flat}. Raise --batch-size "
                f"above {least} (8×d is a good start) or lower --dim."
            )
        if self.center and classes < 2:
            raise InvalidArgumentError(
                f"batch of {n} images holds {classes} class: the centred DSCL loss needs at least "
                "2. Sample more classes per batch."
            )


class _KnownGradient(torch.autograd.Function):
    """A value with the gradient that it is known to have."""

    @staticmethod
    def forward(ctx: FunctionCtx, embeddings: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.embedding_dtype = embeddings.dtype  # type: ignore[attr-defined]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (grad_output * gradient).to(ctx.embedding_dtype), None, None


def _positions(labels: Tensor, classes: Tensor) -> Tensor:
    """Where in the ascending ``classes`` each of ``labels`` is, int64 [n]."""
    positions = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    strangers = labels[classes[positions] != labels].unique().tolist()
    if strangers:
        raise InvalidArgumentError(
            f"labels {strangers[:5]} are not among the {len(classes)} classes of the batch: "
            "expected classes to hold every label, in ascending order."
        )
    return positions


def _inverse(scatter: Tensor, shift: Tensor, noise: Tensor) -> Tensor:
    """(scatter + shift · I)⁻¹, float64 [d, d]; eigenvalues not above ``noise`` invert to 0."""
    if shift > noise:
        shifted = scatter + shift * torch.eye(len(scatter), dtype=shift.dtype, device=shift.device)
        inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(shifted))
        return inverse
    eigenvalues, vectors = torch.linalg.eigh(scatter)
    kept = eigenvalues > noise
    pseudo_inverse: Tensor = vectors[:, kept] / (eigenvalues[kept] + shift) @ vectors[:, kept].T
    return pseudo_inverse


def _check_tensors(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or not embeddings.is_floating_point():
        raise InvalidArgumentError(
            f"embeddings are {embeddings.dtype} {list(embeddings.shape)}: expected floating point "
            "[n, d], one row per image."
        )
    if labels.ndim != 1 or len(labels) != len(embeddings):
        raise InvalidArgumentError(
            f"labels have shape {list(labels.shape)}: expected [{len(embeddings)}], one per "
            "embedding."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InvalidArgumentError(
            f"labels are {labels.dtype}: expected integers, one number per class."
        )
