"""FAISS: exact nearest neighbours over vectors that may change.

An index that is searched never changes (adding under a search crashes FAISS). A ``VectorIndex`` is
therefore immutable: a FAISS base, a small array of vectors that came since, and rows of the base
that went. A change makes a new one that shares the base; readers go on with the one they hold.
Everything here can be rebuilt from the catalog.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorIndex"]

#: Vectors that came or went since the base was built, above which it pays to build a new one.
DELTA_LIMIT = 1024

#: Neighbours fetched beyond k: ties at the boundary are then decided by id, not by chance.
SLACK = 16

#: FAISS's float32 sums differ by up to this from ours for unit vectors.
ROUNDING = 2e-6

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


class VectorIndex:
    """Exact inner-product search. Immutable, so safe to search from any number of threads."""

    def __init__(
        self, ids: Ids, base: faiss.IndexFlatIP, gone: Ids, delta_ids: Ids, delta: Vectors
    ) -> None:
        """Use ``build`` and ``with_changes``.

        Args:
            ids: int64 (n,), ascending: the item of each base row.
            base: the vectors, row by row.
            gone: int64, ascending: rows of the base that no longer count.
            delta_ids: int64 (m,), ascending, all above ``ids``.
            delta: float32 (m, d).
        """
        self._ids = ids
        self._base = base
        self._gone = gone
        self._delta_ids = delta_ids
        self._delta = delta
        # A view of FAISS's own copy of the vectors; alive as long as the base is.
        self._vectors: Vectors = (
            faiss.rev_swig_ptr(base.get_xb(), base.ntotal * base.d).reshape(-1, base.d)
            if base.ntotal
            else np.empty((0, base.d), np.float32)
        )
        self._parameters: faiss.SearchParameters | None = None
        if len(gone):
            # The selectors hold C pointers into each other: keep all three.
            self._batch = faiss.IDSelectorBatch(gone)
            self._selector = faiss.IDSelectorNot(self._batch)
            self._parameters = faiss.SearchParameters(sel=self._selector)  # type: ignore[call-arg]

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> VectorIndex:
        """Index ``vectors`` float32 (n, d) of items ``ids`` int64 (n,), ascending."""
        base = faiss.IndexFlatIP(vectors.shape[1])
        base.add(np.ascontiguousarray(vectors, np.float32))
        none = np.empty(0, np.int64)
        return cls(ids, base, none, none, np.empty((0, base.d), np.float32))

    def __len__(self) -> int:
        return len(self._ids) - len(self._gone) + len(self._delta_ids)

    def with_changes(self, added_ids: Ids, added: Vectors, removed: Ids) -> VectorIndex:
        """A new index with ``added`` (ids ascending, above all before) and without ``removed``.

        Ids in ``removed`` that are not there are passed over.
        """
        gone = np.union1d(self._gone, np.flatnonzero(np.isin(self._ids, removed)))
        keep = ~np.isin(self._delta_ids, removed)
        delta_ids = np.concatenate([self._delta_ids[keep], added_ids])
        delta = np.concatenate([self._delta[keep], added])
        if len(gone) + len(delta_ids) <= max(DELTA_LIMIT, len(self._ids) // 10):
            return VectorIndex(self._ids, self._base, gone, delta_ids, delta)
        left = np.delete(np.arange(len(self._ids)), gone)
        return VectorIndex.build(
            np.concatenate([self._ids[left], delta_ids]),
            np.concatenate([self._vectors[left], delta]),
        )

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """The k nearest items of each query, by descending inner product, ties by ascending id.

        Args:
            queries: float32 (q, d), unit rows.
            k: at least 1.

        Returns:
            ids int64 (q, k') and scores float32 (q, k'), k' = min(k, len(self)).
        """
        k = min(k, len(self))
        if k == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        left = len(self._ids) - len(self._gone)
        fetch = min(k + SLACK, left)
        if fetch:
            # pytorch-metric-learning, where it is imported, has FAISS replace `search` by one that
            # takes no parameters, and keep the original under this name.
            search = getattr(self._base, "search_numpy", self._base.search)
            coarse, rows = search(
                np.ascontiguousarray(queries, np.float32), fetch, params=self._parameters
            )
        else:
            coarse = np.empty((len(queries), 0), np.float32)
            rows = np.empty((len(queries), 0), np.int64)
        ids = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        for i, (query, row, score) in enumerate(zip(queries, rows, coarse, strict=True)):
            crowded = 0 < k <= fetch < left and score[k - 1] - score[-1] <= ROUNDING
            if crowded:  # more near-ties at the k-th place than were fetched: look at all of them
                everything = self._vectors @ query
                everything[self._gone] = -np.inf
                row = np.flatnonzero(everything >= score[k - 1] - ROUNDING)
            ids[i], scores[i] = self._rank(query, row, k)
        return ids, scores

    def _rank(self, query: Vectors, rows: Ids, k: int) -> tuple[Ids, Vectors]:
        """The k best of these base rows and the delta, with scores summed the same way for all."""
        vectors = np.concatenate([self._vectors[rows], self._delta])
        ids = np.concatenate([self._ids[rows], self._delta_ids])
        # Unlike a matrix product, this gives equal vectors equal scores to the last bit.
        scores = (vectors * query).sum(axis=1, dtype=np.float32)
        order = np.lexsort((ids, -scores))[:k]
        return ids[order], np.clip(scores[order], -1.0, 1.0)
