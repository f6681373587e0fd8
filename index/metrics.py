"""Retrieval metrics: recall@K, R-precision, MAP@R and NMI. Arrays in, numbers out.

The one home of their definitions. Either every item is a query and all others are its gallery
(leave-one-out), or some items are queries and some the gallery of them all, apart or not. The
gallery is ranked by Euclidean distance (for unit rows the order of cosine similarity), nearest
first, ties by index, lowest first; a query that is in the gallery is left out by its index, not by
its distance. Right answers are the other items of the query's class. A query whose gallery has none
cannot be answered: it is left out of the means and counted as skipped. It stays in the gallery of
the others.

The order is exact: that of float64 sums Σ(x − y)². Nothing here knows where embeddings come from
or where figures go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.errors import InvalidArgumentError

__all__ = [
    "MAX_K",
    "Progress",
    "QueryFigures",
    "Ranking",
    "RetrievalMetrics",
    "clustering_nmi",
    "evaluate",
    "judge",
    "nearest",
    "normalized_mutual_information",
    "score",
]

MAX_K = 10_000

#: Bytes that a block of queries may take, besides a float64 copy of the embeddings.
BLOCK_BYTES = 64 * 2**20

#: Values that pairs of vectors are gathered in at a time: they stay in a cache.
PAIR_VALUES = 2**16

#: Squared lengths that float32 holds without loss, with room for sums.
SQUARES32 = (1e-20, 1e30)

#: Larger values could overflow when squared and summed.
MAX_VALUE = 1e150


Float = TypeVar("Float", np.float32, np.float64)


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """Means over the queries, each in 0 … 1."""

    recall: dict[int, float]  #: K → share of queries with a right answer among the first K
    r_precision: float
    map_at_r: float
    nmi: float | None  #: None unless clustering was asked for
    queries: int  #: queries in the means
    skipped: int  #: queries left out, as their gallery has no item of their class


@dataclass(frozen=True, kw_only=True)
class QueryFigures:
    """How each query did that has a right answer, in the order of the queries."""

    ks: tuple[int, ...]  #: ascending
    rows: NDArray[np.int64]  #: [q], which row each query is, ascending
    answers: NDArray[np.int64]  #: [q], R: right answers in its gallery
    first: NDArray[
        np.int64
    ]  #: [q], rank of the first right one, from 1; 0 if beyond what was ranked
    r_precision: NDArray[np.float64]  #: [q]
    average_precision: NDArray[np.float64]  #: [q], at R
    nearest: NDArray[np.int64]  #: [q], which row was found first
    skipped: int  #: queries left out, as their gallery has no item of their class

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether a right answer is among the first K, bool [q, len(ks)]."""
        return (self.first[:, None] > 0) & (self.first[:, None] <= np.asarray(self.ks))

    def means(self, nmi: float | None = None) -> RetrievalMetrics:
        """The figures over all queries, of which there is at least one."""
        return RetrievalMetrics(
            recall=dict(zip(self.ks, self.hits.mean(0).tolist(), strict=True)),
            r_precision=float(self.r_precision.mean()),
            map_at_r=float(self.average_precision.mean()),
            nmi=nmi,
            queries=len(self),
            skipped=self.skipped,
        )


#: Ranks the neighbours of rows: depths [n] → blocks of rows and neighbours, as ``nearest`` does.
Ranking = Callable[[NDArray[np.int64]], Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]]

#: Told how many of how many queries are done; what it raises stops the work.
Progress = Callable[[int, int], None]


def evaluate(
    embeddings: NDArray[Any],
    labels: ArrayLike,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    clustering: bool = False,
    seed: int = 0,
    queries: NDArray[np.bool_] | None = None,
    gallery: NDArray[np.bool_] | None = None,
) -> RetrievalMetrics:
    """Judge embeddings by how well each of them finds the others of its class.

    Args:
        embeddings: numbers [n, d], finite, n >= 2.
        labels: integers or strings [n].
        ks: the K of recall@K, each in 1 … ``MAX_K``; beyond the gallery's size, all of it counts.
        clustering: also cluster the embeddings by k-means, into as many clusters as there are
            classes, and report the NMI of clusters and classes; all n items take part.
        seed: of the k-means.
        queries: bool [n], the items that are queries. None: every item is.
        gallery: bool [n], the items that all queries are looked up in; a query that is among them
            is left out of its own results. None: the items that are no queries or, if all are, all.

    Raises:
        InvalidArgumentError: other shapes, dtypes or ranges; NaN or infinity; no query or no
            gallery; no query with a right answer.
    """
    embeddings = _checked_embeddings(embeddings)
    queries, gallery = _checked_sides(queries, gallery, len(embeddings))
    ranking = partial(nearest, embeddings, gallery=gallery)
    figures = judge(ranking, labels, ks=ks, queries=queries, gallery=gallery)
    return figures.means(clustering_nmi(embeddings, labels, seed=seed) if clustering else None)


def judge(
    ranking: Ranking,
    labels: ArrayLike,
    *,
    ks: Sequence[int],
    queries: NDArray[np.bool_],
    gallery: NDArray[np.bool_],
    progress: Progress | None = None,
) -> QueryFigures:
    """Judge rankings, whoever made them, query by query.

    Args:
        ranking: gives for depths [n] what ``nearest`` gives, among the rows of ``gallery``.
        labels: integers or strings [n].
        ks: the K of recall@K, each in 1 … ``MAX_K``.
        queries: bool [n], the items that are queries.
        gallery: bool [n], the items that all queries are looked up in.
        progress: told after each block of queries.

    Raises:
        InvalidArgumentError: wrong labels or K; no query with a right answer.
    """
    classes = _checked_labels(labels, len(queries))
    ks = _checked_ks(ks)
    counts = _count_answers(classes, queries, gallery)
    answered, asked = int(np.count_nonzero(counts)), int(np.count_nonzero(queries))
    depths = np.where(counts > 0, np.maximum(counts, max(ks)), 0)

    scores, done = [], 0
    for rows, neighbours in ranking(depths):
        relevant = classes[neighbours] == classes[rows, None]
        scores.append((rows, neighbours[:, 0].copy(), *score(relevant, counts[rows])))
        done += len(rows)
        if progress is not None:
            progress(done, answered)
    rows, found, first, r_precision, average_precision = (
        np.concatenate(parts) for parts in zip(*scores, strict=True)
    )
    order = np.argsort(rows)
    return QueryFigures(
        ks=tuple(ks),
        rows=rows[order],
        answers=counts[rows[order]],
        first=first[order],
        r_precision=r_precision[order],
        average_precision=average_precision[order],
        nearest=found[order],
        skipped=asked - answered,
    )


def clustering_nmi(embeddings: NDArray[Any], labels: ArrayLike, *, seed: int = 0) -> float:
    """NMI of the classes and a k-means clustering into as many clusters as there are classes.

    Args:
        embeddings: numbers [n, d], finite, n >= 2.
        labels: integers or strings [n].
        seed: of the k-means.

    Raises:
        InvalidArgumentError: other shapes or dtypes; NaN or infinity.
    """
    embeddings = _checked_embeddings(embeddings)
    classes = _checked_labels(labels, len(embeddings))
    return normalized_mutual_information(
        classes, _cluster(embeddings, int(classes.max()) + 1, seed)
    )


def score(
    relevant: NDArray[np.bool_], counts: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Score rankings, given as right and wrong answers.

    For a query with R right answers in the whole gallery, and P(i) the share of right ones among
    its first i: R-precision is P(R), and the average precision at R is 1/R · Σ P(i) over those
    ranks i = 1 … R that hold a right answer. Its mean over the queries is MAP@R (Musgrave, Belongie
    and Lim, "A Metric Learning Reality Check", ECCV 2020).

    Args:
        relevant: [q, m], whether the answer is right, nearest first; m reaches up to the largest
            of ``counts`` and of the K that matter, or to the end of the gallery.
        counts: [q], R of each query, >= 1.

    Returns:
        For each query: the rank of its first right answer (int64 [q], from 1; 0 if there is none
        among the m), R-precision, and average precision at R (float64 [q] both).
    """
    first = np.where(relevant.any(1), relevant.argmax(1) + 1, 0)
    relevant = relevant[:, : counts.max()]
    ranks = np.arange(1, relevant.shape[1] + 1)
    right = relevant & (ranks <= counts[:, None])
    precision = right.cumsum(1) / ranks
    average_precision = np.einsum("qm,qm->q", precision, right) / counts
    return first, right.sum(1) / counts, average_precision


def nearest(
    embeddings: NDArray[Any],
    depths: NDArray[np.integer],
    *,
    gallery: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rank the neighbours of rows among all other rows, or those of a gallery, exactly.

    Keys of the gallery come from one matrix product per block of queries: float32, or float64 where
    the data are too close together for that. Rounding may swap those that are closer than a
    tolerance (see ``_Gallery.nearest``); only they are compared again, by Σ(x − y)². Equal vectors
    are computed once, so any number of them is no slower.

    Args:
        embeddings: numbers [n, d], finite, n >= 2.
        depths: [n], how many neighbours each row wants; rows with 0 ask for none.
        gallery: bool [n], the rows that are neighbours to all others. None: all.

    Yields:
        A block of rows, int64 [q], and their neighbours, int64 [q, m], nearest first, ties by
        index, a row never its own; m is the largest depth in the block, or all there are if that is
        less. Each row with a depth above 0 is in one block: first those in the gallery, then those
        that are not; of either, deepest rows come first, so that depths in a block are alike.
    """
    n, d = embeddings.shape
    inside = np.ones(n, np.bool_) if gallery is None else gallery
    searched = _Gallery.of(embeddings, np.flatnonzero(inside))
    u = len(searched.vectors)
    scratch = _Scratch()
    for among in (True, False):
        asked = np.flatnonzero((depths > 0) & (inside == among))
        order = asked[np.argsort(-depths[asked], kind="stable")]
        most = len(searched.items) - among
        start = 0
        while start < len(order):
            m = min(int(depths[order[start]]), most)
            # Keys and a copy to partition; neighbours, their sorting and scoring; queries
            row_bytes = 17 * u + 96 * m + 24 * d
            rows = order[start : start + max(1, BLOCK_BYTES // row_bytes)]
            yield rows, searched.nearest(rows, m, scratch)
            start += len(rows)


class _Scratch:
    """Memory for the keys of a block and a copy of them, used again by the next block.

    Handed back and taken anew each time, its pages cost as much as the arithmetic.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def matrices(self, q: int, u: int, dtype: type[Float]) -> tuple[NDArray[Float], NDArray[Float]]:
        """Two [q, u] whose content is anything."""
        size = 2 * q * u * np.dtype(dtype).itemsize
        if len(self._memory) < size:
            self._memory = np.empty(0, np.uint8)  # first, or for a moment there would be both
            self._memory = np.empty(size, np.uint8)
        first, second = self._memory[:size].view(dtype).reshape(2, q, u)
        return first, second


@dataclass(frozen=True)
class _Gallery:
    """Items made ready for ranking: u distinct vectors, and the g items that have them."""

    embeddings: NDArray[Any]  #: [n, d], as given; queries are rows of it, in the gallery or not
    items: NDArray[np.int64]  #: [g], rows of the gallery by distinct vector, then by index …
    starts: NDArray[np.int64]  #: [u], … and where those of each vector start
    sizes: NDArray[np.int64]  #: [u], and how many there are
    centre: NDArray[np.float64]  #: [d], mean of the distinct vectors
    vectors: NDArray[np.float64]  #: [u, d], distinct vectors, centred: distances remain, and
    #: rounding is relative to the spread, not to the distance from the origin
    squares: NDArray[np.float64]  #: [u], squared lengths of ``vectors``
    vectors32: NDArray[np.float32] | None  #: ``vectors``; None where their squares would not fit

    @classmethod
    def of(cls, embeddings: NDArray[Any], items: NDArray[np.int64]) -> _Gallery:
        """Prepare the rows ``items`` [g], in ascending order."""
        d = embeddings.shape[1]
        as_bytes = np.dtype((np.void, embeddings.itemsize * d))
        everything = len(items) == len(embeddings)
        rows = np.ascontiguousarray(embeddings if everything else embeddings[items])
        _, first, owner, sizes = np.unique(
            rows.view(as_bytes).ravel(), return_index=True, return_inverse=True, return_counts=True
        )
        vectors = rows[first].astype(np.float64)
        centre = vectors.mean(0)
        vectors -= centre
        squares = np.einsum("ud,ud->u", vectors, vectors)
        fit = SQUARES32[0] < squares.max() < SQUARES32[1]
        return cls(
            embeddings=embeddings,
            items=items[np.argsort(owner, kind="stable")],
            starts=np.cumsum(sizes) - sizes,
            sizes=sizes,
            centre=centre,
            vectors=vectors,
            squares=squares,
            vectors32=vectors.astype(np.float32) if fit else None,
        )

    def nearest(self, rows: NDArray[np.int64], m: int, scratch: _Scratch) -> NDArray[np.int64]:
        """Rank the m nearest items of each query but itself, int64 [q, m]."""
        queries = self.embeddings[rows].astype(np.float64)
        queries -= self.centre
        if self.vectors32 is not None:
            found = self._candidates(queries, self.vectors32, m, scratch)
            if not found.crowded:
                return self._ranked(rows, found, m)
        return self._ranked(rows, self._candidates(queries, self.vectors, m, scratch), m)

    def _candidates(
        self,
        queries: NDArray[np.float64],
        vectors: NDArray[Float],
        m: int,
        scratch: _Scratch,
    ) -> _Candidates:
        """Find those of ``vectors`` that can be among the m nearest but the query, and more.

        Args:
            queries: [q, d], centred.
            vectors: [u, d], ours in the precision to compute in.
        """
        d = queries.shape[1]
        dtype = vectors.dtype.type
        # Both a key (|y|² − 2x·y from centred vectors, rounded) and a sum Σ(x − y)² are within
        # (d + 8) · ε/2 · (|x| + |y|)² of their true values; two of each make a comparison.
        lengths = np.sqrt(np.einsum("qd,qd->q", queries, queries))
        longest = np.sqrt(self.squares.max())
        tolerance = 2 * (d + 8) * float(np.finfo(dtype).eps) * (lengths + longest) ** 2
        keys, parted = scratch.matrices(len(queries), len(vectors), dtype)
        np.matmul((-2 * queries).astype(dtype), vectors.T, out=keys)
        keys += self.squares.astype(dtype)
        # m + 1 distinct vectors have at least m items besides the query.
        last = min(m, len(vectors) - 1)
        np.copyto(parted, keys)
        parted.partition(last, axis=1)
        reach = np.nextafter((parted[:, last] + tolerance).astype(dtype), dtype(np.inf))
        return _Candidates.of(keys, keys <= reach[:, None], tolerance, wanted=last + 1)

    def _ranked(self, rows: NDArray[np.int64], found: _Candidates, m: int) -> NDArray[np.int64]:
        """Order the candidates' items by exact distance to their query, then by index."""
        counts, vectors = found.counts, found.vectors
        copied = self.sizes[vectors] > 1
        copied &= found.there
        slow = copied.any(1)
        unsure = found.unsure
        unsure[slow] = False

        # Runs of keys too close to be told apart: within each, exact distances decide.
        q, column = np.nonzero(unsure)
        items = self.items[self.starts[vectors]]
        close = vectors[q, column]
        order = np.lexsort(
            (items[q, column], self._distances(rows[q], close), found.run[q, column], q)
        )
        items[q, column] = items[q, column][order]

        neighbours = np.empty((len(rows), m), np.int64)
        fast = np.flatnonzero(~slow)
        if len(fast):
            others = found.there[fast]
            others &= items[fast] != rows[fast, None]
            # The first m others of each; sorted by row, they are m a row.
            others &= others.cumsum(1) <= m
            neighbours[fast] = items[fast][others].reshape(len(fast), m)
        for i in np.flatnonzero(slow):
            valid = slice(counts[i])
            neighbours[i] = self._rank(rows[i], vectors[i, valid], found.run[i, valid], m)
        return neighbours

    def _rank(
        self, row: np.int64, vectors: NDArray[np.int64], run: NDArray[np.int64], m: int
    ) -> NDArray[np.int64]:
        """The same for one query, where several items may have one vector."""
        unsure = np.bincount(run)[run] > 1
        distances = np.zeros(len(run))
        close = vectors[unsure]
        distances[unsure] = self._distances(np.full(len(close), row), close)

        # From vectors to items: m + 1 of each suffice, as they tie.
        copies = np.minimum(self.sizes[vectors], m + 1)
        vector = np.repeat(np.arange(len(vectors)), copies)
        copy = np.arange(len(vector)) - np.repeat(np.cumsum(copies) - copies, copies)
        items = self.items[self.starts[vectors][vector] + copy]
        items = items[np.lexsort((items, distances[vector], run[vector]))]
        others: NDArray[np.int64] = items[items != row]
        return others[:m]

    def _distances(
        self, rows: NDArray[np.int64], vectors: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Sum up Σ(x − y)² of pairs of an item [p] and a distinct vector [p], float64 [p]."""
        items = self.items[self.starts[vectors]]
        distances = np.empty(len(rows))
        step = max(1, PAIR_VALUES // self.embeddings.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            x = self.embeddings[rows[part]].astype(np.float64)
            x -= self.embeddings[items[part]]
            distances[part] = np.square(x, out=x).sum(1)
        return distances


@dataclass(frozen=True)
class _Candidates:
    """Vectors that can be among the nearest of each query, by key; q queries, padded to c."""

    counts: NDArray[np.int64]  #: [q], how many there are; what follows them in a row is padding
    vectors: NDArray[np.int64]  #: [q, c]
    run: NDArray[np.int64]  #: [q, c], ascending: equal where keys are too close to be told apart
    unsure: NDArray[np.bool_]  #: [q, c], whether another one is in the same run
    crowded: bool  #: whether so many are close that a higher precision is the cheaper way

    @classmethod
    def of(
        cls,
        keys: NDArray[Any],
        chosen: NDArray[np.bool_],
        tolerance: NDArray[np.float64],
        *,
        wanted: int,
    ) -> _Candidates:
        """Sort the ``chosen`` of ``keys`` [q, u], of which ``wanted`` are needed a query."""
        q, u = keys.shape
        counts = np.count_nonzero(chosen, axis=1)
        flat = np.flatnonzero(chosen)
        row = np.repeat(np.arange(q), counts)
        column = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        padded = np.full((q, counts.max()), np.inf, keys.dtype)
        padded[row, column] = keys.ravel()[flat]
        vectors = np.zeros(padded.shape, np.int64)
        vectors[row, column] = flat - row * u
        order = np.argsort(padded, axis=1)
        padded = np.take_along_axis(padded, order, 1).astype(np.float64)
        vectors = np.take_along_axis(vectors, order, 1)
        apart = np.empty(padded.shape, np.bool_)
        apart[:, 0] = True
        with np.errstate(invalid="ignore"):  # between paddings, infinity less itself
            apart[:, 1:] = ~(np.diff(padded) <= tolerance[:, None])
        unsure = ~apart
        unsure[:, :-1] |= unsure[:, 1:]
        return cls(
            counts=counts,
            vectors=vectors,
            run=np.cumsum(apart, axis=1),
            unsure=unsure,
            crowded=2 * q * wanted < len(flat) or q * wanted < 2 * np.count_nonzero(unsure),
        )

    @property
    def there(self) -> NDArray[np.bool_]:
        """What is no padding, bool [q, c]."""
        return np.arange(self.vectors.shape[1]) < self.counts[:, None]


def normalized_mutual_information(a: ArrayLike, b: ArrayLike) -> float:
    """Compare two partitions: mutual information over the arithmetic mean of the entropies.

    Args:
        a: labels [n], n >= 1.
        b: labels [n]; their values need not correspond to those of ``a``.

    Returns:
        0 for independent partitions … 1 for equal ones (also if both have a single part).
    """
    _, a = np.unique(a, return_inverse=True)
    _, b = np.unique(b, return_inverse=True)
    pairs, joint_counts = np.unique(a * (b.max() + 1) + b, return_counts=True)
    p_a, p_b, joint = np.bincount(a) / a.size, np.bincount(b) / b.size, joint_counts / a.size
    independent = p_a[pairs // (b.max() + 1)] * p_b[pairs % (b.max() + 1)]
    information = (joint * np.log(joint / independent)).sum()
    entropy = -((p_a * np.log(p_a)).sum() + (p_b * np.log(p_b)).sum()) / 2
    return float(np.clip(information / entropy, 0, 1)) if entropy > 0 else 1.0


def _cluster(embeddings: NDArray[Any], clusters: int, seed: int) -> NDArray[np.int64]:
    """Assign each row to one of ``clusters`` by k-means; the same way for the same seed."""
    n, d = embeddings.shape
    points = (embeddings - embeddings.mean(0, dtype=np.float64)).astype(np.float32)
    # All points take part, however many or few there are to a cluster.
    kmeans = faiss.Kmeans(
        d, clusters, seed=seed, min_points_per_centroid=1, max_points_per_centroid=n
    )
    kmeans.train(points)
    _, assignment = kmeans.index.search(points, 1)
    return np.asarray(assignment[:, 0], np.int64)


def _checked_embeddings(embeddings: NDArray[Any]) -> NDArray[Any]:
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu" or embeddings.shape[1] == 0:
        raise InvalidArgumentError(
            f"embeddings are {embeddings.dtype} {list(embeddings.shape)}: expected numbers [n, d], "
            "one row per item."
        )
    if len(embeddings) < 2:
        raise InvalidArgumentError(
            f"{len(embeddings)} items cannot be searched for one another: give at least 2."
        )
    # Also false for NaN
    if not (float(embeddings.min()) > -MAX_VALUE and float(embeddings.max()) < MAX_VALUE):
        finite = (np.abs(embeddings) < MAX_VALUE).all(1)
        raise InvalidArgumentError(
            f"{len(finite) - finite.sum()} of {len(finite)} embeddings hold NaN or infinity, or "
            f"values beyond ±{MAX_VALUE:g}: leave them out, or mend the model that made them."
        )
    return embeddings


def _checked_labels(labels: ArrayLike, n: int) -> NDArray[np.int64]:
    """Check labels and number their classes from 0."""
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise InvalidArgumentError(
            f"labels have shape {list(labels.shape)}: expected [{n}], one per embedding."
        )
    if labels.dtype.kind not in "iuUS" and not all(isinstance(label, str) for label in labels):
        raise InvalidArgumentError(f"labels are {labels.dtype}: expected integers or strings.")
    return np.unique(labels, return_inverse=True)[1]


def _checked_sides(
    queries: NDArray[np.bool_] | None, gallery: NDArray[np.bool_] | None, n: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Check which items are queries and which the gallery; see ``evaluate`` for None."""
    queries_given = queries is not None
    queries = np.ones(n, np.bool_) if queries is None else _checked_mask("queries", queries, n)
    if gallery is not None:
        gallery = _checked_mask("gallery", gallery, n)
    else:
        gallery = ~queries if queries_given else queries
    if not queries.any() or not gallery.any():
        raise InvalidArgumentError(
            f"{np.count_nonzero(queries)} of {n} items are queries and "
            f"{np.count_nonzero(gallery)} the gallery: there must be some of both. Leave queries "
            "away to look up each item among all others."
        )
    return queries, gallery


def _checked_mask(name: str, mask: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != (n,):
        raise InvalidArgumentError(
            f"{name} are {mask.dtype} {list(mask.shape)}: expected bool [{n}], true for the items "
            f"that are {name}."
        )
    return mask


def _count_answers(
    classes: NDArray[np.int64], queries: NDArray[np.bool_], gallery: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """How many right answers each item has, int64 [n]; 0 for items that are no queries.

    Raises:
        InvalidArgumentError: no query has any.
    """
    in_gallery = np.bincount(classes[gallery], minlength=int(classes.max()) + 1)
    counts = np.where(queries, in_gallery[classes] - gallery, 0)
    if counts.any():
        return counts
    if queries.all() and gallery.all():
        raise InvalidArgumentError(
            f"each of the {len(classes)} items is alone in its class, so no query has a right "
            "answer. Give at least two items the same label."
        )
    raise InvalidArgumentError(
        f"none of the {np.count_nonzero(queries)} queries has another item of its class in the "
        f"gallery of {np.count_nonzero(gallery)}, so no query has a right answer. Check that the "
        "labels of both are written alike."
    )


def _checked_ks(ks: Sequence[int]) -> list[int]:
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
            raise InvalidArgumentError(
                f"K is {k!r}: recall@K takes integers from 1 to {MAX_K:,}, such as 1, 2, 4, 8."
            )
    if len(ks) == 0:
        raise InvalidArgumentError("no K is given: recall@K takes at least one, such as 1.")
    return sorted({int(k) for k in ks})
