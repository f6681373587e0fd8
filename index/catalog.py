"""Items, attributes and vectors on disk: the truth that everything else is derived from.

One SQLite database in WAL mode with full synchronisation, so a change that was acknowledged
survives a crash or a power cut. Every change raises the sequence number; readers in other
processes ask for what came after the number they know. No search and no embedding happens here.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.attributes import FieldType, new_types
from index.database import Database
from index.errors import (
    GalleryError,
    InvalidArgumentError,
    ModelMismatchError,
)
from index.filter_dialects import COLUMNS, column_of
from index.filters import Filter, compile_where, field_type
from index.items import (
    KEEP,
    MAX_ID,
    UNIT_TOLERANCE,
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
from index.photos import AttributeValue
from index.schema import (
    FORMAT_VERSION,
    add_field,
    create_tables,
    drop_field,
    field_expression,
    upgrade,
)
from index.stores import PhotoPath, place_named

__all__ = ["Catalog", "Changes"]

FILE = "catalog.sqlite"

#: Vectors read at a time: the rows of many more would take as much memory again as their array.
VECTORS_PER_READ = 10_000

#: Problems that ``integrity`` lists of one kind.
PROBLEMS_SHOWN = 20

#: The columns of table ``items``.
ITEM_COLUMNS = "id, seq, root, path, sha256, size, mtime_ns, label, attributes, external_id"

#: Rows of a JSON array: one parameter in place of as many as there are values.
EACH = "SELECT value FROM json_each(?)"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What changed up to ``seq``: vectors that came, ids that went.

    With ``whole`` it is all that the catalog holds: what was known before no longer counts.
    """

    seq: int
    ids: NDArray[np.int64]  #: (n,), ascending
    vectors: NDArray[np.float32]  #: (n, d)
    removed: NDArray[np.int64]
    whole: bool = False


class Catalog:
    """The database of one gallery. Safe to use from several threads; one process writes."""

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        """Open an existing catalog. One of an older format is upgraded if it may be written to.

        Raises:
            GalleryError: no catalog there, not a database, or of a format that cannot be read.
        """
        self._folder = folder.absolute()
        self.path = folder / FILE
        if not self.path.is_file():
            raise GalleryError(
                f"{folder} is not a gallery: {FILE} is missing. "
                "Make one with `dscl index build --model … --images … --gallery …`."
            )
        self._database = Database(self.path, writable=writable)
        try:
            self._expect_format(folder)
            self.dim = int(self.meta("dim"))
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        model_sha256: str,
        dim: int,
        precision: str = "fp32",
        index_kind: str = "auto",
        target_recall: float = 0.99,
    ) -> None:
        """Make an empty catalog in an existing folder.

        Args:
            folder: where to.
            model_sha256: the hash of the model whose vectors it will hold.
            dim: the number of values of a vector.
            precision: the precision that photos are embedded with.
            index_kind: the kind of index to search by; "auto" goes by size.
            target_recall: the recall@10 that an approximate index is to reach.
        """
        connection = Database.create(folder / FILE)
        try:
            connection.execute("BEGIN IMMEDIATE")
            create_tables(
                connection,
                {
                    "model_sha256": model_sha256,
                    "dim": str(dim),
                    "precision": precision,
                    "index_kind": index_kind,
                    "target_recall": str(target_recall),
                },
            )
            connection.execute("COMMIT")
        finally:
            connection.close()

    def close(self) -> None:
        """Close the database. Closing twice is harmless."""
        self._database.close()

    # The gallery as a whole

    @contextmanager
    def view(self) -> Iterator[None]:
        """All that is read inside is of one moment. Others wait for it, so keep it short."""
        with self._database.view():
            yield

    def meta(self, key: str, default: str | None = None) -> str:
        """A value that the gallery as a whole has, such as ``model_sha256``.

        Raises:
            GalleryError: there is no such value, and no default.
        """
        row = self._database.row("SELECT value FROM meta WHERE key = ?", (key,))
        if row is None:
            if default is not None:
                return default
            raise GalleryError(f"{self.path} has no {key!r}: the catalog is incomplete.")
        return str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Set such a value, durably. Raises GalleryError if it cannot be written."""
        with self._database.change() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def seq(self) -> int:
        """The number of the last change."""
        return int(self.meta("seq"))

    def floor(self) -> int:
        """The change before which everything belongs to a history that was replaced."""
        return int(self.meta("floor"))

    def data_version(self) -> int:
        """A number that differs after another connection has changed the database."""
        return self._database.data_version()

    def __len__(self) -> int:
        return self.count()

    def fields(self) -> dict[str, FieldType]:
        """The attributes there are, and the type that their values have. None fits every type."""
        return dict(self._database.rows("SELECT name, type FROM fields"))

    def compile(self, where: Mapping[str, Any]) -> Filter:
        """A filter, for this catalog. Raises FilterError as ``index.filters.compile_where``."""
        return compile_where(where, self.fields())

    # Writing

    def insert(self, items: Sequence[NewItem]) -> list[int]:
        """Store items in one transaction; a photo already there by its absolute path is replaced.

        Where ``items`` holds a photo twice, the last one stays.

        Returns:
            The new ids, in the order of ``items``.

        Raises:
            DuplicateExternalIdError: an external id twice in ``items``, or another photo's.
            AttributeTypeError: an attribute's value whose type is not the one it has here.
            InvalidArgumentError: a vector of another length, or text that cannot be stored.
            GalleryError: the database cannot be written to (disk full, …). On any error none of
                the items is stored.
        """
        return self._store(items, replace_by_external_id=False)

    def upsert(self, items: Sequence[NewItem]) -> list[int]:
        """As ``insert``, but an item whose external id is there replaces the one that has it."""
        return self._store(items, replace_by_external_id=True)

    def put(self, pairs: Sequence[tuple[int, NewItem]]) -> None:
        """Store items under ids of the caller's, in one transaction: for copies.

        Args:
            pairs: id and item, the ids ascending, above all that there ever were.

        Raises:
            InvalidArgumentError: other ids; and as ``insert``.
        """
        items = [item for _, item in pairs]
        ids = [int(item_id) for item_id, _ in pairs]
        for item in items:
            check_item(item, self.dim)
        with self._change() as (connection, seq):
            first = _next_id(connection)
            if ids != sorted(set(ids)) or (ids and not first <= ids[0] <= ids[-1] <= MAX_ID):
                raise InvalidArgumentError(
                    f"ids to be stored must ascend and be above {first - 1}, the last one given."
                )
            self._admit(connection, [(str(item.image), item.attributes) for item in items])
            self._write(connection, items, ids, seq)
            connection.execute("ANALYZE items")

    def update(
        self,
        item_id: int,
        *,
        label: str | Keep | None = KEEP,
        attributes: Mapping[str, AttributeValue] | None = None,
        external_id: str | Keep | None = KEEP,
    ) -> None:
        """Change what is known about an item, in one transaction. Its id and vector stay.

        ``attributes`` are merged into those it has; None as a value takes the attribute away.

        Raises:
            ItemNotFoundError: no such item.
            DuplicateExternalIdError: another item has this external id.
            AttributeTypeError, InvalidArgumentError, GalleryError: as ``insert``; nothing changes.
        """
        item_id = int(item_id)  # SQLite would take an integer of NumPy's for a blob
        check_texts(f"item {item_id}", label=label, external_id=external_id)
        with self._change() as (connection, _):
            [item] = self.get([item_id])
            merged = item.attributes | dict(attributes or {})
            self._admit(connection, [(f"item {item_id}", merged)])
            kept = without_taken_away(merged, attributes or {})
            if external_id is not KEEP and external_id is not None:
                owner = self.get_external([external_id]).get(external_id, item_id)
                if owner != item_id:
                    raise taken(external_id, f"item {owner}")
            connection.execute(
                "UPDATE items SET label = ?, attributes = ?, external_id = ? WHERE id = ?",
                (
                    item.label if label is KEEP else label,
                    _to_json(kept),
                    item.external_id if external_id is KEEP else external_id,
                    item_id,
                ),
            )

    def remove(self, ids: Sequence[int]) -> None:
        """Remove items in one transaction.

        Raises:
            ItemNotFoundError: names the ids that are not there; then none is removed.
            GalleryError: the database cannot be written to; then none is removed.
        """
        with self._change() as (connection, seq):
            self._expect(ids)
            _delete(connection, ids, seq)

    def replace_content(self, file: Path) -> int:
        """Take over the items, vectors and settings of another catalog, in one transaction.

        Ids stay what they are there. All its sequence numbers are moved by what is returned, and
        ``floor`` is set to it: to readers, everything before belongs to another history.

        Args:
            file: the other catalog's database.

        Raises:
            ModelMismatchError: it holds the vectors of another model.
            GalleryError: it cannot be read or is of another format, or this one cannot be written
                to; then nothing changes.
        """
        other = Catalog(file.parent)
        try:
            if (other.meta("model_sha256"), other.dim) != (self.meta("model_sha256"), self.dim):
                raise ModelMismatchError(
                    f"{file} holds vectors of model {other.meta('model_sha256')[:12]}…, and "
                    f"{self.path} of {self.meta('model_sha256')[:12]}…: they do not compare."
                )
            with other._database.view_apart() as source, self._database.change() as connection:
                return self._copy_from(source, connection)
        finally:
            other.close()

    def replace_vectors(
        self,
        batches: Iterable[tuple[Sequence[int], NDArray[np.float32]]],
        *,
        model_sha256: str,
        dim: int,
    ) -> None:
        """Give every item the vector of another model, in one transaction; ids and seq stay.

        Args:
            batches: ids (n,) and their vectors float32 (n, dim), until all items have had one.
            model_sha256: the other model's hash.
            dim: the number of values of its vectors.

        Raises:
            InvalidArgumentError: vectors of another shape.
            ItemNotFoundError: an id is not in the catalog.
            GalleryError: an item got no vector, or the database cannot be written to. On any
                error nothing changes.
        """
        with self._database.change() as connection:
            given: set[int] = set()
            for ids, vectors in batches:
                vectors = np.asarray(vectors, np.float32)
                if vectors.shape != (len(ids), dim):
                    raise InvalidArgumentError(
                        f"vectors of shape {list(vectors.shape)} for {len(ids)} items of a model "
                        f"with {dim} values: expected [{len(ids)}, {dim}]."
                    )
                self._expect(ids)
                connection.executemany(
                    "UPDATE vectors SET vector = ? WHERE id = ?",
                    zip((row.tobytes() for row in vectors), map(int, ids), strict=True),
                )
                given.update(map(int, ids))
            if missing := len(self) - len(given):
                raise GalleryError(
                    f"{missing} of {len(self)} items got no vector of the other model: give every "
                    "item one, or remove those that cannot have one."
                )
            connection.executemany(
                "UPDATE meta SET value = ? WHERE key = ?",
                [(model_sha256, "model_sha256"), (str(dim), "dim")],
            )
        self.dim = dim

    # Reading

    def changes(self, since: int) -> Changes:
        """What changed after sequence number ``since``; 0 gives the whole catalog.

        The whole also comes where ``since`` belongs to a history that was replaced.

        Raises:
            GalleryError: the database is damaged.
        """
        with self._database.view() as connection:
            seq = int(_meta_in(connection, "seq"))
            if since > 0 and int(_meta_in(connection, "floor")) <= since:
                # From the few items that are new to their vectors. Left to itself, SQLite may go
                # through all items for the sake of their order.
                rows = connection.execute(
                    "SELECT items.id, vector FROM items INDEXED BY items_by_seq"
                    " CROSS JOIN vectors USING (id) WHERE seq > ? ORDER BY items.id",
                    (since,),
                ).fetchall()
                removed = connection.execute(
                    "SELECT id FROM removed WHERE seq > ? ORDER BY id", (since,)
                ).fetchall()
                return Changes(
                    seq=seq,
                    ids=np.array([row[0] for row in rows], np.int64),
                    vectors=self._as_array([row[1] for row in rows]),
                    removed=np.array(removed, np.int64).reshape(-1),
                )
        with self._database.view_apart() as connection:
            ids, vectors, _ = self._gather(
                connection,
                "SELECT count(*) FROM vectors",
                "SELECT id, vector, NULL FROM vectors ORDER BY id",
            )
            return Changes(
                seq=int(_meta_in(connection, "seq")),
                ids=ids,
                vectors=vectors,
                removed=np.empty(0, np.int64),
                whole=True,
            )

    def get(self, ids: Sequence[int]) -> list[Item]:
        """The items with these ids, in the same order.

        Raises:
            ItemNotFoundError: names the ids that are not there.
        """
        items = self._items(f"WHERE items.id IN ({EACH})", (_list_of(ids),))
        found = {item.id: item for item in items}
        expect_all(ids, found)
        return [found[item_id] for item_id in ids]

    def get_external(self, external_ids: Sequence[str]) -> dict[str, int]:
        """External id → id, for those of ``external_ids`` that are there."""
        return self._ids_where("external_id", external_ids)

    def ids_by_sha256(self, hashes: Sequence[str]) -> dict[str, int]:
        """Content hash → id, for those of ``hashes`` that are there; of several the first id."""
        return self._ids_where("sha256", hashes)

    def ids_by_path(self, paths: Sequence[PhotoPath]) -> dict[PhotoPath, int]:
        """Absolute path → id, for those of ``paths`` that are stored, whatever their root was."""
        with self.view():
            rows = self._database.rows("SELECT path, id FROM roots")
            roots = {str(place_named(path, self._folder)): root for path, root in rows}
            wanted = [
                (roots[str(folder)], _below(folder, path), number)
                for number, path in enumerate(paths)
                if storable(str(path))
                for folder in path.parents
                if str(folder) in roots
            ]
            rows = self._database.rows(
                "SELECT json_extract(value, '$[2]'), items.id FROM json_each(?) CROSS JOIN items"
                " ON items.root = json_extract(value, '$[0]')"
                " AND items.path = json_extract(value, '$[1]')",
                (json.dumps(wanted),),
            )
        found = dict(rows)
        return {path: found[number] for number, path in enumerate(paths) if number in found}

    def page(self, *, offset: int, limit: int, where: Filter | None = None) -> list[Item]:
        """``limit`` items in the order of their ids, after skipping ``offset``."""
        clause, values = _clause(where)
        return self._items(f"{clause} ORDER BY items.id LIMIT ? OFFSET ?", (*values, limit, offset))

    def select(self, where: Filter) -> NDArray[np.int64]:
        """The ids of the items that match, int64 (n,), ascending."""
        clause, values = _clause(where)
        rows = self._database.rows(f"SELECT items.id FROM items {clause}", values)
        return np.sort(np.fromiter((row[0] for row in rows), np.int64, len(rows)))

    def count(self, where: Filter | None = None) -> int:
        """How many items there are, or match."""
        clause, values = _clause(where)
        [(count,)] = self._database.rows(f"SELECT count(*) FROM items {clause}", values)
        return int(count)

    def values(
        self, field: str, *, where: Filter | None = None, limit: int = 50
    ) -> list[tuple[AttributeValue, int]]:
        """The values of a field and how many items have each, most frequent first.

        Args:
            field: an attribute, ``label``, ``sku`` or ``id``.
            where: count only these items.
            limit: at most so many values.

        Raises:
            FilterError: there is no such field.
        """
        condition, values = _condition(where)
        with self.view():
            field_type(field, self.fields())
            column = column_of(field)
            rows = self._database.rows(
                "SELECT min(items.id), count(*) AS items_with_it FROM items"
                f" WHERE {column} IS NOT NULL{condition} GROUP BY {column}"
                f" ORDER BY items_with_it DESC, {column} LIMIT ?",
                (*values, limit),
            )
            # Through an item: JSON keeps apart what SQLite does not, such as true and 1.
            shown = self.attribute_of([row[0] for row in rows], field)
        return [(value, count) for value, (_, count) in zip(shown, rows, strict=True)]

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The vectors of these items, float32 (n, d), in the same order.

        Raises:
            ItemNotFoundError: names the ids that are not there.
        """
        rows = self._database.rows(
            f"SELECT id, vector FROM vectors WHERE id IN ({EACH})", (_list_of(ids),)
        )
        found = dict(rows)
        expect_all(ids, found)
        return self._as_array([found[item_id] for item_id in ids])

    def labelled(
        self, where: Filter | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], list[str]]:
        """Ids (n,), vectors (n, d) and labels (n,) of all items with a label, by ascending id."""
        condition, values = _condition(where)
        with self._database.view_apart() as connection:
            return self._gather(
                connection,
                f"SELECT count(label) FROM items WHERE TRUE{condition}",
                # CROSS JOIN: through the items, in the order of their ids.
                "SELECT items.id, vector, label FROM items CROSS JOIN vectors USING (id)"
                f" WHERE +label IS NOT NULL{condition} ORDER BY items.id",
                values,
            )

    def labels_of(self, ids: Sequence[int]) -> list[str | None]:
        """The labels of these items, in the same order; None without one, or without the item."""
        found = self._column_of(ids, "label")
        return [found.get(item_id) for item_id in ids]

    def attribute_of(self, ids: Sequence[int], field: str) -> list[AttributeValue]:
        """A field of these items, in the same order; None without a value, or without the item.

        Raises:
            FilterError: there is no such field.
        """
        field_type(field, self.fields())
        if field in COLUMNS:
            found = self._column_of(ids, COLUMNS[field])
            return [found.get(item_id) for item_id in ids]
        found = self._column_of(ids, "attributes")
        return [json.loads(found.get(item_id, "{}")).get(field) for item_id in ids]

    def label_counts(self) -> tuple[int, int]:
        """How many items have a label, and how many different labels there are."""
        [(items, labels)] = self._database.rows(
            "SELECT count(label), count(DISTINCT label) FROM items"
        )
        return int(items), int(labels)

    def files(self, root: PhotoPath) -> dict[str, tuple[int, int]]:
        """Path → (size, mtime_ns) of the photos stored from ``root``."""
        rows = self._database.rows(
            "SELECT items.path, size, mtime_ns FROM items"
            " JOIN roots ON roots.id = items.root WHERE roots.path = ?",
            (self._root_name(root),),
        )
        return {path: (size, mtime_ns) for path, size, mtime_ns in rows}

    # Care

    def checkpoint(self) -> None:
        """Move SQLite's log into the database and cut it to nothing, unless readers need it."""
        self._database.maintain("PRAGMA wal_checkpoint(TRUNCATE)")

    def vacuum(self) -> None:
        """Give unused disk space back, and forget attributes that no item has any more.

        Raises:
            GalleryError: the database cannot be written to; it needs as much space again.
        """
        with self._database.change() as connection:
            for name in self.fields():
                expression = field_expression(name)
                used = f"SELECT 1 FROM items WHERE {expression} IS NOT NULL LIMIT 1"
                if not connection.execute(used).fetchall():
                    drop_field(connection, name)
        self._database.maintain("VACUUM")

    def backup(self, target_file: Path) -> None:
        """Write a copy of the catalog as it is now to a new file; others may change it meanwhile.

        Raises:
            GalleryError: the catalog is damaged, or the file cannot be written.
        """
        with self._database.view_apart() as connection:
            try:
                with closing(sqlite3.connect(target_file, isolation_level=None)) as target:
                    connection.backup(target)
            except sqlite3.OperationalError as error:
                raise GalleryError(
                    f"{self.path} cannot be copied to {target_file}: {error}."
                ) from error

    def integrity(self) -> list[str]:
        """What is wrong inside the catalog, in sentences; empty if all is well.

        Looks for damage to the file, for items without a vector and vectors without an item, and
        for vectors of a wrong length, with NaN or not of unit length. Of each kind the first
        ``PROBLEMS_SHOWN`` are told; where the file is damaged, only that.
        """
        with self._database.view_apart() as connection:
            if problems := _damage(connection):
                return problems  # what is in its rows is no longer known, or cannot be read
            for query, problem in (
                ("SELECT id FROM items EXCEPT SELECT id FROM vectors", "item {} has no vector."),
                ("SELECT id FROM vectors EXCEPT SELECT id FROM items", "vector {} has no item."),
            ):
                rows = connection.execute(f"{query} LIMIT {PROBLEMS_SHOWN}").fetchall()
                problems += [problem.format(item_id) for (item_id,) in rows]
            chunks = _chunks(connection.execute("SELECT id, vector FROM vectors"))
            of_vectors = (problem for rows in chunks for problem in self._vector_problems(rows))
            problems += islice(of_vectors, PROBLEMS_SHOWN)
        return problems

    # Inside

    def _expect_format(self, folder: Path) -> None:
        version = self.meta("format_version")
        if version == str(FORMAT_VERSION):
            return
        if version != "1":
            raise GalleryError(
                f"{folder} has gallery format {version}; this release reads {FORMAT_VERSION}. "
                "Use the release that made it, or a later one."
            )
        if not self._database.writable:
            raise GalleryError(
                f"{folder} has gallery format 1; this release reads {FORMAT_VERSION}. `dscl index "
                f"compact --gallery {folder}` upgrades it, as does anything else that changes it."
            )
        with self._database.change() as connection:
            upgrade(connection)

    @contextmanager
    def _change(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """One transaction with the next sequence number; undone wholly on an error."""
        with self._database.change() as connection:
            seq = self.seq() + 1
            connection.execute("UPDATE meta SET value = ? WHERE key = 'seq'", (str(seq),))
            yield connection, seq

    def _store(self, items: Sequence[NewItem], *, replace_by_external_id: bool) -> list[int]:
        for item in items:
            check_item(item, self.dim)
        external_ids = [item.external_id for item in items if item.external_id is not None]
        if len(set(external_ids)) < len(external_ids):
            [(twice, _)] = Counter(external_ids).most_common(1)
            raise taken(twice, "another of the items to be stored")
        with self._change() as (connection, seq):
            grew = self._admit(connection, [(str(item.image), item.attributes) for item in items])
            gone = set(self.ids_by_path([item.image for item in items]).values())
            owners = self.get_external(external_ids)
            if replace_by_external_id:
                gone.update(owners.values())
            for external_id, owner in owners.items():
                if owner not in gone:
                    raise taken(external_id, f"item {owner}")
            _delete(connection, sorted(gone), seq)
            first = _next_id(connection)
            ids = list(range(first, first + len(items)))
            self._write(connection, items, ids, seq)
            # Whenever the catalog has doubled, or has an index more, SQLite learns which index is
            # the best one to start from.
            if grew or first.bit_length() != (first + len(items)).bit_length():
                connection.execute("ANALYZE items")
        return ids

    def _write(
        self, connection: sqlite3.Connection, items: Sequence[NewItem], ids: list[int], seq: int
    ) -> None:
        folders = {self._root_name(item.root) for item in items}
        connection.executemany(
            "INSERT OR IGNORE INTO roots (path) VALUES (?)", [(folder,) for folder in folders]
        )
        roots = dict(connection.execute("SELECT path, id FROM roots").fetchall())
        last = {item.image: item_id for item, item_id in zip(items, ids, strict=True)}
        pairs = list(zip(items, ids, strict=True))
        stored = [(item, item_id) for item, item_id in pairs if last[item.image] == item_id]
        connection.executemany(
            f"INSERT INTO items ({ITEM_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    item_id, seq, roots[self._root_name(item.root)], item.path, item.sha256,
                    item.size, item.mtime_ns, item.label, _to_json(item.attributes),
                    item.external_id,
                )
                for item, item_id in stored
            ],
        )  # fmt: skip
        connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)",
            [(item_id, np.asarray(item.vector, np.float32).tobytes()) for item, item_id in stored],
        )
        connection.executemany(
            "INSERT INTO removed VALUES (?, ?)",
            [(item_id, seq) for item, item_id in pairs if last[item.image] != item_id],
        )

    def _root_name(self, root: PhotoPath) -> str:
        """A root as it is stored: relative if it is the gallery's own, which may be moved."""
        return PHOTOS_FOLDER if root == self._folder / PHOTOS_FOLDER else str(root)

    def _admit(
        self,
        connection: sqlite3.Connection,
        described: Sequence[tuple[str, Mapping[str, AttributeValue]]],
    ) -> bool:
        """Hold attributes against the fields there are, and make those that are new.

        Returns:
            Whether there were new ones.
        """
        new = new_types(self.fields(), described)
        for name, kind in new.items():
            add_field(connection, name, kind)
        return bool(new)

    def _copy_from(self, source: sqlite3.Connection, connection: sqlite3.Connection) -> int:
        shift = self.seq() + 1
        next_id = max(_next_id(source), _next_id(connection))
        for name in self.fields():
            drop_field(connection, name)
        for table in ("vectors", "items", "removed", "roots"):
            connection.execute(f"DELETE FROM {table}")
        columns = ITEM_COLUMNS.replace("seq", "seq + ?")
        for table, rows in (
            ("roots (id, path)", source.execute("SELECT id, path FROM roots")),
            (f"items ({ITEM_COLUMNS})", source.execute(f"SELECT {columns} FROM items", (shift,))),
            ("vectors (id, vector)", source.execute("SELECT id, vector FROM vectors")),
            ("removed (id, seq)", source.execute("SELECT id, seq + ? FROM removed", (shift,))),
        ):
            marks = ", ".join("?" for _ in rows.description)
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        for name, kind in source.execute("SELECT name, type FROM fields ORDER BY id").fetchall():
            add_field(connection, name, kind)
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'items'")
        connection.execute("INSERT INTO sqlite_sequence VALUES ('items', ?)", (next_id - 1,))
        meta = dict(source.execute("SELECT key, value FROM meta").fetchall())
        meta |= {"seq": str(shift + int(meta["seq"])), "floor": str(shift)}
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        connection.execute("ANALYZE items")
        return shift

    def _expect(self, ids: Sequence[int]) -> None:
        expect_all(ids, self._column_of(ids, "id"))

    def _column_of(self, ids: Sequence[int], column: str) -> dict[int, Any]:
        return dict(
            self._database.rows(
                f"SELECT items.id, {column} FROM items WHERE items.id IN ({EACH})",
                (_list_of(ids),),
            )
        )

    def _ids_where(self, column: str, texts: Sequence[str]) -> dict[str, int]:
        rows = self._database.rows(
            f"SELECT {column}, min(items.id) FROM json_each(?) CROSS JOIN items"
            f" ON {column} = json_each.value GROUP BY {column}",
            (json.dumps([text for text in texts if storable(text)]),),
        )
        return dict(rows)

    def _items(self, clause: str, values: Sequence[object]) -> list[Item]:
        rows = self._database.rows(
            "SELECT items.id, external_id, label, attributes, roots.path, items.path, size,"
            f" mtime_ns, sha256 FROM items JOIN roots ON roots.id = items.root {clause}",
            values,
        )
        roots = {root: place_named(root, self._folder) for root in {row[4] for row in rows}}
        return [
            Item(
                id=item_id,
                external_id=external_id,
                label=label,
                attributes=json.loads(attributes),
                root=roots[root],
                path=path,
                size=size,
                mtime_ns=mtime_ns,
                sha256=sha256,
            )
            for item_id, external_id, label, attributes, root, path, size, mtime_ns, sha256 in rows
        ]

    def _gather(
        self,
        connection: sqlite3.Connection,
        counting: str,
        reading: str,
        values: Sequence[object] = (),
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], list[Any]]:
        """The columns of a query for id, vector and something else, without holding all rows."""
        [(n,)] = connection.execute(counting, values).fetchall()
        ids = np.empty(n, np.int64)
        vectors = np.empty((n, self.dim), np.float32)
        others: list[Any] = []
        for rows in _chunks(connection.execute(reading, values)):
            part = slice(len(others), len(others) + len(rows))
            ids[part] = [row[0] for row in rows]
            vectors[part] = self._as_array([row[1] for row in rows])
            others += [row[2] for row in rows]
        return ids[: len(others)], vectors[: len(others)], others

    def _as_array(self, blobs: Sequence[bytes]) -> NDArray[np.float32]:
        size = self.dim * np.dtype(np.float32).itemsize
        if any(len(blob) != size for blob in blobs):
            raise GalleryError(
                f"{self.path} holds a vector that has not {self.dim} values: the catalog is "
                "damaged. `dscl index check` says where."
            )
        return np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), self.dim)

    def _vector_problems(self, rows: Sequence[tuple[int, bytes]]) -> list[str]:
        size = self.dim * np.dtype(np.float32).itemsize
        problems = [
            f"vector {item_id} has {len(blob)} bytes, expected {size}."
            for item_id, blob in rows
            if len(blob) != size
        ]
        whole = [(item_id, blob) for item_id, blob in rows if len(blob) == size]
        lengths = np.linalg.norm(self._as_array([blob for _, blob in whole]), axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # NaN is bad, too
        problems += [f"vector {whole[i][0]} has length {lengths[i]:g}, expected 1." for i in bad]
        return problems


def _delete(connection: sqlite3.Connection, ids: Sequence[int], seq: int) -> None:
    listed = _list_of(ids)
    connection.execute(f"DELETE FROM vectors WHERE id IN ({EACH})", (listed,))
    connection.execute(f"DELETE FROM items WHERE id IN ({EACH})", (listed,))
    connection.execute(
        "INSERT INTO removed SELECT DISTINCT value, ? FROM json_each(?)", (seq, listed)
    )


def _next_id(connection: sqlite3.Connection) -> int:
    [(last,)] = connection.execute(
        "SELECT max(seq) FROM sqlite_sequence WHERE name = 'items'"
    ).fetchall()
    return int(last or 0) + 1


def _meta_in(connection: sqlite3.Connection, key: str) -> str:
    [(value,)] = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchall()
    return str(value)


def _damage(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file; it may have to stop where it cannot read on."""
    found = []
    try:
        for (text,) in connection.execute(f"PRAGMA integrity_check({PROBLEMS_SHOWN})"):
            if text != "ok":
                found.append(text)
    except sqlite3.DatabaseError as error:
        if not error.sqlite_errorname.startswith("SQLITE_CORRUPT"):
            raise
        found.append(str(error))
    return [f"the database is damaged: {text}." for text in found]


def _chunks(cursor: sqlite3.Cursor) -> Iterator[list[Any]]:
    while rows := cursor.fetchmany(VECTORS_PER_READ):
        yield rows


def _clause(where: Filter | None) -> tuple[str, tuple[str | int, ...]]:
    return ("", ()) if where is None else (f"WHERE {where.condition}", where.values)


def _condition(where: Filter | None) -> tuple[str, tuple[str | int, ...]]:
    return ("", ()) if where is None else (f" AND ({where.condition})", where.values)


def _below(folder: PhotoPath, path: PhotoPath) -> str:
    """The rest of ``path``, which begins with ``folder``, with forward slashes."""
    return path.as_posix().removeprefix(folder.as_posix()).removeprefix("/")


def _list_of(ids: Sequence[int]) -> str:
    return json.dumps([int(item_id) for item_id in ids if 0 < item_id <= MAX_ID])


def _to_json(attributes: Mapping[str, AttributeValue]) -> str:
    return json.dumps(attributes, ensure_ascii=False, allow_nan=False)
