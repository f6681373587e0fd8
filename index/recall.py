"""recall@k of approximate search against exact search, with an index's own vectors as queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.exact import Ids, Segment, Vectors, search_segments

__all__ = ["neighbour_scores", "recall"]


def neighbour_scores(segments: Sequence[Segment], own: Ids, queries: Vectors, k: int) -> Vectors:
    """The exact score of the k-th nearest other item of each item.

    Args:
        segments: exact ones, over more than k items.
        own: int64 (q,), the ids of the queries.
        queries: float32 (q, d), their vectors.
        k: at least 1.

    Returns:
        float32 (q,)
    """
    found, scores = search_segments(segments, queries, k + 1)
    # Where k + 1 others are equal to the query it may be missing from its own results.
    itself = (found == own[:, None]).any(1)
    return np.where(itself, scores[:, k], scores[:, k - 1])


def recall(found: Ids, scores: Vectors, *, own: Ids, right: Vectors, k: int) -> float:
    """The share of right answers that were found, the query itself left out.

    Args:
        found: int64 (q, m), m > k: results of a search for k + 1 or more.
        scores: float32 (q, m), exact.
        own: int64 (q,), the ids of the queries.
        right: float32 (q,), the score of the k-th nearest other item; items as near are right.
        k: at least 1.

    Returns:
        0 … 1
    """
    hits = (scores >= right[:, None]) & (found != own[:, None])
    return float(np.minimum(hits.sum(1), k).mean() / k)
