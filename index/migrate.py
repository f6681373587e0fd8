"""Another model for a gallery that is being served.

All photos are embedded again beside the live gallery, which goes on serving and may go on changing.
Then, with changes held off for the moment it takes, the new gallery is put in its place. What was
embedded is kept on disk by the photo's content, so that a migration that was stopped goes on.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.address import GalleryAddress, MilvusAddress
from index.catalog import FILE as CATALOG_FILE
from index.catalog import Catalog
from index.errors import GalleryError, InvalidArgumentError
from index.files import sync_folder
from index.gallery import MODEL_FOLDER, Gallery
from index.items import Item
from index.kept_photos import link_photos
from index.lock import WriterLock
from index.model import Model
from index.parallel import check_workers
from index.reembedding import MigrateReport, Vectors, embed_missing, refuse_lost
from index.scan import scan
from index.tuning import Progress

__all__ = ["migrate"]

#: Linux: the two names change places in one step.
RENAME_EXCHANGE = 2
AT_FDCWD = -100


def migrate(
    address: GalleryAddress,
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
        address: the gallery.
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
    if isinstance(address, MilvusAddress):
        from index.milvus_migrate import migrate_milvus  # which needs an extra

        return migrate_milvus(
            address,
            model,
            skip_missing=skip_missing,
            workers=workers,
            progress=progress,
            building=building,
        )
    folder = address.absolute()
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
        with WriterLock.acquire(work), Vectors.open(work / "vectors.sqlite") as vectors:
            embed = partial(embed_missing, model=model, vectors=vectors, workers=workers)
            made, lost = embed(catalog, progress=progress)
            refuse_lost(lost, skip_missing)
            with WriterLock.acquire(folder):
                more, lost = embed(catalog)  # what came meanwhile
                refuse_lost(lost, skip_missing)
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


def _assemble(
    catalog: Catalog,
    fresh: Path,
    model: Model,
    vectors: Vectors,
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


def _batches(catalog: Catalog, vectors: Vectors) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
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
