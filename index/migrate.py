"""Another model for a gallery that is being served.

All photos are embedded again beside the live gallery, which goes on serving and may go on changing.
Then, with changes held off for the moment it takes, the new gallery is put in its place. What was
embedded is kept on disk by the photo's content, so that a migration that was stopped goes on.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.catalog import FILE as CATALOG_FILE
from index.catalog import Catalog, Item
from index.errors import GalleryError, ImageError, InvalidArgumentError
from index.files import sha256_bytes, sync_folder
from index.gallery import MODEL_FOLDER, Gallery
from index.kept_photos import link_photos
from index.lock import WriterLock
from index.model import Model
from index.parallel import check_workers, in_order
from index.scan import scan
from index.stores import read_photo
from index.tuning import Progress

__all__ = ["MigrateReport", "migrate"]

#: Vectors kept by one durable transaction: the most that a stop can lose.
BATCH = 64

#: Lost photos named in an error.
SHOWN = 10

#: Linux: the two names change places in one step.
RENAME_EXCHANGE = 2
AT_FDCWD = -100


@dataclass(frozen=True)
class MigrateReport:
    """What ``migrate`` did."""

    items: int
    embedded: int  #: vectors made by this call; the others were there from one that was stopped
    removed: list[str]  #: photos that could not be embedded again; their items are gone
    former: str  #: where the gallery as it was lies now


def migrate(
    folder: Path,
    model: Model,
    *,
    skip_missing: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    building: Progress | None = None,
) -> MigrateReport:
    """Re-embed a gallery with another model and put the result in its place.

    Items keep their ids, labels and attributes. Readers that have the gallery open go on with the
    old model and the items of that moment until they open it again. The gallery as it was is kept
    beside the new one. On an error or a stop the gallery is as it was.

    Args:
        folder: the gallery.
        model: the new model.
        skip_missing: go without the items whose photo is gone, unreadable or no longer the one that
            was indexed, instead of refusing.
        workers: threads that embed; default: one for each core.
        progress: called with (items just dealt with, all items).
        building: told how far the new index is.

    Raises:
        GalleryError: photos are missing; another process changes the gallery when the new one is
            ready (run it again then); or the disk is full.
        InvalidArgumentError: the gallery is of this model already.
    """
    workers = check_workers(workers)
    folder = folder.absolute()
    catalog = Catalog(folder)
    try:
        former_model = catalog.meta("model_sha256")
        if (former_model, catalog.meta("precision")) == (model.sha256, model.precision):
            raise InvalidArgumentError(
                f"gallery {folder} is of model {model.card.name} ({model.sha256[:12]}…) in "
                f"{model.precision} already: there is nothing to migrate."
            )
        former = folder.with_name(f"{folder.name}.before-{model.sha256[:8]}-{model.precision}")
        if former.exists():
            raise GalleryError(
                f"{former}, where the gallery as it is would be kept, exists already: move it away."
            )
        work = folder.with_name(f".{folder.name}.to-{model.sha256[:16]}-{model.precision}")
        work.mkdir(exist_ok=True)
        with WriterLock.acquire(work), _Vectors.open(work / "vectors.sqlite") as vectors:
            embed = partial(_embed_missing, model=model, vectors=vectors, workers=workers)
            made, lost = embed(catalog, progress=progress)
            _refuse_lost(lost, skip_missing)
            with WriterLock.acquire(folder):
                more, lost = embed(catalog)  # what came meanwhile
                _refuse_lost(lost, skip_missing)
                fresh = work / "gallery"
                items = _assemble(catalog, fresh, model, vectors, lost, building)
                _exchange(fresh, folder)
                fresh.replace(former)
                sync_folder(folder.parent)
    finally:
        catalog.close()
    shutil.rmtree(work)
    return MigrateReport(
        items=items,
        embedded=made + more,
        removed=[str(item.image) for item in lost],
        former=str(former),
    )


class _Vectors:
    """Vectors of the new model by the SHA-256 of their photo, durable as they come."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[_Vectors]:
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


def _embed_missing(
    catalog: Catalog,
    *,
    model: Model,
    vectors: _Vectors,
    workers: int,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[int, list[Item]]:
    """Embed the photos that have no vector yet; returns how many, and the items whose cannot be."""
    total = catalog.count()
    tell = progress or (lambda count, total: None)

    def todo() -> Iterator[Item]:
        for item in chain.from_iterable(scan(catalog)):
            if item.sha256 in vectors:
                tell(1, total)
            else:
                yield item

    made, lost = 0, []
    batch: dict[str, NDArray[np.float32]] = {}
    with closing(in_order(partial(_embed, model), todo(), workers)) as results:
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


def _embed(model: Model, item: Item) -> tuple[Item, NDArray[np.float32] | None]:
    """The photo's vector; None if it is not what was indexed, or cannot be read."""
    try:
        data = read_photo(item.image)
        if sha256_bytes(data) != item.sha256:
            return item, None
        return item, model.embed(model.prepare(data)[None])[0]
    except (OSError, ImageError):
        return item, None


def _refuse_lost(lost: list[Item], skip_missing: bool) -> None:
    if not lost or skip_missing:
        return
    names = "".join(f"\n  {item.image} (item {item.id})" for item in lost[:SHOWN])
    more = f"\n  … and {len(lost) - SHOWN} more" * (len(lost) > SHOWN)
    raise GalleryError(
        f"{len(lost)} photos are gone or not what was indexed, so they cannot be embedded again: "
        "put them back, index them again, or go without them by --skip-missing. What was embedded "
        f"is kept for the next run.{names}{more}"
    )


def _assemble(
    catalog: Catalog,
    fresh: Path,
    model: Model,
    vectors: _Vectors,
    lost: list[Item],
    building: Progress | None,
) -> int:
    """The gallery with the new model, whole, in folder ``fresh``; returns its number of items."""
    if fresh.exists():
        shutil.rmtree(fresh)  # of a run that was stopped here
    fresh.mkdir()
    catalog.backup(fresh / CATALOG_FILE)
    copy = Catalog(fresh, writable=True)
    try:
        if lost:
            copy.remove([item.id for item in lost])
        batches = _batches(copy, vectors)
        copy.replace_vectors(batches, model_sha256=model.sha256, dim=model.card.dim)
        copy.set_meta("precision", model.precision)
    finally:
        copy.close()
    model.copy_to(fresh / MODEL_FOLDER)
    link_photos(catalog.path.parent, fresh)
    with Gallery.open(fresh, writable=True) as gallery:
        gallery.rebuild(progress=building)
        items = len(gallery)
    sync_folder(fresh)
    return items


def _batches(
    catalog: Catalog, vectors: _Vectors
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    for page in scan(catalog):
        yield [item.id for item in page], np.stack([vectors[item.sha256] for item in page])


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places: in one step where Linux offers it, else in three."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(one), os.fsencode(other)
        if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
            return
    aside = one.with_name(f"{one.name}.aside")
    other.replace(aside)
    try:
        one.replace(other)
    except BaseException:
        aside.replace(other)
        raise
    aside.replace(one)
