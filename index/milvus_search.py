"""``MilvusLive`` and ``MilvusIndex``: search in Milvus, as ``index.live`` and ``index.vectors`` do.

Milvus gives the nearest rows; here their ties are put in order, and what it does not give (more
than 16,384 results, some items by their ids) is found by comparing all vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from index.approximate import TUNED_K, Kind, RequestedKind, SearchParameters
from index.errors import GalleryError
from index.exact import FlatSegment, Ids, Vectors, rank
from index.filters import Filter
from index.live import IndexInfo
from index.milvus_catalog import MilvusCatalog
from index.milvus_client import MAX_WINDOW
from index.milvus_place import Place
from index.milvus_rebuild import rebuild
from index.recall import recall
from index.results import NO_ID
from index.tuning import Progress

__all__ = ["MilvusIndex", "MilvusLive", "MilvusState", "MilvusSubset"]

#: Results fetched beyond those that are asked for, to see whether a tie crosses the last place.
SLACK = 4

#: Scores nearer than this may be of equal vectors: two sums of products, rounded differently.
TIE = 4e-7

#: Results of one call.
CALL_RESULTS = 2**18

#: The note that keeps how hard searches try, and what recall that gave.
SEARCH_NOTE = "meta/search"

DEFAULT_EF = 128
DEFAULT_NPROBE = 32

#: What is tried, in turn, for a wanted recall.
EFFORTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SAMPLE = 200


class _Found(NamedTuple):
    """The results of one query, best first."""

    ids: Ids
    scores: Vectors
    crossing: bool  #: whether a tie may go on beyond the last of them


@dataclass(frozen=True)
class MilvusSubset:
    """The items that a condition matches, or some items by their ids."""

    index: MilvusIndex
    condition: str = ""
    ids: Ids | None = None

    def __len__(self) -> int:
        return self.index.count(self.condition) if self.ids is None else len(self.ids)


class MilvusIndex:
    """What a gallery on Milvus is searched by. Safe to use from any threads."""

    def __init__(self, place: Place, catalog: MilvusCatalog, parameters: SearchParameters) -> None:
        """Search the collection that serves at ``place``."""
        self._place = place
        self._catalog = catalog
        self.parameters = parameters

    @property
    def kind(self) -> Kind:
        """The kind of index. Milvus compares all vectors of segments that are small or new."""
        requested = self._place.described.index_kind
        return "hnsw" if requested == "auto" else requested

    def __len__(self) -> int:
        return self.count()

    def count(self, condition: str = "") -> int:
        """How many items there are, or match."""
        return self._place.connection.count(self._place.now(), condition)

    def live(self) -> tuple[Ids, Vectors]:
        """As ``VectorIndex.live``."""
        parts = [(ids, vectors) for ids, vectors, _ in self._catalog.all_vectors()]
        if not parts:
            return np.empty(0, np.int64), np.empty((0, self._catalog.dim), np.float32)
        return np.concatenate([ids for ids, _ in parts]), np.concatenate(
            [part for _, part in parts]
        )

    def subset(self, ids: Ids) -> MilvusSubset:
        """The items ``ids``, as ``VectorIndex.subset``."""
        return MilvusSubset(self, ids=np.unique(ids))

    def search(
        self, queries: Vectors, k: int, *, within: MilvusSubset | None = None
    ) -> tuple[Ids, Vectors]:
        """As ``VectorIndex.search``; rows with fewer results than others end in id −1."""
        if within is not None and within.ids is not None:
            if len(within.ids) < self.count():
                return self._by_comparing(queries, k, "", within.ids)
            within = None
        k = int(k)  # pymilvus refuses NumPy's
        condition = "" if within is None else within.condition
        if k + SLACK > MAX_WINDOW:
            return self._by_comparing(queries, k, condition)
        rows: list[tuple[Ids, Vectors]] = []
        size = max(1, CALL_RESULTS // (k + SLACK))
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            for query, found in zip(part, self._ask(part, k + SLACK, condition), strict=True):
                rows.append(self._whole(query, k, condition, found))
        if len(rows) == 1:
            [(ids, scores)] = rows
            return ids[None], scores[None]
        width = max((len(ids) for ids, _ in rows), default=0)
        all_ids = np.full((len(rows), width), NO_ID, np.int64)
        all_scores = np.full((len(rows), width), -np.inf, np.float32)
        for place, (ids, scores) in enumerate(rows):
            all_ids[place, : len(ids)], all_scores[place, : len(ids)] = ids, scores
        return all_ids, all_scores

    def measure_recall(self) -> float:
        """recall@10 of searches as they are now, on a sample of the gallery's own vectors."""
        own, queries, right = self._sample()
        return 1.0 if right is None else self._recall(own, queries, right)

    def tuned(self, target_recall: float, progress: Progress | None) -> tuple[MilvusIndex, float]:
        """An index that tries just as hard as this recall needs, and what it reaches."""
        own, queries, right = self._sample()
        if right is None or self.kind == "flat":
            return self, 1.0
        tried, reached = self, 0.0
        for number, effort in enumerate(EFFORTS):
            if progress is not None:
                progress("tune", number / len(EFFORTS))
            tried = MilvusIndex(
                self._place,
                self._catalog,
                replace(self.parameters, ef_search=effort)
                if self.kind == "hnsw"
                else replace(self.parameters, nprobe=min(effort, 1024)),
            )
            reached = tried._recall(own, queries, right)
            if reached >= target_recall:
                break
        return tried, reached

    # Inside

    def _ask(self, queries: Vectors, limit: int, condition: str) -> list[_Found]:
        parameters: dict[str, int] = {}
        if self.kind == "hnsw":
            parameters = {"ef": max(self.parameters.ef_search or DEFAULT_EF, limit)}
        elif self.kind == "ivf":
            parameters = {"nprobe": self.parameters.nprobe or DEFAULT_NPROBE}
        answers = self._place.connection.search(
            self._place.now(),
            list(np.asarray(queries, np.float32)),
            limit,
            condition=condition,
            parameters=parameters,
        )
        return [_in_order(hits, limit) for hits in answers]

    def _whole(self, query: Vectors, k: int, condition: str, found: _Found) -> tuple[Ids, Vectors]:
        """The k best, where a tie that goes beyond what was fetched is fetched, too.

        A graph may give fewer than there are, if a filter lets few through: then all are compared.
        """
        if len(found.ids) < k and len(found.ids) < min(k, self.count(condition)):
            ids, scores = self._by_comparing(query[None], k, condition)
            return ids[0], scores[0]
        limit = k + SLACK
        while found.crossing and len(found.ids) and _tied(found.scores[k - 1 :]):
            limit *= 4
            if limit > MAX_WINDOW:
                ids, scores = self._by_comparing(query[None], k, condition)
                return ids[0], scores[0]
            [found] = self._ask(query[None], limit, condition)
        return found.ids[:k], found.scores[:k]

    def _by_comparing(
        self, queries: Vectors, k: int, condition: str, only: Ids | None = None
    ) -> tuple[Ids, Vectors]:
        """The k best of all vectors that match, some of which are in memory at a time."""
        best_ids = np.empty((len(queries), 0), np.int64)
        best = np.empty((len(queries), 0), np.float32)
        queries = np.ascontiguousarray(queries, np.float32)
        for ids, vectors, _ in self._catalog.all_vectors(condition):
            if only is not None:
                among = np.isin(ids, only)
                ids, vectors = ids[among], vectors[among]
            if not len(ids):
                continue
            segment = FlatSegment(ids, np.ascontiguousarray(vectors))
            found, scores = segment.search(queries, min(k, len(segment)))
            best_ids = np.concatenate([best_ids, found], axis=1)
            best = np.concatenate([best, scores], axis=1)
            order = rank(best_ids, best, k)
            best_ids, best = best_ids[order], best[order]
        return best_ids, best

    def _sample(self) -> tuple[Ids, Vectors, Vectors | None]:
        """Some items, and the exact score of the 10th nearest other; None with too few items."""
        ids, vectors = self.live()
        if len(ids) <= TUNED_K:
            return ids, vectors, None
        rows = np.random.default_rng(0).choice(len(ids), min(SAMPLE, len(ids)), replace=False)
        rows.sort()
        own, queries = ids[rows], np.ascontiguousarray(vectors[rows])
        segment = FlatSegment(ids, np.ascontiguousarray(vectors))
        found, scores = segment.search(queries, min(TUNED_K + 1, len(segment)))
        itself = (found == own[:, None]).any(1)
        return own, queries, np.where(itself, scores[:, -1], scores[:, -2])

    def _recall(self, own: Ids, queries: Vectors, right: Vectors) -> float:
        found, scores = self.search(queries, TUNED_K + 1)
        # Both were computed by other programs: what is as near but for rounding is as near.
        return recall(found, scores, own=own, right=right - TIE, k=TUNED_K)


@dataclass(frozen=True)
class MilvusState:
    """What one search sees."""

    seq: int
    index: MilvusIndex


class MilvusLive:
    """The searchable side of a gallery on Milvus, which is always as it is now."""

    def __init__(self, place: Place, catalog: MilvusCatalog) -> None:
        """Search ``catalog``."""
        self._place = place
        self._catalog = catalog
        self._known = place.collection  #: when the search settings were last read
        self._recall: float | None = None
        self._parameters = SearchParameters()
        self._read_note()
        self._state = self._new_state()

    def state(self) -> MilvusState:
        """What there is now."""
        return self._state

    def matching(self, where: Filter) -> tuple[MilvusState, MilvusSubset]:
        """The state now, and the items in it that a filter matches."""
        return self._state, self.subset(self._state, where)

    @contextmanager
    def one_moment(self) -> Iterator[MilvusState]:
        """The state now. Milvus has no moments: items may come and go meanwhile."""
        yield self._state

    def subset(self, state: MilvusState, where: Filter) -> MilvusSubset:
        """The items of ``state`` that a filter matches."""
        return MilvusSubset(state.index, where.condition)

    def expect_server(self) -> None:
        """Raises GalleryUnavailableError if the server does not answer."""
        self._place.connection.call("get_server_version")

    def refresh(self) -> bool:
        """Look whether another collection has taken over; changes need no taking in."""
        collection = self._place.now(at_once=True)
        if collection == self._known:
            return False
        self._known = collection
        self._read_note()
        self._state = self._new_state()
        return True

    def apply(self) -> bool:
        """Nothing to be done: Milvus has taken changes in."""
        return True

    def info(self) -> IndexInfo:
        """What serves now."""
        index, described = self._state.index, self._place.described
        return IndexInfo(
            kind=index.kind,
            requested=described.index_kind,
            parameters=index.parameters,
            recall=1.0 if index.kind == "flat" else self._recall,
            target_recall=described.target_recall,
            seq=0,
            base_seq=0,
            base_size=len(index),
            delta=0,
            tombstones=0,
            stored=True,
            updating=False,
            error=None,
        )

    def settle(self) -> None:
        """Nothing to be done: Milvus builds its index by itself."""

    def measure_recall(self) -> float:
        """As ``LiveIndex.measure_recall``; all vectors are read."""
        self._recall = self._state.index.measure_recall()
        return self._recall

    def rebuild(self, progress: Progress | None = None) -> None:
        """Fill a new collection beside the one that serves, and move the alias to it."""
        rebuild(self._place, self._place.described, progress=progress)
        self.refresh()

    def tune(
        self, target_recall: float, kind: RequestedKind | None, progress: Progress | None
    ) -> None:
        """As ``LiveIndex.tune``."""
        described = replace(
            self._place.described,
            target_recall=target_recall,
            index_kind=kind or self._place.described.index_kind,
        )
        if described != self._place.described:
            rebuild(self._place, described, progress=progress)
            self.refresh()
        index, reached = self._state.index.tuned(target_recall, progress)
        note = {"parameters": asdict(index.parameters), "recall": reached}
        self._place.notes.put(SEARCH_NOTE, json.dumps(note))
        self._read_note()
        self._state = self._new_state()
        if progress is not None:
            progress("done", 1.0)

    def close(self) -> None:
        """Let go of the server."""
        self._place.connection.close()

    def _new_state(self) -> MilvusState:
        return MilvusState(0, MilvusIndex(self._place, self._catalog, self._parameters))

    def _read_note(self) -> None:
        note = self._place.notes.get(SEARCH_NOTE)
        if note is None:
            return
        try:
            values = json.loads(note)
            self._parameters = SearchParameters(**values["parameters"])
            self._recall = values["recall"]
        except (ValueError, KeyError, TypeError) as error:
            raise GalleryError(
                f"{self._place.address}: its search settings cannot be read: {error}. Set them "
                "anew with `dscl index tune`."
            ) from error


def _in_order(hits: list[tuple[int, float]], limit: int) -> _Found:
    """Results as they are told: score descending, ties by ascending id."""
    crossing = len(hits) == limit
    if all(one[1] - other[1] > TIE for one, other in pairwise(hits)):
        # As most are, and then a dozen are in order long before NumPy is.
        return _Found(
            np.array([item_id for item_id, _ in hits], np.int64),
            np.array([max(-1.0, min(1.0, score)) for _, score in hits], np.float32),
            crossing,
        )
    ids = np.fromiter((item_id for item_id, _ in hits), np.int64, len(hits))
    scores = np.fromiter((score for _, score in hits), np.float32, len(hits))
    order = np.argsort(-scores, kind="stable")
    ids, scores = ids[order], np.clip(scores[order], -1.0, 1.0)
    if len(scores) > 1:
        run = np.concatenate([[0], np.cumsum(scores[:-1] - scores[1:] > TIE)])
        # Of a run of ties all have the first one's score, so that scores never rise.
        scores = scores[np.searchsorted(run, run)]
        ids = ids[np.lexsort((ids, run))]
    return _Found(ids, scores.astype(np.float32), crossing)


def _tied(scores: Vectors) -> bool:
    return len(scores) > 0 and bool(scores[0] - scores[-1] <= TIE)
