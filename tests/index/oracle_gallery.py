"""``OracleGallery``: the interface of ``index.Gallery`` over a dict, by loops and float64.

It shares nothing with galleries but the types they give back; filters are read by
``tests.index.filter_language``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from index import Evaluation, Item, Model, NewItem, RetrievalMetrics
from index import metrics as metrics_module
from index.errors import (
    AttributeTypeError,
    DuplicateExternalIdError,
    FilterError,
    GalleryError,
    InvalidArgumentError,
    ItemNotFoundError,
)
from index.evaluation import ClassFigures, Confusion, HardQuery, JudgedNeighbour
from index.items import KEEP
from index.results import Hits
from tests.index.filter_language import holds

Where = Mapping[str, Any]

TYPES = {str: "string", int: "number", float: "number", bool: "boolean"}


@dataclass
class Held:
    """What several gallery objects share that are open at once."""

    items: dict[int, Item] = field(default_factory=dict)
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    last_id: int = 0


@dataclass(frozen=True)
class Judged:
    """How a query did."""

    id: int
    label: str
    ranking: list[int]  # of all others in its gallery, nearest first
    right: list[bool]  # of the ranking

    @property
    def answers(self) -> int:
        return sum(self.right)

    @property
    def first(self) -> int:
        return self.right.index(True) + 1

    @property
    def r_precision(self) -> float:
        return sum(self.right[: self.answers]) / self.answers

    @property
    def average_precision(self) -> float:
        hits = [place for place in range(self.answers) if self.right[place]]
        return sum(sum(self.right[: place + 1]) / (place + 1) for place in hits) / self.answers


class OracleGallery:
    def __init__(self, model: Model, held: Held | None = None, *, writable: bool = True) -> None:
        self.model = model
        self.held = Held() if held is None else held
        self.writable = writable

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.held.items)

    # Changing

    def add(self, items: Sequence[NewItem], *, ids: Sequence[int] | None = None) -> list[int]:
        """With ``ids``: those that another gallery has given."""
        return self._store(items, ids, upsert=False)

    def upsert(self, items: Sequence[NewItem], *, ids: Sequence[int] | None = None) -> list[int]:
        return self._store(items, ids, upsert=True)

    def _store(
        self, items: Sequence[NewItem], ids: Sequence[int] | None, *, upsert: bool
    ) -> list[int]:
        self._require_writable()
        for each in items:
            self._check_vectors(np.asarray(each.vector)[None])
            self._check_texts(str(each.root), each.path, each.label, each.external_id)
            if each.external_id == "":
                raise InvalidArgumentError("an empty sku")
        skus = [each.external_id for each in items if each.external_id is not None]
        if len(set(skus)) < len(skus):
            raise DuplicateExternalIdError("twice")
        fields = dict(self.held.fields)
        for each in items:
            self._admit(fields, each.attributes)
        paths = {each.image for each in items}
        gone = {i for i, each in self.held.items.items() if each.image in paths}
        owners = {i for i, each in self.held.items.items() if each.external_id in skus}
        if not upsert and owners - gone:
            raise DuplicateExternalIdError("another's")
        for item_id in gone | owners:
            del self.held.items[item_id], self.held.vectors[item_id]
        self.held.fields = fields
        if ids is None:
            ids = range(self.held.last_id + 1, self.held.last_id + 1 + len(items))
        last = {each.image: item_id for item_id, each in zip(ids, items, strict=True)}
        for item_id, each in zip(ids, items, strict=True):
            if last[each.image] == item_id:
                self.held.items[item_id] = Item(
                    id=item_id,
                    external_id=each.external_id,
                    label=each.label,
                    attributes=dict(each.attributes),
                    root=each.root,
                    path=each.path,
                    size=each.size,
                    mtime_ns=each.mtime_ns,
                    sha256=each.sha256,
                )
                self.held.vectors[item_id] = np.asarray(each.vector, np.float32)
            self.held.last_id = item_id
        return list(ids)

    def update(
        self,
        item_id: int,
        *,
        label: Any = KEEP,
        attributes: Mapping[str, Any] | None = None,
        external_id: Any = KEEP,
    ) -> None:
        self._require_writable()
        texts = [each for each in (label, external_id) if each is not KEEP]
        self._check_texts("", "", *texts)
        if external_id == "":
            raise InvalidArgumentError("an empty sku")
        [old] = self.get([item_id])
        fields = dict(self.held.fields)
        self._admit(fields, attributes or {})
        if external_id not in (KEEP, None):
            owners = [i for i, each in self.held.items.items() if each.external_id == external_id]
            if owners not in ([], [old.id]):
                raise DuplicateExternalIdError("another's")
        merged = old.attributes | dict(attributes or {})
        for name, value in (attributes or {}).items():
            if value is None:
                del merged[name]
        self.held.fields = fields
        self.held.items[old.id] = replace(
            old,
            label=old.label if label is KEEP else label,
            external_id=old.external_id if external_id is KEEP else external_id,
            attributes=merged,
        )

    def remove(self, ids: Sequence[int]) -> None:
        self._require_writable()
        self._expect(ids)
        for item_id in set(map(int, ids)):
            del self.held.items[item_id], self.held.vectors[item_id]

    # Searching

    def search(
        self,
        vectors: NDArray[Any],
        k: int,
        *,
        where: Where | None = None,
        threshold: float | None = None,
        group_by: str | None = None,
        offset: int = 0,
    ) -> Hits:
        whole = (int, np.integer)
        if isinstance(k, bool) or not isinstance(k, whole) or not 1 <= k <= 10_000:
            raise InvalidArgumentError("k")
        if (
            isinstance(offset, bool)
            or not isinstance(offset, whole)
            or not 0 <= offset <= 10_000 - k
        ):
            raise InvalidArgumentError("offset")
        if threshold is not None and (
            isinstance(threshold, bool | str) or not -1 <= threshold <= 1
        ):
            raise InvalidArgumentError("threshold")
        queries = np.atleast_2d(np.asarray(vectors, np.float32))
        self._check_vectors(queries)
        if group_by is not None:
            self._expect_field(group_by)
        rows = []
        for query in queries:
            ranking = self._ranking(query, self._matching(where))
            if threshold is not None:
                ranking = [i for i in ranking if self._score(query, i) >= threshold]
            if group_by is not None:
                best: dict[Any, int] = {}
                for item_id in ranking:
                    best.setdefault(self._row(item_id).get(group_by), item_id)
                ranking = [item_id for value, item_id in best.items() if value is not None]
            rows.append(ranking[offset : offset + k])
        width = max(map(len, rows), default=0)
        ids = np.full((len(rows), width), -1, np.int64)
        scores = np.full((len(rows), width), -np.inf, np.float32)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            scores[place, : len(row)] = [self._score(queries[place], i) for i in row]
        return Hits(ids, scores)

    def _score(self, query: NDArray[np.float32], item_id: int) -> float:
        # fsum: equal vectors have equal scores, whatever the order of the sum.
        products = query.astype(np.float64) * self.held.vectors[item_id].astype(np.float64)
        return min(1.0, max(-1.0, math.fsum(products)))

    def _ranking(self, query: NDArray[np.float32], among: Sequence[int]) -> list[int]:
        return sorted(among, key=lambda item_id: (-self._score(query, item_id), item_id))

    # What there is

    def get(self, ids: Sequence[int]) -> list[Item]:
        self._expect(ids)
        return [self.held.items[int(item_id)] for item_id in ids]

    def get_external(self, external_ids: Sequence[str]) -> list[Item]:
        found = self.ids_by_external(external_ids)
        if missing := [each for each in external_ids if each not in found]:
            raise ItemNotFoundError(f"no item with sku {missing[0]!r}")
        return self.get([found[each] for each in external_ids])

    def items(self, *, offset: int = 0, limit: int = 50, where: Where | None = None) -> list[Item]:
        return self.get(self._matching(where)[offset : offset + limit])

    def count(self, where: Where | None = None) -> int:
        return len(self._matching(where))

    def ids(self, where: Where | None = None) -> NDArray[np.int64]:
        return np.array(self._matching(where), np.int64)

    def fields(self) -> dict[str, str]:
        return dict(self.held.fields)

    def values(
        self, field: str, *, where: Where | None = None, limit: int = 50
    ) -> list[tuple[Any, int]]:
        self._expect_field(field)
        counts = Counter(self._row(item_id).get(field) for item_id in self._matching(where))
        del counts[None]
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self._expect(ids)
        rows = [self.held.vectors[int(item_id)] for item_id in ids]
        return np.array(rows, np.float32).reshape(-1, self.model.card.dim)

    def values_of(self, ids: Sequence[int], field: str) -> list[Any]:
        self._expect_field(field)
        return [self._row(int(i)).get(field) if i in self.held.items else None for i in ids]

    def files(self, root: Path) -> dict[str, tuple[int, int]]:
        there = [each for each in self.held.items.values() if each.root == root]
        return {each.path: (each.size, each.mtime_ns) for each in there}

    def ids_by_path(self, paths: Sequence[Path]) -> dict[Path, int]:
        return self._ids_by(lambda each: each.image, paths)

    def ids_by_sha256(self, hashes: Sequence[str]) -> dict[str, int]:
        return self._ids_by(lambda each: each.sha256, hashes)

    def ids_by_external(self, external_ids: Sequence[str]) -> dict[str, int]:
        return self._ids_by(lambda each: each.external_id, external_ids)

    def _ids_by(self, key: Callable[[Item], Any], wanted: Sequence[Any]) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for item_id in sorted(self.held.items):
            found.setdefault(key(self.held.items[item_id]), item_id)
        return {each: found[each] for each in wanted if each in found}

    # Judging

    def evaluate(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        *,
        where: Where | None = None,
        query_where: Where | None = None,
        gallery_where: Where | None = None,
        exact: bool = True,
        clustering: bool = False,
        per_class: bool = False,
        hardest: int = 0,
        confusion: int = 0,
    ) -> Evaluation:
        if where is not None:
            if query_where is not None or gallery_where is not None:
                raise InvalidArgumentError("where beside another")
            query_where = gallery_where = where
        asking, among = self._matching(query_where), self._matching(gallery_where)
        everyone = {i: self.held.items[i].label for i in sorted({*asking, *among})}
        return self._judged(
            [(i, everyone[i], self.held.vectors[i]) for i in asking],
            among,
            ks,
            exact=exact,
            clustering=clustering,
            per_class=per_class,
            hardest=hardest,
            confusion=confusion,
        )

    def evaluate_photos(
        self,
        vectors: NDArray[Any],
        labels: Sequence[str],
        ks: Sequence[int] = (1, 2, 4, 8),
        *,
        gallery_where: Where | None = None,
        exact: bool = True,
        clustering: bool = False,
        per_class: bool = False,
        hardest: int = 0,
        confusion: int = 0,
    ) -> Evaluation:
        self._check_vectors(np.asarray(vectors))
        return self._judged(
            [(-1 - i, *each) for i, each in enumerate(zip(labels, vectors, strict=True))],
            self._matching(gallery_where),
            ks,
            exact=exact,
            clustering=clustering,
            per_class=per_class,
            hardest=hardest,
            confusion=confusion,
        )

    def _judged(
        self,
        queries: Sequence[tuple[int, str | None, NDArray[np.float32]]],
        among: Sequence[int],
        ks: Sequence[int],
        *,
        exact: bool,
        clustering: bool,
        per_class: bool,
        hardest: int,
        confusion: int,
    ) -> Evaluation:
        if any(not 1 <= k <= 10_000 for k in ks) or not ks:
            raise InvalidArgumentError("k")
        if not 0 <= hardest <= 100 or not 0 <= confusion <= 1000 or (clustering and not exact):
            raise InvalidArgumentError("what is wanted")
        labels = {i: self.held.items[i].label for i in among}
        labels |= {i: label for i, label, _ in queries}
        vectors = {i: self.held.vectors[i] for i in among} | {i: v for i, _, v in queries}
        there = [i for i in among if labels[i] is not None]
        done: list[Judged] = []
        skipped = 0
        for item_id, label, vector in queries:
            if label is None:
                continue
            ranking = self._ranking(vector, [i for i in there if i != item_id])
            one = Judged(item_id, label, ranking, [labels[i] == label for i in ranking])
            if one.answers:
                done.append(one)
            else:
                skipped += 1
        if not done:
            raise InvalidArgumentError("no query with a right answer")
        labelled = [i for i in vectors if labels[i] is not None]
        labelled.sort(key=lambda i: (i < 0, abs(i)))
        nmi = None
        if clustering:  # k-means is tested elsewhere; here, of what
            nmi = metrics_module.clustering_nmi(
                np.array([vectors[i] for i in labelled]), [labels[i] for i in labelled]
            )

        def neighbour(vector: NDArray[np.float32], item_id: int) -> JudgedNeighbour:
            return JudgedNeighbour(item_id, str(labels[item_id]), self._score(vector, item_id))

        def means(some: Sequence[Judged]) -> dict[str, Any]:
            return {
                "recall": {
                    k: math.fsum(any(each.right[:k]) for each in some) / len(some)
                    for k in sorted(set(ks))
                },
                "r_precision": math.fsum(each.r_precision for each in some) / len(some),
                "map_at_r": math.fsum(each.average_precision for each in some) / len(some),
            }

        worst = sorted(done, key=lambda each: (round(each.average_precision, 12), -each.first))
        wrong: dict[tuple[str, str], list[Judged]] = {}
        for each in done:
            if not each.right[0]:
                wrong.setdefault((each.label, str(labels[each.ranking[0]])), []).append(each)
        counts = Counter(each.label for each in done)
        pairs = sorted(
            wrong, key=lambda pair: (-len(wrong[pair]), -len(wrong[pair]) / counts[pair[0]], pair)
        )

        def confused(pair: tuple[str, str]) -> Confusion:
            best = max(
                wrong[pair], key=lambda each: self._score(vectors[each.id], each.ranking[0])
            )  # of equals the first
            return Confusion(
                label=pair[0],
                found=pair[1],
                count=len(wrong[pair]),
                share=len(wrong[pair]) / counts[pair[0]],
                query=best.id,
                nearest=neighbour(vectors[best.id], best.ranking[0]),
            )

        return Evaluation(
            metrics=RetrievalMetrics(**means(done), nmi=nmi, queries=len(done), skipped=skipped),
            protocol="",
            unlabelled=sum(label is None for label in labels.values()),
            gallery=len(there),
            per_class=[
                ClassFigures(
                    label=label,
                    queries=counts[label],
                    **means([each for each in done if each.label == label]),
                )
                for label in sorted(counts)
            ]
            if per_class
            else None,
            hardest=[
                HardQuery(
                    id=each.id,
                    label=each.label,
                    answers=each.answers,
                    first=each.first,  # which needs a K that reaches there
                    average_precision=each.average_precision,
                    neighbours=[neighbour(vectors[each.id], i) for i in each.ranking[:8]],
                )
                for each in worst[:hardest]
            ]
            if hardest
            else None,
            confusion=[confused(pair) for pair in pairs[:confusion]] if confusion else None,
        )

    # Care: there is no index

    def refresh(self) -> bool:
        return False

    def settle(self) -> None:
        pass

    def measure_recall(self) -> float:
        return 1.0

    def rebuild(self) -> None:
        self._require_writable()

    def tune(self, target_recall: float, *, kind: str | None = None) -> None:
        self._require_writable()
        if isinstance(target_recall, bool) or not 0 < target_recall <= 1:
            raise InvalidArgumentError("target recall")
        if kind not in (None, "auto", "flat", "ivf", "hnsw"):
            raise InvalidArgumentError("kind")

    # Inside

    def _row(self, item_id: int) -> dict[str, Any]:
        item = self.held.items[item_id]
        own = {"id": item.id, "label": item.label, "sku": item.external_id}
        return item.attributes | own

    def _matching(self, where: Where | None) -> list[int]:
        self._check_fields(where or {})
        return [i for i in sorted(self.held.items) if holds(where or {}, self._row(i))]

    def _check_fields(self, where: Where) -> None:
        for key, value in where.items():
            if key == "not":
                self._check_fields(value)
            elif key == "any":
                for each in value:
                    self._check_fields(each)
            else:
                self._expect_field(key)

    def _expect_field(self, name: str) -> None:
        if name not in ("id", "label", "sku", *self.held.fields):
            raise FilterError(f"there is no field {json.dumps(name)}")

    def _expect(self, ids: Sequence[int]) -> None:
        if missing := [item_id for item_id in ids if item_id not in self.held.items]:
            raise ItemNotFoundError(f"no item with id {missing[0]}")

    def _require_writable(self) -> None:
        if not self.writable:
            raise GalleryError("open it writable")

    def _check_vectors(self, vectors: NDArray[Any]) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.model.card.dim:
            raise InvalidArgumentError("shape")
        for row in vectors:
            if not abs(math.sqrt(sum(float(value) ** 2 for value in row)) - 1) <= 1e-3:
                raise InvalidArgumentError("length")

    def _check_texts(self, *texts: Any) -> None:
        for text in texts:
            if text is not None and (not isinstance(text, str) or not _is_plain(text)):
                raise InvalidArgumentError("text")

    def _admit(self, fields: dict[str, str], attributes: Mapping[str, Any]) -> None:
        """Hold attributes against the fields there are, and note those that are new."""
        for name, value in attributes.items():
            if name not in fields and (
                not 1 <= len(name) <= 64
                or name in ("id", "label", "sku", "any", "not")
                or not _is_plain(name)
                or any(each in '"\\\x7f' or ord(each) < 32 for each in name)
            ):
                raise InvalidArgumentError("name")
            if value is None:
                continue
            if type(value) not in TYPES:
                raise AttributeTypeError("no type of attributes")
            if isinstance(value, str) and not _is_plain(value):
                raise InvalidArgumentError("text")
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidArgumentError("number")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise InvalidArgumentError("number")
            if fields.setdefault(name, TYPES[type(value)]) != TYPES[type(value)]:
                raise AttributeTypeError("another type")


def _is_plain(text: str) -> bool:
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False
