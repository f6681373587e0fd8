"""``MilvusCatalog``: items and vectors in Milvus, with the methods of ``index.catalog.Catalog``.

Several processes may change a gallery at once, and Milvus has neither transactions nor unique keys.
So what replaces something is stored first, and what it replaces goes after that: a crash in between
leaves both, never neither, and the next change of the photo or sku removes the older one. Of two
processes that store the same photo or sku at once, the greater id stays.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.address import Consistency
from index.attributes import OWN_FIELDS, FieldType, new_types
from index.errors import (
    FilterError,
    GalleryError,
    GalleryUnavailableError,
    OutcomeUnknownError,
)
from index.filter_dialects import MilvusDialect
from index.filters import Filter, compile_where, field_type
from index.items import (
    KEEP,
    Item,
    Keep,
    NewItem,
    check_item,
    check_texts,
    expect_all,
    storable,
    taken,
    without_taken_away,
)
from index.kept_photos import PHOTOS_FOLDER
from index.milvus_client import Row
from index.milvus_ids import IdMaker
from index.milvus_literals import literal
from index.milvus_place import Place
from index.milvus_schema import (
    ALL_FIELDS,
    ITEM_FIELDS,
    OTHER_BYTES,
    attributes_of,
    check_sizes,
    described_row,
    item_of,
    row_bytes,
    row_of,
    vectors_of,
)
from index.photos import AttributeValue
from index.stores import PhotoPath, place_named

__all__ = ["MilvusCatalog"]

#: Seconds for which the types of attributes are taken as known.
FIELDS_FOR_S = 1.0

#: Values in one expression.
VALUES = 1000

#: Bytes of a row of a few scalars, about.
SHORT_ROW = 256

FIELD = "field/"


class MilvusCatalog:
    """The items of one gallery on Milvus. Safe to use from several threads and processes."""

    def __init__(self, place: Place, photos: PhotoPath | None) -> None:
        """Use the gallery at ``place``, which keeps photos of its own in ``photos``."""
        self._place = place
        self._connection = place.connection
        self._photos = photos
        self._ids = IdMaker()
        self._fields: dict[str, FieldType] = {}
        self._fields_until = 0.0
        self._changing = threading.Lock()
        self.dim = place.described.dim

    # The gallery as a whole

    def floor(self) -> int:
        """Milvus has no history."""
        return 0

    def fields(self, *, anew: bool = False) -> dict[str, FieldType]:
        """The attributes there are, and the type that their values have.

        Args:
            anew: also know what another process has added within the last second.
        """
        if anew or time.monotonic() >= self._fields_until:
            found = self._place.notes.items(FIELD)
            self._fields = {
                name.removeprefix(FIELD): _field_type(kind) for name, kind in found.items()
            }
            self._fields_until = time.monotonic() + FIELDS_FOR_S
        return dict(self._fields)

    def compile(self, where: Mapping[str, Any]) -> Filter:
        """A filter, for Milvus. Raises FilterError as ``index.filters.compile_where``."""
        try:
            return compile_where(where, self.fields(), MilvusDialect())
        except FilterError:
            return compile_where(where, self.fields(anew=True), MilvusDialect())

    # Writing

    def insert(self, items: Sequence[NewItem]) -> list[int]:
        """As ``Catalog.insert``."""
        return self._store(items, replace_by_external_id=False)

    def upsert(self, items: Sequence[NewItem]) -> list[int]:
        """As ``Catalog.upsert``."""
        return self._store(items, replace_by_external_id=True)

    def put(self, pairs: Sequence[tuple[int, NewItem]]) -> None:
        """Store items under ids of the caller's, in place of those that have them: for copies."""
        collection = self._place.to_change()
        self._keep_types(self._check([item for _, item in pairs]))
        self._connection.upsert(
            collection, [self._row(item, item_id) for item_id, item in pairs], row_bytes(self.dim)
        )

    def update(
        self,
        item_id: int,
        *,
        label: str | Keep | None = KEEP,
        attributes: Mapping[str, AttributeValue] | None = None,
        external_id: str | Keep | None = KEEP,
    ) -> None:
        """As ``Catalog.update``. Of two that change an item at once, the later one stays."""
        item_id = int(item_id)
        check_texts(f"item {item_id}", label=label, external_id=external_id)
        with self._changing:
            collection = self._place.to_change()
            row = self._rows_to_change([item_id], ALL_FIELDS)[item_id]
            merged = attributes_of(row) | dict(attributes or {})
            new = self._new_types([(f"item {item_id}", merged)])
            kept = without_taken_away(merged, attributes or {})
            own_label = row["label"] if row["has_label"] else None
            own_sku = row["sku"] if row["has_sku"] else None
            if external_id is not KEEP and external_id is not None:
                owner = self.get_external([external_id]).get(external_id, item_id)
                if owner != item_id:
                    raise taken(external_id, f"item {owner}")
            new_label = own_label if label is KEEP else label
            new_sku = own_sku if external_id is KEEP else external_id
            check_sizes(f"item {item_id}", new_label, new_sku, kept)
            self._keep_types(new)
            [version] = self._ids.take(1)
            row |= described_row(new_label, new_sku, kept) | {"version": version}
            self._connection.upsert(collection, [row], row_bytes(self.dim))

    def remove(self, ids: Sequence[int]) -> None:
        """As ``Catalog.remove``."""
        with self._changing:
            collection = self._place.to_change()
            wanted = [int(item_id) for item_id in ids]
            self._rows_to_change(wanted, ())
            self._connection.delete(collection, wanted)

    # Reading

    def get(self, ids: Sequence[int]) -> list[Item]:
        """As ``Catalog.get``."""
        rows = self._rows(ids, ITEM_FIELDS)
        expect_all(ids, rows)
        return [self.item(rows[int(item_id)]) for item_id in ids]

    def get_external(self, external_ids: Sequence[str]) -> dict[str, int]:
        """As ``Catalog.get_external``."""
        return self._ids_where("sku", external_ids, "has_sku == true")

    def ids_by_sha256(self, hashes: Sequence[str]) -> dict[str, int]:
        """As ``Catalog.ids_by_sha256``."""
        return self._ids_where("sha256", hashes)

    def ids_by_path(self, paths: Sequence[PhotoPath]) -> dict[PhotoPath, int]:
        """As ``Catalog.ids_by_path``."""
        files = {self._file(path): path for path in paths}
        return {files[file]: found for file, found in self._ids_where("file", list(files)).items()}

    def page(self, *, offset: int, limit: int, where: Filter | None = None) -> list[Item]:
        """As ``Catalog.page``. Milvus walks to ``offset``, which takes time for a large one."""
        condition = "" if where is None else where.condition
        after, skipped = None, 0
        if offset:
            for rows in self._walk(condition, (), SHORT_ROW):
                if skipped + len(rows) >= offset:
                    after = int(rows[offset - skipped - 1]["id"])
                    break
                skipped += len(rows)
            else:
                return []
        found: list[Item] = []
        if limit:
            for rows in self._walk(condition, ITEM_FIELDS, OTHER_BYTES, after=after, most=limit):
                found += [self.item(row) for row in rows]
                if len(found) >= limit:
                    break
        return found[:limit]

    def select(self, where: Filter) -> NDArray[np.int64]:
        """As ``Catalog.select``."""
        ids = [row["id"] for rows in self._walk(where.condition, (), SHORT_ROW) for row in rows]
        return np.array(ids, np.int64)

    def count(self, where: Filter | None = None) -> int:
        """As ``Catalog.count``."""
        condition = "" if where is None else where.condition
        return self._connection.count(self._place.now(), condition)

    def values(
        self, field: str, *, where: Filter | None = None, limit: int = 50
    ) -> list[tuple[AttributeValue, int]]:
        """As ``Catalog.values``. Milvus does not count by value: all items that match are read."""
        self._expect_field(field)
        condition = MilvusDialect().exists(field, True)
        if where is not None:
            condition = f"{condition} and ({where.condition})"
        counts: Counter[AttributeValue] = Counter()
        for rows in self._walk(condition, _columns_of(field), SHORT_ROW):
            counts.update(_value_of(row, field) for row in rows)
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return ordered[:limit]

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """As ``Catalog.vectors``."""
        rows = self._rows(ids, ("vector",))
        expect_all(ids, rows)
        return vectors_of([rows[int(item_id)] for item_id in ids], self.dim)

    def all_vectors(
        self, condition: str = "", fields: Sequence[str] = ()
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], list[Row]]]:
        """Ids, vectors and rows of all items that match, by ascending id, some at a time."""
        for rows in self._walk(condition, ("vector", *fields), row_bytes(self.dim)):
            ids = np.array([row["id"] for row in rows], np.int64)
            yield ids, vectors_of(rows, self.dim), rows

    def labelled(
        self, where: Filter | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], list[str]]:
        """As ``Catalog.labelled``."""
        condition = "has_label == true"
        if where is not None:
            condition += f" and ({where.condition})"
        ids, vectors, labels = [np.empty(0, np.int64)], [vectors_of([], self.dim)], []
        for some_ids, some_vectors, rows in self.all_vectors(condition, ("label",)):
            ids.append(some_ids)
            vectors.append(some_vectors)
            labels += [str(row["label"]) for row in rows]
        return np.concatenate(ids), np.concatenate(vectors), labels

    def attribute_of(self, ids: Sequence[int], field: str) -> list[AttributeValue]:
        """As ``Catalog.attribute_of``."""
        self._expect_field(field)
        rows = self._rows(ids, _columns_of(field))
        return [_value_of(rows[int(each)], field) if each in rows else None for each in ids]

    def label_counts(self) -> tuple[int, int]:
        """As ``Catalog.label_counts``; all labels are read."""
        counts = [count for _, count in self.values("label", limit=2**62)]
        return sum(counts), len(counts)

    def files(self, root: PhotoPath) -> dict[str, tuple[int, int]]:
        """As ``Catalog.files``; what any process has stored is in it."""
        condition = f"root == {literal(self._root_name(root))}"
        # Photos that are not in it may be removed from a store.
        walk = self._walk(condition, ("path", "size", "mtime_ns"), SHORT_ROW, consistency="Strong")
        return {
            row["path"]: (int(row["size"]), int(row["mtime_ns"])) for rows in walk for row in rows
        }

    def close(self) -> None:
        """Nothing of its own is open: the connection is closed by who opened it."""

    # Inside

    def _store(self, items: Sequence[NewItem], *, replace_by_external_id: bool) -> list[int]:
        skus = [item.external_id for item in items if item.external_id is not None]
        if len(set(skus)) < len(skus):
            [(twice, _)] = Counter(skus).most_common(1)
            raise taken(twice, "another of the items to be stored")
        with self._changing:
            collection = self._place.to_change()
            new = self._check(items)
            files = {self._file(item.image) for item in items}
            known = self._rivals(sorted(files), skus, but=())
            if not replace_by_external_id:
                for row in known:
                    if row["has_sku"] and row["sku"] in skus and row["file"] not in files:
                        raise taken(row["sku"], f"item {row['id']}")
            ids = self._ids.take(len(items))
            by_id = dict(zip(ids, items, strict=True))
            last = {self._file(item.image): item_id for item_id, item in by_id.items()}
            stored = {item_id: by_id[item_id] for item_id in sorted(last.values())}
            rows = [self._row(item, item_id) for item_id, item in stored.items()]
            self._keep_types(new)
            gone: list[int] = []
            try:
                self._connection.insert(collection, rows, row_bytes(self.dim))
                gone = self._replaced(stored, {row["id"] for row in known})
                if gone:
                    self._connection.delete(collection, gone)
            except BaseException as error:
                # All or none; but where some of what they replace may be gone, they stay.
                undone = not gone and self._is_removed(collection, list(stored))
                if not undone and isinstance(error, GalleryUnavailableError):
                    raise OutcomeUnknownError(
                        f"{self._place.address} has not answered, and may have stored what it was "
                        "given: look before you store it again."
                    ) from error
                raise
        return ids

    def _is_removed(self, collection: str, ids: list[int]) -> bool:
        """Remove items; False if the server does not answer."""
        try:
            self._connection.delete(collection, ids)
        except GalleryUnavailableError:
            return False
        return True

    def _replaced(self, stored: Mapping[int, NewItem], known: set[int]) -> list[int]:
        """What the stored items replace, and those of them that another process outran."""
        by_file = {self._file(item.image): item_id for item_id, item in stored.items()}
        by_sku = {
            item.external_id: item_id
            for item_id, item in stored.items()
            if item.external_id is not None
        }
        gone = set(known)
        for row in self._rivals(list(by_file), list(by_sku), but=stored):
            mine = by_file.get(row["file"])
            if mine is None and row["has_sku"]:
                mine = by_sku.get(row["sku"])
            gone.add(row["id"] if mine is None or row["id"] < mine else mine)
        return sorted(gone)

    def _rivals(
        self,
        files: Sequence[str],
        skus: Sequence[str],
        *,
        but: Mapping[int, object] | Sequence[int],
    ) -> list[Row]:
        """Id, file and sku of all items with one of these files or skus, except some ids."""
        conditions = [f"file in {literal(part)}" for part in _parts(files)]
        conditions += [f"has_sku == true and sku in {literal(part)}" for part in _parts(skus)]
        return [
            row
            for condition in conditions
            for rows in self._walk(
                condition, ("file", "sku", "has_sku"), SHORT_ROW, consistency="Strong"
            )
            for row in rows
            if row["id"] not in but
        ]

    def _check(self, items: Sequence[NewItem]) -> dict[str, FieldType]:
        """Refuse items that cannot be stored; gives the types of attributes that are new."""
        for item in items:
            check_item(item, self.dim)
        new = self._new_types([(str(item.image), item.attributes) for item in items])
        for item in items:
            check_sizes(str(item.image), item.label, item.external_id, item.attributes)
        return new

    def _new_types(
        self, described: Sequence[tuple[str, Mapping[str, AttributeValue]]]
    ) -> dict[str, FieldType]:
        """Hold attributes against the types there are; gives the types of those that are new."""
        new_types(self.fields(), described)
        names = {name for _, attributes in described for name in attributes}
        if names <= set(self.fields()):
            return {}
        return new_types(self.fields(anew=True), described)

    def _keep_types(self, new: Mapping[str, FieldType]) -> None:
        if new:
            self._place.notes.put_all({f"{FIELD}{name}": kind for name, kind in new.items()})
            self._fields |= new

    def _row(self, item: NewItem, item_id: int) -> Row:
        [version] = self._ids.take(1)
        return row_of(
            item,
            item_id,
            root=self._root_name(item.root),
            file=self._file(item.image),
            version=version,
        )

    def _root_name(self, root: PhotoPath) -> str:
        """A root as it is stored: by a word if it is the gallery's own, which may move."""
        return PHOTOS_FOLDER if self._photos is not None and root == self._photos else str(root)

    def _file(self, path: PhotoPath) -> str:
        """What a photo is looked up by, wherever the gallery's own photos lie."""
        if self._photos is not None and self._photos in path.parents:
            below = path.as_posix().removeprefix(self._photos.as_posix())
            return f"{PHOTOS_FOLDER}/{below.removeprefix('/')}"
        return str(path)

    def item(self, row: Row) -> Item:
        """An item from its row."""
        own = row["root"] == PHOTOS_FOLDER and self._photos is not None
        root = (
            self._photos if own and self._photos is not None else place_named(row["root"], Path())
        )
        return item_of(row, root)

    def _expect_field(self, field: str) -> None:
        try:
            field_type(field, self.fields())
        except FilterError:
            field_type(field, self.fields(anew=True))

    def _rows(
        self, ids: Sequence[int], fields: Sequence[str], *, consistency: Consistency | None = None
    ) -> dict[int, Row]:
        found: dict[int, Row] = {}
        wanted = [int(item_id) for item_id in ids if 0 < item_id < 2**63]
        for part in _parts(wanted):
            for row in self._connection.query(
                self._place.now(), f"id in {literal(part)}", ["id", *fields],
                consistency=consistency,
            ):  # fmt: skip
                found[int(row["id"])] = row
        return found

    def _rows_to_change(self, ids: Sequence[int], fields: Sequence[str]) -> dict[int, Row]:
        """As ``_rows``; raises ItemNotFoundError unless all are there."""
        rows = self._rows(ids, fields, consistency="Strong")
        while not (rows.keys() >= set(ids) or self._place.settled()):
            time.sleep(0.05)  # one that came as the gallery was rebuilt may be on its way
            rows = self._rows(ids, fields, consistency="Strong")
        expect_all(ids, rows)
        return rows

    def _ids_where(self, column: str, texts: Sequence[str], also: str = "") -> dict[str, int]:
        """Text → the least id of the items that have it in a column."""
        found: dict[str, int] = {}
        for part in _parts([text for text in texts if storable(text)]):
            condition = f"{column} in {literal(part)}"
            if also:
                condition = f"{also} and {condition}"
            for rows in self._walk(condition, (column,), SHORT_ROW):
                for row in rows:
                    found.setdefault(row[column], int(row["id"]))
        return found

    def _walk(
        self,
        condition: str,
        fields: Sequence[str],
        size: int,
        *,
        after: int | None = None,
        most: int = 2**14,
        consistency: Consistency | None = None,
    ) -> Iterator[list[Row]]:
        return self._connection.walk(
            self._place.now(),
            condition,
            fields,
            row_bytes=size,
            after=after,
            most=most,
            consistency=consistency,
        )


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), VALUES):
        yield list(values[start : start + VALUES])


def _field_type(kind: str) -> FieldType:
    for known in ("string", "number", "boolean"):
        if kind == known:
            found: FieldType = known
            return found
    raise GalleryError(f"attribute type {kind!r} is none that this release knows: upgrade it.")


def _columns_of(field: str) -> tuple[str, ...]:
    if field == "id":
        return ()
    return (field, f"has_{field}") if field in OWN_FIELDS else ("attributes",)


def _value_of(row: Row, field: str) -> Any:
    if field == "id":
        return int(row["id"])
    if field in OWN_FIELDS:
        return row[field] if row[f"has_{field}"] else None
    return (row["attributes"] or {}).get(field)
