"""Training of the last layer alone: a linear head on features that do not change.

Features of a frozen backbone come from ``training.feature_cache``, the mathematics of the closed
form from ``training.lda``. Nothing here knows photos, networks or settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.errors import InvalidArgumentError
from training.lda import Projection, discriminant_projection
from training.losses import NonFiniteEmbeddingsError
from training.sampler import ClassBalancedBatches

__all__ = ["fit_closed_form", "fit_iterative"]


def fit_closed_form(
    features: NDArray[np.floating], labels: NDArray[np.integer], *, dim: int, ridge: float
) -> Projection:
    """Solve for the head with the least DSCL loss; see ``discriminant_projection``.

    Args:
        features: floating point (n, p); several views of the photos one below the other.
        labels: integers (n,).
        dim: of the embedding.
        ridge: relative to the mean variance of the features. Not the ridge of the loss.

    Raises:
        InvalidArgumentError: see ``discriminant_projection``.
    """
    return discriminant_projection(features, labels, dim=dim, ridge=ridge)


def fit_iterative(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    criterion: nn.Module,
    *,
    dim: int,
    epochs: int,
    lr: float,
    weight_decay: float,
    seed: int,
    sampler: ClassBalancedBatches | None = None,
    start: Projection | None = None,
    device: torch.device | None = None,
    on_epoch: Callable[[int, float], object] | None = None,
) -> Projection:
    """Train the head by AdamW, its rate falling along a cosine to 0.

    The features are centred and divided by their mean deviation, so that one rate suits all
    backbones; the result is that for the features as they are given.

    Args:
        features: floating point (n, p), in memory or mapped from disk; several views of the photos
            one below the other.
        labels: integers (n,), as ``criterion`` takes them.
        criterion: called with embeddings float32 [m, dim] and labels int64 [m], returns a scalar.
            Moved to ``device``; its parameters (proxies) are trained along.
        dim: of the embedding.
        epochs: at least 1.
        lr: at the start.
        weight_decay: of AdamW, on the weight alone.
        seed: of the first weight. Batches have that of ``sampler``.
        sampler: batches, planned for ``labels``. None: all rows in each step, which is an epoch.
        start: first weight and bias. None: a random orthogonal weight, bias 0.
        device: None: the CPU.
        on_epoch: called after each epoch with its number, from 1, and its mean loss.

    Raises:
        InvalidArgumentError: shapes that do not fit; settings out of range; from ``criterion``.
        NonFiniteEmbeddingsError: the loss is NaN or infinite.
    """
    labels = np.asarray(labels)
    if features.ndim != 2 or features.dtype.kind != "f" or labels.shape != features.shape[:1]:
        raise InvalidArgumentError(
            f"features are {features.dtype} {list(features.shape)} and labels "
            f"{list(labels.shape)}: expected floating point [n, p], and a label for each row."
        )
    if epochs < 1 or not (math.isfinite(lr) and lr > 0) or dim < 1:
        raise InvalidArgumentError(
            f"{epochs} epochs at lr {lr} for {dim} dimensions: expected at least 1 epoch, a "
            "positive lr and at least 1 dimension."
        )
    device = torch.device("cpu") if device is None else device
    mean = features.mean(0, dtype=np.float64)
    scale = math.sqrt(features.var(0, dtype=np.float64).mean()) or 1.0
    head = _head(dim, mean, scale, start, seed).to(device)
    criterion = criterion.to(device)
    groups = [
        {"params": [head.weight], "weight_decay": weight_decay},
        {"params": [head.bias, *criterion.parameters()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    steps = epochs * (len(sampler) if sampler is not None else 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    for epoch in range(epochs):
        plan = sampler.epoch(epoch) if sampler is not None else [np.arange(len(labels))]
        losses = []
        for rows in plan:
            batch = ((features[rows] - mean) / scale).astype(np.float32)
            classes = torch.from_numpy(labels[rows].astype(np.int64)).to(device)
            optimizer.zero_grad(set_to_none=True)
            loss: Tensor = criterion(head(torch.from_numpy(batch).to(device)), classes)
            loss.backward()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NonFiniteEmbeddingsError(
                    f"the loss became {losses[-1]} in epoch {epoch + 1} of the last layer: lower "
                    f"its learning rate, {lr}."
                )
            optimizer.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, float(np.mean(losses)))

    weight = head.weight.detach().to("cpu", torch.float64).numpy() / scale
    bias = head.bias.detach().to("cpu", torch.float64).numpy()
    return Projection(weight=weight, bias=bias - weight @ mean)


def _head(
    dim: int, mean: NDArray[np.float64], scale: float, start: Projection | None, seed: int
) -> nn.Linear:
    """A head for centred and scaled features, which does what ``start`` does for the given ones."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, len(mean), dim)
    if start is None:
        nn.init.orthogonal_(head.weight, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(head.bias)
        return head
    if start.weight.shape != (dim, len(mean)):
        raise InvalidArgumentError(
            f"the first weight is {list(start.weight.shape)}: expected {[dim, len(mean)]}."
        )
    Projection(start.weight * scale, start.apply(mean)).copy_to(head)
    return head
