"""Exact search by inner product, and how all searches rank: score descending, ties by ascending id.

``exact_scores`` is the one function that makes the scores users see. It sums every row in the same
order, so equal vectors get equal scores to the last bit wherever they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FlatSegment",
    "Ids",
    "Segment",
    "Vectors",
    "exact_scores",
    "nearest_rows",
    "rank",
    "search_segments",
]

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

#: Bytes of scores that a block of queries may take.
BLOCK_BYTES = 64 * 2**20


class Segment(Protocol):
    """A part of an index that is searched by itself; ``search_segments`` merges the parts."""

    def __len__(self) -> int:
        """How many items can be found."""

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """The k best of this part: ids and scores (q, k), ranked; 1 <= k <= len(self)."""


class FlatSegment:
    """Rows of a matrix, compared one and all."""

    def __init__(self, ids: Ids, vectors: Vectors, dead: Ids | None = None) -> None:
        """Make rows searchable; nothing is copied.

        Args:
            ids: int64 (n,), ascending.
            vectors: float32 (n, d), unit rows, contiguous.
            dead: int64, rows that cannot be found, each once.
        """
        self._ids = ids
        self._vectors = vectors
        self._dead = np.empty(0, np.int64) if dead is None else dead

    def __len__(self) -> int:
        return len(self._ids) - len(self._dead)

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """See ``Segment``."""
        rows, scores = nearest_rows(queries, self._vectors, k, self._dead)
        return self._ids[rows], scores


def search_segments(segments: Sequence[Segment], queries: Vectors, k: int) -> tuple[Ids, Vectors]:
    """The k best over all ``segments``, whose ids are distinct.

    Args:
        segments: the parts.
        queries: float32 (q, d), unit rows.
        k: at least 1.

    Returns:
        ids int64 (q, k') and scores float32 (q, k'), k' = min(k, what can be found).
    """
    queries = np.ascontiguousarray(queries, np.float32)
    found = [part.search(queries, min(k, len(part))) for part in segments if len(part)]
    if not found:
        return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    if len(found) == 1:
        return found[0]
    ids = np.concatenate([part[0] for part in found], axis=1)
    scores = np.concatenate([part[1] for part in found], axis=1)
    best = rank(ids, scores, k)
    return ids[best], scores[best]


def rank(ids: Ids, scores: Vectors, k: int) -> tuple[Ids, Ids]:
    """Where the k best in each row (q, m) are: score descending, ties by ascending id.

    Returns:
        The index (q, 1) and (q, k) that picks them, best first.
    """
    return np.arange(len(ids))[:, None], np.lexsort((ids, -scores), axis=-1)[:, :k]


def exact_scores(queries: Vectors, vectors: Vectors, rows: Ids) -> Vectors:
    """Inner products of each query with rows of its own, clipped to [-1, 1].

    Args:
        queries: float32 (q, d), contiguous.
        vectors: float32 (n, d), contiguous; may be memory-mapped.
        rows: int64 (q, m), contiguous; below 0 stands for no row.

    Returns:
        float32 (q, m), -inf where there is no row.
    """
    q, m = rows.shape
    scores = np.empty((q, m), np.float32)
    faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
        faiss.swig_ptr(scores),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        vectors.shape[1],
        q,
        m,
    )
    np.minimum(scores, 1.0, out=scores)
    np.maximum(scores, -1.0, out=scores)
    if rows.min() < 0:
        scores[rows < 0] = -np.inf
    return scores


def nearest_rows(
    queries: Vectors, vectors: Vectors, k: int, dead: Ids | None = None
) -> tuple[Ids, Vectors]:
    """The k rows of highest ``exact_scores``, ties by ascending row.

    A matrix product finds them, whose rounding depends on where a row stands; all rows that this
    rounding could have moved across the k-th place are compared again by their exact scores.

    Args:
        queries: float32 (q, d), unit rows, contiguous.
        vectors: float32 (n, d), unit rows, contiguous; may be memory-mapped.
        k: 1 … n - len(dead).
        dead: int64, rows to leave out, each once.

    Returns:
        rows int64 (q, k) and scores float32 (q, k).
    """
    n, d = vectors.shape
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    # Two sums of d products, each within d · 2⁻²⁴ of the true one for unit vectors, are compared
    # on both sides of the k-th place. The rest allows for lengths that are not quite 1.
    margin = 5 * d * 2.0**-24
    block = max(1, BLOCK_BYTES // (4 * n))
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        coarse = part @ vectors.T
        if dead is not None and len(dead):
            coarse[:, dead] = -np.inf
        reach = np.partition(coarse, n - k, axis=1)[:, n - k] - margin
        for i, query in enumerate(part, start):
            candidates = np.flatnonzero(coarse[i - start] >= reach[i - start])
            exact = exact_scores(query[None], vectors, candidates[None])[0]
            order = np.lexsort((candidates, -exact))[:k]
            rows[i], scores[i] = candidates[order], exact[order]
    return rows, scores
