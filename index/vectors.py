"""``VectorIndex``: nearest neighbours over vectors that come and go.

An index that is searched never changes. A ``VectorIndex`` is therefore immutable: a base, vectors
that came since (the delta), and tombstones for those that went. A change makes a new one that
shares nearly all with the old; readers go on with the one they hold. It never rebuilds by itself:
``needs_rebuild`` says when a new base pays, ``live`` what to build it of. Everything here can be
rebuilt from the catalog.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from index.approximate import (
    EXACT_LIMIT,
    TUNED_K,
    ApproximateSegment,
    Base,
    Kind,
    SearchParameters,
    due_kind,
)
from index.errors import InvalidArgumentError
from index.exact import FlatSegment, Ids, Segment, Vectors, search_segments
from index.recall import neighbour_scores, recall
from index.subsets import Subset

__all__ = ["Base", "SearchParameters", "Subset", "VectorIndex"]

#: Vectors that came or went since the base was built, above which it pays to build a new one …
CHANGES_LEAST = 1024

#: … or this share of the base, if that is more.
CHANGES_SHARE = 0.05


class VectorIndex:
    """Inner-product search over unit vectors. Immutable, so safe to search from any threads."""

    def __init__(
        self,
        base: Base,
        base_dead: Ids,
        allowed: NDArray[np.uint8] | None,
        delta: _Delta,
        delta_size: int,
        delta_dead: Ids,
    ) -> None:
        """Use ``from_base`` and ``with_changes``.

        Args:
            base: shared by all indexes that descend from it.
            base_dead: int64, ascending: rows of the base that no longer count.
            allowed: a bit for each row of the base that counts; None if all do.
            delta: shared with later indexes, which may append to it.
            delta_size: how many rows of it are ours.
            delta_dead: int64, ascending: those of them that no longer count.
        """
        self.base = base
        self._base_dead = base_dead
        self._allowed = allowed
        self._delta = delta
        self._delta_size = delta_size
        self._delta_dead = delta_dead
        self._delta_ids = delta.ids[:delta_size]
        self._delta_vectors = delta.vectors[:delta_size]
        self._segments: list[Segment] = [
            FlatSegment(base.ids, base.vectors, base_dead)
            if base.ann is None
            else ApproximateSegment(base, allowed, len(base.ids) - len(base_dead)),
            FlatSegment(self._delta_ids, self._delta_vectors, delta_dead),
        ]

    @classmethod
    def from_base(cls, base: Base) -> VectorIndex:
        """The items of ``base``, none of them gone and none come since."""
        none = np.empty(0, np.int64)
        delta = _Delta(none, np.empty((0, base.vectors.shape[1]), np.float32), 0)
        return cls(base, none, None, delta, 0, none)

    @property
    def kind(self) -> Kind:
        """The kind of index that serves."""
        return self.base.kind

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def with_changes(self, added_ids: Ids, added: Vectors, removed: Ids) -> VectorIndex:
        """A new index with ``added`` and without ``removed``; this one stays as it is.

        Args:
            added_ids: int64 (m,), ascending, above all ids there ever were.
            added: float32 (m, d), unit rows.
            removed: int64; ids that are not there, or only among ``added_ids``, are passed over.
        """
        base_gone = _rows_of(self.base.ids, removed)
        base_dead, allowed = self._base_dead, self._allowed
        if len(base_gone):
            base_dead = np.union1d(base_dead, base_gone)
            if self.base.ann is not None:
                allowed = _without(allowed, len(self.base.ids), base_gone)
        delta_dead = np.union1d(self._delta_dead, _rows_of(self._delta_ids, removed))
        delta = self._delta.extended(self._delta_size, added_ids, added)
        size = self._delta_size + len(added_ids)
        return VectorIndex(self.base, base_dead, allowed, delta, size, delta_dead)

    @property
    def delta_size(self) -> int:
        """How many items that came since the base are there."""
        return self._delta_size - len(self._delta_dead)

    @property
    def tombstones(self) -> int:
        """How many items of the base went."""
        return len(self._base_dead)

    @property
    def needs_rebuild(self) -> bool:
        """Whether so much changed that a new base pays, or another kind of index is due."""
        n = len(self.base.ids)
        limit = max(CHANGES_LEAST, CHANGES_SHARE * n)
        if self._delta_size > limit or len(self._base_dead) > limit:
            return True
        return due_kind(self.base.requested, len(self), self.base.planned) != self.base.planned

    def live(self) -> tuple[Ids, Vectors]:
        """Ids int64 (n,), ascending, and vectors float32 (n, d) of all items: copies if changed."""
        base_ids, base_vectors = self.base.ids, self.base.vectors
        if len(self._base_dead):
            keep = np.ones(len(base_ids), np.bool_)
            keep[self._base_dead] = False
            base_ids, base_vectors = base_ids[keep], base_vectors[keep]
        if self._delta_size == 0:
            return base_ids, base_vectors
        return (
            np.concatenate([base_ids, np.delete(self._delta_ids, self._delta_dead)]),
            np.concatenate([base_vectors, np.delete(self._delta_vectors, self._delta_dead, 0)]),
        )

    def search(
        self, queries: Vectors, k: int, *, within: Subset | None = None
    ) -> tuple[Ids, Vectors]:
        """The nearest items of each query: score descending, ties by ascending id.

        Scores are exact. Which items are found is exact while the base is "flat" and within small
        subsets; else it is as good as ``base.recall`` says.

        Args:
            queries: float32 (q, d), unit rows.
            k: at least 1.
            within: look only among these items of this very index.

        Returns:
            ids int64 (q, k') and scores float32 (q, k') in [-1, 1]; k' = min(k, len(self)), or
            min(k, len(within)).

        Raises:
            ValueError: ``within`` was made by another index.
        """
        if within is None:
            return search_segments(self._segments, queries, k)
        if within.index is not self:
            raise ValueError("the subset was made by another index: make it anew after a change.")
        return within.search(queries, k)

    def subset(self, ids: Ids) -> Subset:
        """Prepare the items ``ids``, to be searched often. Ids that are not there are passed over.

        Args:
            ids: int64, in any order.
        """
        ids = np.unique(ids)
        base_rows = np.setdiff1d(_rows_of(self.base.ids, ids), self._base_dead, assume_unique=True)
        delta_rows = np.setdiff1d(
            _rows_of(self._delta_ids, ids), self._delta_dead, assume_unique=True
        )
        delta_ids, delta = self._delta_ids[delta_rows], self._delta_vectors[delta_rows]
        n = len(self.base.ids)
        if len(base_rows) <= EXACT_LIMIT:
            gathered_ids = np.concatenate([self.base.ids[base_rows], delta_ids])
            gathered = np.concatenate([self.base.vectors[base_rows], delta])
            return Subset(
                self, [FlatSegment(gathered_ids, gathered)], gathered_ids.nbytes + gathered.nbytes
            )
        base_segment: Segment
        if self.base.ann is None:
            others = np.setdiff1d(np.arange(n), base_rows, assume_unique=True)
            base_segment, nbytes = FlatSegment(self.base.ids, self.base.vectors, others), 8 * n
        else:
            allowed = _only(n, base_rows)
            base_segment = ApproximateSegment(self.base, allowed, len(base_rows))
            nbytes = allowed.nbytes
        segments = [base_segment, FlatSegment(delta_ids, delta)]
        return Subset(self, segments, nbytes + delta_ids.nbytes + delta.nbytes)

    def measure_recall(self, sample: int = 200, k: int = TUNED_K, seed: int = 0) -> float:
        """recall@k of ``search`` against exact search, with own vectors as queries.

        Each query is left out of its own results. Items as near as the k-th count as right.

        Args:
            sample: how many queries, drawn at random.
            k: at least 1; with fewer other items, all of them.
            seed: of the draw.

        Returns:
            0 … 1; 1.0 when there is at most one item.

        Raises:
            InvalidArgumentError: ``sample`` or ``k`` below 1.
        """
        if sample < 1 or k < 1:
            raise InvalidArgumentError(f"sample is {sample} and k {k}: both must be at least 1.")
        k = min(k, len(self) - 1)
        if k < 1:
            return 1.0
        base_rows = np.delete(np.arange(len(self.base.ids)), self._base_dead)
        delta_rows = np.delete(np.arange(self._delta_size), self._delta_dead)
        chosen = np.random.default_rng(seed).choice(
            len(self), min(sample, len(self)), replace=False
        )
        chosen.sort()
        in_base = chosen[chosen < len(base_rows)]
        base_rows, delta_rows = (
            base_rows[in_base],
            delta_rows[chosen[len(in_base) :] - len(base_rows)],
        )
        own = np.concatenate([self.base.ids[base_rows], self._delta_ids[delta_rows]])
        queries = np.concatenate([self.base.vectors[base_rows], self._delta_vectors[delta_rows]])
        exact = [
            FlatSegment(self.base.ids, self.base.vectors, self._base_dead),
            FlatSegment(self._delta_ids, self._delta_vectors, self._delta_dead),
        ]
        right = neighbour_scores(exact, own, queries, k)
        found, scores = self.search(queries, k + 1)
        return recall(found, scores, own=own, right=right, k=k)


class _Delta:
    """A growing matrix that indexes share: each sees as many rows as it knows of.

    Rows that an index sees are never written again.
    """

    def __init__(self, ids: Ids, vectors: Vectors, used: int) -> None:
        """Take over arrays of any capacity, of which ``used`` rows are filled."""
        self.ids = ids
        self.vectors = vectors
        self._used = used
        self._appending = threading.Lock()

    def extended(self, size: int, ids: Ids, vectors: Vectors) -> _Delta:
        """A delta with our first ``size`` rows and the given ones next: this one if it can be."""
        end = size + len(ids)
        with self._appending:
            # An index that descends from the same one may have appended rows of its own already.
            if size == self._used and end <= len(self.ids):
                self.ids[size:end], self.vectors[size:end] = ids, vectors
                self._used = end
                return self
        larger_ids = np.empty(2 * end, np.int64)
        larger = np.empty((2 * end, self.vectors.shape[1]), np.float32)
        larger_ids[:size], larger[:size] = self.ids[:size], self.vectors[:size]
        larger_ids[size:end], larger[size:end] = ids, vectors
        return _Delta(larger_ids, larger, end)


def _rows_of(ids: Ids, wanted: Ids) -> Ids:
    """Rows of ascending ``ids`` that hold ``wanted``, in its order; missing ones are left out."""
    if len(ids) == 0:
        return np.empty(0, np.int64)
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    found: Ids = rows[ids[rows] == wanted]
    return found


def _without(allowed: NDArray[np.uint8] | None, n: int, rows: Ids) -> NDArray[np.uint8]:
    """A copy of n bits (None: all set) with those of ``rows`` cleared."""
    bits = np.full((n + 7) // 8, 0xFF, np.uint8) if allowed is None else allowed.copy()
    np.bitwise_and.at(bits, rows >> 3, ~(1 << (rows & 7)).astype(np.uint8))
    return bits


def _only(n: int, rows: Ids) -> NDArray[np.uint8]:
    """n bits, those of ``rows`` set."""
    chosen = np.zeros(n, np.bool_)
    chosen[rows] = True
    return np.packbits(chosen, bitorder="little")
