"""Items, attributes and vectors on disk: the truth that everything else is derived from.

One SQLite database in WAL mode with full synchronisation, so a change that was acknowledged
survives a crash or a power cut. Every change raises the sequence number; readers in other
processes ask for what came after the number they know. No search and no embedding happens here.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import GalleryError, ItemNotFoundError
from index.photos import AttributeValue

__all__ = ["Catalog", "Changes", "Item", "NewItem"]

FORMAT_VERSION = 1
FILE = "catalog.sqlite"

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE roots (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE items (
    -- AUTOINCREMENT: an id that was removed never names another photo
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    seq INTEGER NOT NULL,
    root INTEGER NOT NULL REFERENCES roots (id),
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    label TEXT,
    attributes TEXT NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (root, path)
) STRICT;
CREATE INDEX items_by_seq ON items (seq);
CREATE INDEX items_by_label ON items (label);
CREATE TABLE removed (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL) STRICT;
CREATE INDEX removed_by_seq ON removed (seq);
"""

#: SQLite's largest integer: no item has an id beyond.
MAX_ID = 2**63 - 1

#: SQLite's limit on bound values in one statement is far above this.
IDS_PER_QUERY = 500


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """A photo with its vector, ready to be stored.

    ``path`` is relative to ``root``; ``size`` and ``mtime_ns`` are the file's when it was read;
    ``vector`` is float32 [d] of unit length (other floats are stored as float32).
    """

    root: Path
    path: str
    sha256: str
    size: int
    mtime_ns: int
    label: str | None
    attributes: dict[str, AttributeValue]
    vector: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A stored item. ``image`` is the photo's absolute path; the file may since have moved."""

    id: int
    label: str | None
    attributes: dict[str, AttributeValue]
    image: Path
    sha256: str


@dataclass(frozen=True)
class Changes:
    """What changed up to ``seq``: vectors that came, ids that went."""

    seq: int
    ids: NDArray[np.int64]  #: (n,), ascending
    vectors: NDArray[np.float32]  #: (n, d)
    removed: NDArray[np.int64]


class Catalog:
    """The database of one gallery. Safe to use from several threads; one process writes."""

    def __init__(self, folder: Path) -> None:
        """Open an existing catalog.

        Raises:
            GalleryError: no catalog there, not a database, or of another format version.
        """
        self.path = folder / FILE
        if not self.path.is_file():
            raise GalleryError(
                f"{folder} is not a gallery: {FILE} is missing. "
                "Make one with `dscl index build --model … --images … --gallery …`."
            )
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=30
        )
        try:
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            version = self.meta("format_version")
            if version != str(FORMAT_VERSION):
                raise GalleryError(
                    f"{folder} has gallery format {version}; this release reads {FORMAT_VERSION}. "
                    "Use the release that made it."
                )
            self.dim = int(self.meta("dim"))
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise self._unreadable(error) from error
        except GalleryError:
            self._connection.close()
            raise

    @classmethod
    def create(cls, folder: Path, *, model_sha256: str, dim: int) -> None:
        """Make an empty catalog in an existing folder."""
        connection = sqlite3.connect(folder / FILE, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(SCHEMA)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                {
                    "format_version": str(FORMAT_VERSION),
                    "model_sha256": model_sha256,
                    "dim": str(dim),
                    "seq": "0",
                }.items(),
            )
        finally:
            connection.close()

    def close(self) -> None:
        """Close the database. Closing twice is harmless."""
        with self._lock:
            self._connection.close()

    def meta(self, key: str) -> str:
        """A value that the gallery as a whole has, such as ``model_sha256``."""
        row = self._row("SELECT value FROM meta WHERE key = ?", (key,))
        if row is None:
            raise GalleryError(f"{self.path} has no {key!r}: the catalog is incomplete.")
        return str(row[0])

    def __len__(self) -> int:
        row = self._row("SELECT count(*) FROM items")
        assert row is not None  # count(*) always gives a row
        return int(row[0])

    # Writing

    def insert(self, items: Sequence[NewItem]) -> list[int]:
        """Store items in one transaction; a photo already there by its absolute path is replaced.

        Returns:
            The new ids, in the order of ``items``.

        Raises:
            GalleryError: the database cannot be written to (disk full, …); then none is stored.
        """
        with self._change() as (execute, seq):
            roots: dict[Path, int] = {}
            ids = []
            for item in items:
                if item.root not in roots:
                    roots[item.root] = self._root_id(item.root)
                old_id = self._id_at(item.root / item.path)
                if old_id is not None:
                    execute("DELETE FROM items WHERE id = ?", (old_id,))
                    execute("INSERT INTO removed VALUES (?, ?)", (old_id, seq))
                values = (
                    seq, roots[item.root], item.path, item.sha256, item.size, item.mtime_ns,
                    item.label, json.dumps(item.attributes, ensure_ascii=False),
                    np.asarray(item.vector, np.float32).tobytes(),
                )  # fmt: skip
                row = execute(
                    "INSERT INTO items (seq, root, path, sha256, size, mtime_ns, label,"
                    " attributes, vector) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                    values,
                ).fetchone()
                ids.append(int(row[0]))
        return ids

    def remove(self, ids: Sequence[int]) -> None:
        """Remove items in one transaction.

        Raises:
            ItemNotFoundError: names the ids that are not there; then none is removed.
            GalleryError: the database cannot be written to; then none is removed.
        """
        with self._change() as (execute, seq):
            wanted = list(dict.fromkeys(int(item_id) for item_id in ids))
            self.get(wanted)
            for item_id in wanted:
                execute("DELETE FROM items WHERE id = ?", (item_id,))
                execute("INSERT INTO removed VALUES (?, ?)", (item_id, seq))

    @contextmanager
    def _change(self) -> Iterator[tuple[Any, int]]:
        """One transaction with the next sequence number; undone wholly on an error."""
        with self._lock:
            execute = self._connection.execute
            try:
                execute("BEGIN IMMEDIATE")
                seq = int(self.meta("seq")) + 1
                execute("UPDATE meta SET value = ? WHERE key = 'seq'", (str(seq),))
                yield execute, seq
                execute("COMMIT")
            except BaseException as error:
                self._connection.rollback()
                if isinstance(error, sqlite3.OperationalError):
                    raise GalleryError(
                        f"{self.path} cannot be changed: {error}. Nothing was; mend that and run "
                        "it again."
                    ) from error
                raise

    def _root_id(self, root: Path) -> int:
        execute = self._connection.execute
        execute("INSERT OR IGNORE INTO roots (path) VALUES (?)", (str(root),))
        row = execute("SELECT id FROM roots WHERE path = ?", (str(root),)).fetchone()
        return int(row[0])

    # Reading

    def data_version(self) -> int:
        """A number that differs after another connection has changed the database."""
        row = self._row("PRAGMA data_version")
        assert row is not None
        return int(row[0])

    def changes(self, since: int) -> Changes:
        """What changed after sequence number ``since``; 0 gives the whole catalog.

        Raises:
            GalleryError: the database is damaged.
        """
        with self._lock:
            execute = self._connection.execute
            execute("BEGIN")  # one consistent view for the three reads
            try:
                seq = int(self.meta("seq"))
                rows = execute(
                    "SELECT id, vector FROM items WHERE seq > ? ORDER BY id", (since,)
                ).fetchall()
                removed = execute("SELECT id FROM removed WHERE seq > ?", (since,)).fetchall()
            except sqlite3.DatabaseError as error:
                raise self._unreadable(error) from error
            finally:
                self._connection.rollback()
        vectors = np.frombuffer(b"".join(row[1] for row in rows), np.float32)
        return Changes(
            seq=seq,
            ids=np.array([row[0] for row in rows], np.int64),
            vectors=vectors.reshape(len(rows), self.dim),
            removed=np.array([row[0] for row in removed], np.int64),
        )

    def get(self, ids: Sequence[int]) -> list[Item]:
        """The items with these ids, in the same order.

        Raises:
            ItemNotFoundError: names the ids that are not there.
        """
        found: dict[int, Item] = {}
        for start in range(0, len(ids), IDS_PER_QUERY):
            part = [int(i) for i in ids[start : start + IDS_PER_QUERY] if 0 < i <= MAX_ID]
            marks = ",".join("?" * len(part))
            for item in self._items(f"WHERE items.id IN ({marks})", part):
                found[item.id] = item
        missing = [item_id for item_id in ids if item_id not in found]
        if missing:
            raise _not_found(missing)
        return [found[item_id] for item_id in ids]

    def page(self, *, offset: int, limit: int) -> list[Item]:
        """``limit`` items in the order of their ids, after skipping ``offset``."""
        return self._items("ORDER BY items.id LIMIT ? OFFSET ?", (limit, offset))

    def labelled(self) -> tuple[NDArray[np.float32], list[str]]:
        """Vectors (n, d) and labels (n,) of all items that have a label, by ascending id."""
        rows = self._rows("SELECT vector, label FROM items WHERE label IS NOT NULL ORDER BY id")
        vectors = np.frombuffer(b"".join(row[0] for row in rows), np.float32)
        return vectors.reshape(len(rows), self.dim), [row[1] for row in rows]

    def label_counts(self) -> tuple[int, int]:
        """How many items have a label, and how many different labels there are."""
        row = self._row("SELECT count(label), count(DISTINCT label) FROM items")
        assert row is not None
        return int(row[0]), int(row[1])

    def files(self, root: Path) -> dict[str, tuple[int, int]]:
        """Path → (size, mtime_ns) of the photos stored from ``root``."""
        rows = self._rows(
            "SELECT items.path, size, mtime_ns FROM items"
            " JOIN roots ON roots.id = items.root WHERE roots.path = ?",
            (str(root),),
        )
        return {path: (size, mtime_ns) for path, size, mtime_ns in rows}

    def ids_by_path(self, paths: Sequence[Path]) -> dict[Path, int]:
        """Absolute path → id, for those of ``paths`` that are stored."""
        found = ((path, self._id_at(path)) for path in paths)
        return {path: item_id for path, item_id in found if item_id is not None}

    def _id_at(self, file: Path) -> int | None:
        """The item of this photo, whichever of the folders above it was its root."""
        for folder in file.parents:
            row = self._row(
                "SELECT items.id FROM items JOIN roots ON roots.id = items.root"
                " WHERE roots.path = ? AND items.path = ?",
                (str(folder), file.relative_to(folder).as_posix()),
            )
            if row is not None:
                return int(row[0])
        return None

    def _items(self, clause: str, values: Sequence[object]) -> list[Item]:
        rows = self._rows(
            "SELECT items.id, label, attributes, roots.path, items.path, sha256 FROM items"
            f" JOIN roots ON roots.id = items.root {clause}",
            values,
        )
        return [
            Item(
                id=item_id,
                label=label,
                attributes=json.loads(attributes),
                image=Path(root, path),
                sha256=sha256,
            )
            for item_id, label, attributes, root, path, sha256 in rows
        ]

    def _unreadable(self, error: sqlite3.DatabaseError) -> GalleryError:
        return GalleryError(f"{self.path} cannot be read as a catalog: {error}.")

    def _row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        return row

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()


def _not_found(ids: Sequence[int]) -> ItemNotFoundError:
    shown = ", ".join(str(item_id) for item_id in ids[:5]) + (", …" if len(ids) > 5 else "")
    return ItemNotFoundError(f"no item with id {shown} in the gallery.")
