"""Copy a gallery: folder or Milvus, to folder or Milvus. Ids, attributes and vectors stay the same.

Items go over in the order of their ids, in durable steps; a copy that was stopped goes on after the
last of them. Photos that the gallery keeps itself go with their items; those of folders that were
indexed stay where they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.address import GalleryAddress
from index.errors import GalleryError, ItemNotFoundError
from index.files import write_atomically
from index.gallery import Gallery, expect_model, is_there
from index.items import Item, NewItem
from index.stores import is_remote, reaching, read_photo

__all__ = ["CopyReport", "copy_gallery"]

#: The most items named in an error.
SHOWN = 5


@dataclass(frozen=True)
class CopyReport:
    """What ``copy_gallery`` did."""

    items: int  #: in the copy now
    copied: int  #: by this call; the others were there from one that was stopped
    photos: int  #: that went with them
    missing_photos: int  #: that the source names and does not have


def copy_gallery(
    source: GalleryAddress,
    target: GalleryAddress,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> CopyReport:
    """Copy all items of a gallery to a new one, or go on with a copy that was stopped.

    Others may search and change the source meanwhile; what they change may or may not be copied.

    Args:
        source: the gallery.
        target: where nothing is yet, or an unfinished copy of ``source``.
        progress: called with (items just copied, all items).

    Raises:
        GalleryError: the target holds what the source does not; the source keeps photos of its own
            and the target has no place for them; or either cannot be reached, read or written.
        ModelMismatchError: the target is of another model.
    """
    with Gallery.open(source) as origin:
        if is_there(target):
            copy = Gallery.open(target, writable=True)
        else:
            facts = origin.info().index
            copy = Gallery.create(
                target,
                origin.model,
                index_kind=facts.requested,
                target_recall=facts.target_recall,
            )
        with copy:
            expect_model(target, copy.model.sha256, origin.model)
            if copy.model.precision != origin.model.precision:
                raise GalleryError(
                    f"{target} holds vectors in {copy.model.precision}, {source} in "
                    f"{origin.model.precision}: copy to a new gallery."
                )
            return _copy(origin, copy, progress or (lambda count, total: None))


def _copy(origin: Gallery, copy: Gallery, tell: Callable[[int, int], object]) -> CopyReport:
    there = copy.ids()
    total = origin.count()
    strangers = np.setdiff1d(there, origin.ids(), assume_unique=True)
    last = int(there[-1]) if len(there) else 0
    if len(strangers):
        shown = ", ".join(map(str, strangers[:SHOWN].tolist()))
        raise GalleryError(
            f"{copy.path} holds {len(strangers)} items that {origin.path} does not (ids {shown}): "
            "it is no unfinished copy of it, or they were removed since. Copy to a new gallery."
        )
    tell(len(there), total)
    copied = photos = missing = 0
    for page in origin.scan(after=last):
        items, vectors = _whole(origin, page)
        new = [
            (item.id, _as_new(origin, copy, item, vector))
            for item, vector in zip(items, vectors, strict=True)
        ]
        for item in items:
            if item.root == origin.photos_folder:
                if _copy_photo(item, copy):
                    photos += 1
                else:
                    missing += 1
        copy.put(new)  # after its photos: an item never names what is not there yet
        copied += len(items)
        tell(len(page), total)
    copy.settle()
    return CopyReport(len(copy), copied, photos, missing)


def _whole(gallery: Gallery, items: Sequence[Item]) -> tuple[list[Item], NDArray[np.float32]]:
    """The items with their vectors, without those that were removed since they were read."""
    kept = list(items)
    while True:
        try:
            return kept, gallery.vectors([item.id for item in kept])
        except ItemNotFoundError:
            left = set(gallery.ids({"id": [item.id for item in kept]}).tolist())
            kept = [item for item in kept if item.id in left]


def _as_new(origin: Gallery, copy: Gallery, item: Item, vector: NDArray[np.float32]) -> NewItem:
    root = item.root
    if root == origin.photos_folder:
        if copy.photos_folder is None:
            raise GalleryError(
                f"{origin.path} keeps photos of its own, such as that of item {item.id}, and "
                f"{copy.path} has no store for them: name one behind the address, as "
                "milvus://…?store=FOLDER."
            )
        root = copy.photos_folder
    return NewItem(
        root=root,
        vector=vector,
        **{
            field.name: getattr(item, field.name)
            for field in dataclasses.fields(Item)
            if field.name not in ("id", "root")
        },
    )


def _copy_photo(item: Item, copy: Gallery) -> bool:
    """Copy a photo that the source keeps; False if it is not there."""
    assert copy.photos_folder is not None  # or ``_as_new`` has refused
    target = copy.photos_folder / item.path
    try:
        data = read_photo(item.image)
    except FileNotFoundError:
        return False
    if is_remote(target):
        with reaching(target):
            target.write_bytes(data)  # whole or absent, as a store of objects has it
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
    return True
