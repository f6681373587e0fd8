"""What each query finds: its neighbours, its first right answer, and what that says of classes.

Order and scores are those of ``index.metrics``; here they are kept by query instead of averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.metrics import nearest, score

__all__ = ["ClassRecall", "Ranking", "best", "class_recalls", "rank", "worst"]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The answers to q queries among n photos, in the order of ``queries``."""

    queries: NDArray[np.int64]  #: (q,), positions of those that have a right answer, ascending
    neighbours: NDArray[np.int64]  #: (q, k), nearest first; −1 beyond the end of the gallery
    right: NDArray[np.bool_]  #: (q, k), whether a neighbour is of the query's class
    first_rank: NDArray[np.int64]  #: (q,), rank of the first right answer, from 1
    first_right: NDArray[np.int64]  #: (q,), and its position
    average_precision: NDArray[np.float64]  #: (q,), at R; their mean is MAP@R

    def __len__(self) -> int:
        return len(self.queries)


def rank(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.bool_] | None = None,
    *,
    k: int = 8,
) -> Ranking:
    """Rank the gallery for each query that has a right answer in it.

    Args:
        embeddings: (n, d), n >= 2.
        labels: (n,), from 0.
        queries: bool (n,), rows that are queries, the others being the gallery; None makes each
            row a query against all others.
        k: how many neighbours to keep.
    """
    n = len(labels)
    asks = np.ones(n, np.bool_) if queries is None else queries
    offered = np.ones(n, np.bool_) if queries is None else ~queries
    gallery = n - 1 if queries is None else int(np.count_nonzero(offered))
    # A query that is in the gallery is no answer to itself.
    counts = np.bincount(labels[offered], minlength=labels.max() + 1)[labels] - (asks & offered)
    rows = np.flatnonzero(asks & (counts > 0))
    index_of = np.zeros(n, np.int64)
    index_of[rows] = np.arange(len(rows))

    neighbours = np.full((len(rows), k), -1)
    right = np.zeros((len(rows), k), np.bool_)
    first_rank, first_right = np.zeros((2, len(rows)), np.int64)
    average_precision = np.zeros(len(rows))
    # Few queries find their first right answer late, so only for those the search goes deeper.
    pending, depth = rows, np.maximum(counts, k)
    while len(pending):
        depths = np.zeros(n, np.int64)
        depths[pending] = np.minimum(depth[pending], gallery)
        for block, found in nearest(embeddings, depths, gallery=offered):
            relevant = labels[found] == labels[block, None]
            done = relevant.any(1)
            block, found, relevant = block[done], found[done], relevant[done]
            if len(block) == 0:
                continue
            at, kept = index_of[block], min(k, found.shape[1])
            neighbours[at, :kept] = found[:, :kept]
            right[at, :kept] = relevant[:, :kept]
            first = relevant.argmax(1)
            first_rank[at] = first + 1
            first_right[at] = found[np.arange(len(at)), first]
            average_precision[at] = score(relevant, counts[block])[2]
        pending = pending[first_rank[index_of[pending]] == 0]
        depth = depth * 8
    return Ranking(
        queries=rows,
        neighbours=neighbours,
        right=right,
        first_rank=first_rank,
        first_right=first_right,
        average_precision=average_precision,
    )


def worst(ranking: Ranking, count: int) -> NDArray[np.int64]:
    """Rows of ``ranking`` whose first right answer ranks lowest, the lowest first; ties by row."""
    order: NDArray[np.int64] = np.argsort(-ranking.first_rank, kind="stable")
    return order[:count]


def best(ranking: Ranking, labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows of ``ranking`` of highest average precision, the highest first; ties by row.

    At most one row of each class: the others of a class that is easy look much the same.
    """
    order = np.argsort(-ranking.average_precision, kind="stable")
    _, first = np.unique(labels[ranking.queries[order]], return_index=True)
    chosen: NDArray[np.int64] = order[np.sort(first)]
    return chosen[:count]


@dataclass(frozen=True, kw_only=True)
class ClassRecall:
    """Recall@1 of the queries of one class."""

    label: int
    queries: int
    recall: float
    mistaken_for: int | None  #: class of most wrong first answers; None where all are right
    mistakes: int  #: and how many these are


def class_recalls(ranking: Ranking, labels: NDArray[np.int64]) -> list[ClassRecall]:
    """Recall@1 of each class that has queries, worst first, then by label."""
    asked, found = labels[ranking.queries], labels[ranking.neighbours[:, 0]]
    recalls = []
    for label in np.unique(asked):
        answers = found[asked == label]
        wrong, times = np.unique(answers[answers != label], return_counts=True)
        recalls.append(
            ClassRecall(
                label=int(label),
                queries=len(answers),
                recall=float((answers == label).mean()),
                mistaken_for=int(wrong[times.argmax()]) if len(wrong) else None,
                mistakes=int(times.max()) if len(wrong) else 0,
            )
        )
    return sorted(recalls, key=lambda recall: (recall.recall, recall.label))
