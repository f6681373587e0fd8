"""Embed the photos of a gallery again, for another model: stopped and run again, it continues."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.contents import Contents
from index.errors import GalleryError, ImageError
from index.files import sha256_bytes
from index.items import Item
from index.model import Model
from index.parallel import in_order
from index.scan import scan
from index.stores import read_photo

__all__ = ["MigrateReport", "Vectors", "embed_missing", "embed_photo", "refuse_lost"]

#: Vectors kept by one durable transaction: the most that a stop can lose.
BATCH = 64

#: Lost photos named in an error.
SHOWN = 10


@dataclass(frozen=True)
class MigrateReport:
    """What a migration did."""

    items: int
    embedded: int  #: vectors made by this call; the others were there from one that was stopped
    removed: list[str]  #: photos that could not be embedded again; their items are gone
    former: str  #: where the gallery as it was lies now


class Vectors:
    """Vectors of the new model by the SHA-256 of their photo, durable as they come."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[Vectors]:
        """Those that ``file`` keeps, which is made if it is not there."""
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors"
                " (sha256 TEXT PRIMARY KEY, vector BLOB NOT NULL) STRICT, WITHOUT ROWID"
            )
            yield cls(connection)

    def __contains__(self, sha256: str) -> bool:
        query = "SELECT 1 FROM vectors WHERE sha256 = ?"
        return self._connection.execute(query, (sha256,)).fetchone() is not None

    def __getitem__(self, sha256: str) -> NDArray[np.float32]:
        query = "SELECT vector FROM vectors WHERE sha256 = ?"
        (blob,) = self._connection.execute(query, (sha256,)).fetchone()
        return np.frombuffer(blob, np.float32)

    def put(self, rows: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Keep vectors by the hashes of their photos; all of them or, on an error, none.

        Raises:
            GalleryError: the disk is full, or cannot be written to.
        """
        values = [(sha256, vector.tobytes()) for sha256, vector in rows]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", values)
            self._connection.execute("COMMIT")
        except BaseException as error:
            self._connection.rollback()
            if isinstance(error, sqlite3.OperationalError):
                raise GalleryError(
                    f"vectors cannot be kept: {error}. Mend that and run it again; it goes on."
                ) from error
            raise


def embed_missing(
    contents: Contents,
    *,
    model: Model,
    vectors: Vectors,
    workers: int,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[int, list[Item]]:
    """Embed the photos that have no vector yet; returns how many, and the items whose cannot be."""
    total = contents.count()
    tell = progress or (lambda count, total: None)

    def todo() -> Iterator[Item]:
        for item in chain.from_iterable(scan(contents)):
            if item.sha256 in vectors:
                tell(1, total)
            else:
                yield item

    made, lost = 0, []
    batch: dict[str, NDArray[np.float32]] = {}
    with closing(in_order(partial(embed_photo, model), todo(), workers)) as results:
        for item, vector in results:
            if vector is None:
                lost.append(item)
            else:
                batch[item.sha256] = vector
                made += 1
            if len(batch) == BATCH:
                vectors.put(batch.items())
                batch.clear()
            tell(1, total)
    vectors.put(batch.items())
    # A copy of a lost photo may have been embedded after it was asked for.
    return made, [item for item in lost if item.sha256 not in vectors]


def embed_photo(model: Model, item: Item) -> tuple[Item, NDArray[np.float32] | None]:
    """The photo's vector; None if it is not what was indexed, or cannot be read."""
    try:
        data = read_photo(item.image)
        if sha256_bytes(data) != item.sha256:
            return item, None
        return item, model.embed(model.prepare(data)[None])[0]
    except (OSError, ImageError):
        return item, None


def refuse_lost(lost: list[Item], skip_missing: bool) -> None:
    """Raises GalleryError, which names lost photos, unless they are to be gone without."""
    if not lost or skip_missing:
        return
    names = "".join(f"\n  {item.image} (item {item.id})" for item in lost[:SHOWN])
    more = f"\n  … and {len(lost) - SHOWN} more" * (len(lost) > SHOWN)
    raise GalleryError(
        f"{len(lost)} photos are gone or not what was indexed, so they cannot be embedded again: "
        "put them back, index them again, or go without them by --skip-missing. What was embedded "
        f"is kept for the next run.{names}{more}"
    )
