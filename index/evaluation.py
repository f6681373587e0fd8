"""``Evaluation``: how well a gallery finds the items of a label, by exact or by its own search.

The definitions of the figures are those of ``index.metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import index.metrics as metrics
from index.errors import InvalidArgumentError
from index.vectors import VectorIndex

__all__ = ["Evaluation", "evaluate_index"]

#: Results of a block of queries that are looked at together.
BLOCK_RESULTS = 2**20


@dataclass(frozen=True)
class Evaluation:
    """Retrieval metrics of a gallery and how they were taken."""

    metrics: metrics.RetrievalMetrics
    protocol: str
    unlabelled: int  #: items without a label, left out on both sides


def evaluate_index(
    index: VectorIndex,
    ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    labels: Sequence[str],
    ks: Sequence[int],
) -> metrics.RetrievalMetrics:
    """The figures of ``metrics.evaluate``, leave-one-out, but as ``index`` ranks the items.

    Args:
        index: holds these items, and maybe others, which do not take part.
        ids: int64 [n], ascending.
        vectors: float32 [n, d].
        labels: [n].
        ks: the K of recall@K, each at least 1.

    Raises:
        InvalidArgumentError: each item is alone in its class.
    """
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    answers = np.bincount(classes)[classes] - 1
    if not answers.any():
        raise InvalidArgumentError(
            f"each of the {len(ids)} items is alone in its class, so no query has a right answer. "
            "Give at least two items the same label."
        )
    ks = sorted(set(ks))
    depths = np.minimum(np.maximum(answers, ks[-1]), len(ids) - 1)
    subset = index.subset(ids)
    scores = []
    for rows in _blocks(np.where(answers > 0, depths, 0)):
        depth = int(depths[rows].max())
        found, _ = index.search(vectors[rows], depth + 1, within=subset)
        others = _without_itself(found, ids[rows])
        relevant = classes[np.searchsorted(ids, others)] == classes[rows, None]
        scores.append(metrics.score(relevant, answers[rows], ks))
    hits, r_precision, average_precision = (
        np.concatenate(parts) for parts in zip(*scores, strict=True)
    )
    return metrics.RetrievalMetrics(
        recall=dict(zip(ks, hits.mean(0).tolist(), strict=True)),
        r_precision=float(r_precision.mean()),
        map_at_r=float(average_precision.mean()),
        nmi=None,
        queries=len(hits),
        skipped=len(ids) - len(hits),
    )


def _blocks(depths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows with a depth above 0, deepest first, as many at a time as memory allows."""
    order = np.argsort(-depths, kind="stable")[: np.count_nonzero(depths)]
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, BLOCK_RESULTS // int(depths[order[start]] + 1))]
        yield rows
        start += len(rows)


def _without_itself(found: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each query taken out of its results [q, m], or the last result where it is not in them."""
    itself = found == own[:, None]
    keep = np.argsort(itself, axis=1, kind="stable")[:, :-1]
    # Stable: all others keep their order, and the query comes last.
    others: NDArray[np.int64] = np.take_along_axis(found, keep, axis=1)
    return others
