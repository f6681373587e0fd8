"""``Evaluation``: how well a gallery finds the items of a label, by exact or by its own search.

The definitions of the figures are those of ``index.metrics``; here they meet items, labels and
indexes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

import index.metrics as metrics
from index.contents import Index
from index.errors import InvalidArgumentError
from index.metrics import Progress

__all__ = [
    "MAX_CONFUSION",
    "MAX_HARDEST",
    "ClassFigures",
    "Confusion",
    "Evaluation",
    "HardQuery",
    "Judged",
    "JudgedNeighbour",
    "Progress",
    "check_wanted",
    "evaluate",
]

#: Results of a block of queries that are looked at together.
BLOCK_RESULTS = 2**20

#: The most queries that are listed with their neighbours, and how many neighbours each is given.
MAX_HARDEST = 100
NEIGHBOURS = 8

#: The most pairs of labels that are listed.
MAX_CONFUSION = 1000


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What takes part in an evaluation: n labelled items and photos."""

    ids: NDArray[np.int64]  #: [n], those of items first, ascending; photos from outside: −1, −2, …
    vectors: NDArray[np.float32]  #: [n, d], unit rows
    classes: NDArray[np.int64]  #: [n], which of ``names`` is the label
    names: Sequence[str]  #: the labels, each once, ascending
    queries: NDArray[np.bool_]  #: [n]
    gallery: NDArray[np.bool_]  #: [n], what queries are looked up in; none from outside

    @classmethod
    def of(
        cls,
        ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
        labels: Sequence[str],
        *,
        queries: NDArray[np.bool_],
        gallery: NDArray[np.bool_],
    ) -> Judged:
        """From one label [n] for each."""
        names = sorted(set(labels))
        number = {name: place for place, name in enumerate(names)}
        classes = np.fromiter((number[label] for label in labels), np.int64, len(labels))
        return cls(
            ids=ids,
            vectors=vectors,
            classes=classes,
            names=names,
            queries=queries,
            gallery=gallery,
        )

    def label(self, row: int) -> str:
        """The label of row 0 … n − 1."""
        return self.names[int(self.classes[row])]


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """Means over the queries of one label that have a right answer, each in 0 … 1."""

    label: str
    queries: int
    recall: dict[int, float]
    r_precision: float
    map_at_r: float


@dataclass(frozen=True)
class JudgedNeighbour:
    """An item that a query found. ``score`` is their cosine similarity in [−1, 1]."""

    id: int
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class HardQuery:
    """A query whose right answers lie far down its results, and what lies above."""

    id: int  #: of the item; −1 − i for the i-th photo from outside
    label: str
    answers: int  #: right answers in its gallery
    first: int | None  #: rank of the first right one, from 1; None if deeper than was looked
    average_precision: float  #: at R
    neighbours: list[JudgedNeighbour]  #: up to 8, nearest first


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Queries of one label whose nearest item has another."""

    label: str  #: of the queries
    found: str  #: of what they found
    count: int  #: how many queries
    share: float  #: of all queries of ``label`` that have a right answer, above 0, up to 1
    query: int  #: the one of them that is nearest to what it found: id, or −1 − i as in HardQuery …
    nearest: JudgedNeighbour  #: … and what it found


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Retrieval metrics of a gallery and how they were taken."""

    metrics: metrics.RetrievalMetrics
    protocol: str
    unlabelled: int  #: items without a label, left out on both sides
    gallery: int  #: labelled items that the queries were looked up in
    per_class: list[ClassFigures] | None = None  #: by label; None unless asked for
    hardest: list[HardQuery] | None = None  #: hardest first; None unless asked for
    confusion: list[Confusion] | None = None  #: most frequent first; None unless asked for


def evaluate(
    judged: Judged,
    ks: Sequence[int],
    *,
    protocol: str,
    unlabelled: int,
    index: Index | None = None,
    clustering: bool = False,
    per_class: bool = False,
    hardest: int = 0,
    confusion: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge how well queries find the items of their label.

    Args:
        judged: what takes part.
        ks: the K of recall@K, each in 1 … 10,000.
        protocol: goes into the result.
        unlabelled: goes into the result.
        index: rank as it does; it holds the gallery, and maybe other items, which do not take
            part. None: rank exactly.
        clustering: also the NMI of a k-means clustering of all that takes part.
        per_class: also the figures of each label.
        hardest: also so many queries, up to 100, with their neighbours: those of the lowest average
            precision; of equals, those whose first right answer is deeper, then in their order.
        confusion: also so many pairs of labels, up to 1000, where queries of the one found the
            other first: the most frequent; of equals, the larger share of the queries' label, then
            by label.
        progress: told how many of how many queries are done; what it raises stops the work.

    Raises:
        InvalidArgumentError: K, ``hardest`` or ``confusion`` out of range, no query with a right
            answer, or ``clustering`` with an index.
    """
    check_wanted(exact=index is None, clustering=clustering, hardest=hardest, confusion=confusion)
    ranking: metrics.Ranking
    if index is None:
        # Exact ranking takes ties by row, which is by id as long as ids ascend.
        ranking = partial(metrics.nearest, judged.vectors, gallery=judged.gallery)
    else:
        ranking = partial(_by_index, index, judged)
    figures = metrics.judge(
        ranking,
        judged.classes,
        ks=ks,
        queries=judged.queries,
        gallery=judged.gallery,
        progress=progress,
    )
    nmi = metrics.clustering_nmi(judged.vectors, judged.classes) if clustering else None
    return Evaluation(
        metrics=figures.means(nmi),
        protocol=protocol,
        unlabelled=unlabelled,
        gallery=int(np.count_nonzero(judged.gallery)),
        per_class=_per_class(figures, judged) if per_class else None,
        hardest=_hardest(figures, judged, ranking, hardest) if hardest else None,
        confusion=_confusion(figures, judged, confusion) if confusion else None,
    )


def check_wanted(*, exact: bool, clustering: bool, hardest: int, confusion: int) -> None:
    """Raises InvalidArgumentError for what ``evaluate`` would refuse, before anything is read."""
    if clustering and not exact:
        raise InvalidArgumentError(
            "clustering compares vectors and not searches: ask for it with exact search."
        )
    if not 0 <= hardest <= MAX_HARDEST:
        raise InvalidArgumentError(
            f"hardest is {hardest}: expected a whole number of queries from 0 to {MAX_HARDEST}."
        )
    if not 0 <= confusion <= MAX_CONFUSION:
        raise InvalidArgumentError(
            f"confusion is {confusion}: expected a whole number of pairs from 0 to {MAX_CONFUSION}."
        )


def _per_class(figures: metrics.QueryFigures, judged: Judged) -> list[ClassFigures]:
    classes = judged.classes[figures.rows]
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    hits = figures.hits
    return [
        ClassFigures(
            label=judged.names[number],
            queries=len(rows),
            recall=dict(zip(figures.ks, hits[rows].mean(0).tolist(), strict=True)),
            r_precision=float(figures.r_precision[rows].mean()),
            map_at_r=float(figures.average_precision[rows].mean()),
        )
        for number, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=True)
    ]


def _hardest(
    figures: metrics.QueryFigures, judged: Judged, ranking: metrics.Ranking, count: int
) -> list[HardQuery]:
    unseen = np.iinfo(np.int64).max
    depth = np.where(figures.first > 0, figures.first, unseen)
    places = np.lexsort((figures.rows, -depth, figures.average_precision))[:count]

    depths = np.zeros(len(judged.ids), np.int64)
    depths[figures.rows[places]] = NEIGHBOURS
    near: dict[int, NDArray[np.int64]] = {}
    for rows, neighbours in ranking(depths):
        near |= zip(rows.tolist(), neighbours, strict=True)
    return [
        HardQuery(
            id=int(judged.ids[row]),
            label=judged.label(row),
            answers=int(figures.answers[place]),
            first=int(figures.first[place]) or None,
            average_precision=float(figures.average_precision[place]),
            neighbours=_described(judged, row, near[row]),
        )
        for place, row in zip(places, figures.rows[places].tolist(), strict=True)
    ]


def _confusion(figures: metrics.QueryFigures, judged: Judged, count: int) -> list[Confusion]:
    own, found = judged.classes[figures.rows], judged.classes[figures.nearest]
    found = np.where(figures.nearest < 0, own, found)  # an index may find nothing at all
    queries = np.bincount(own, minlength=len(judged.names))
    wrong = np.flatnonzero(own != found)
    pairs, place, counts = np.unique(
        own[wrong] * len(judged.names) + found[wrong], return_inverse=True, return_counts=True
    )
    labels, others = np.divmod(pairs, len(judged.names))
    shares = counts / queries[labels]
    scores = np.einsum(
        "qd,qd->q",
        judged.vectors[figures.rows[wrong]],
        judged.vectors[figures.nearest[wrong]],
    )
    # The nearest query of each pair comes first in its run; of equals, the first.
    order = np.lexsort((-scores, place))
    best = wrong[order[np.searchsorted(place[order], np.arange(len(pairs)))]]
    return [
        Confusion(
            label=judged.names[labels[pair]],
            found=judged.names[others[pair]],
            count=int(counts[pair]),
            share=float(shares[pair]),
            query=int(judged.ids[figures.rows[best[pair]]]),
            nearest=_described(
                judged, int(figures.rows[best[pair]]), figures.nearest[best[pair], None]
            )[0],
        )
        for pair in np.lexsort((pairs, -shares, -counts))[:count]
    ]


def _described(judged: Judged, row: int, neighbours: NDArray[np.int64]) -> list[JudgedNeighbour]:
    scores = judged.vectors[neighbours] @ judged.vectors[row]
    return [
        JudgedNeighbour(int(judged.ids[other]), judged.label(other), score)
        for other, score in zip(neighbours.tolist(), np.clip(scores, -1, 1).tolist(), strict=True)
    ]


def _by_index(
    index: Index, judged: Judged, depths: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rank neighbours as ``metrics.nearest`` does, but by ``index``; fewer where it finds fewer."""
    items = np.flatnonzero(judged.gallery)
    ids = judged.ids[items]
    subset = index.subset(ids)
    for among in (True, False):
        limited = np.minimum(depths, len(items) - among)
        for rows in _blocks(np.where(judged.gallery == among, limited, 0)):
            depth = int(limited[rows].max())
            found, _ = index.search(judged.vectors[rows], depth + among, within=subset)
            if among:
                found = _without_itself(found, judged.ids[rows])
            yield rows, items[np.searchsorted(ids, found)]


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
