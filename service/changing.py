"""Items that are added, changed and removed one by one, each with its photo in the store.

Everything here is durable when it returns; on an error nothing has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index import Gallery, Item, NewItem
from index.errors import OutcomeUnknownError
from index.items import KEEP, Keep
from index.photos import AttributeValue
from service.photo_store import PhotoStore, StoredPhoto

__all__ = ["Description", "EmbeddedPhoto", "add", "change", "embed", "remove", "upsert"]

#: What a photo is called in refusals: its place in the store means nothing to its sender.
THE_PHOTO = "the photo"


@dataclass(frozen=True)
class EmbeddedPhoto:
    """An encoded photo, its vector float32 [d], and the hash of the model that made it."""

    data: bytes
    vector: NDArray[np.float32]
    model_sha256: str


@dataclass(frozen=True)
class Description:
    """What is known about a photo."""

    label: str | None
    attributes: Mapping[str, AttributeValue]
    external_id: str | None


def embed(gallery: Gallery, data: bytes) -> EmbeddedPhoto:
    """Decode and embed a photo. Raises ImageError if it cannot be used."""
    model = gallery.model
    return EmbeddedPhoto(data, model.embed(model.prepare(data)[None])[0], model.sha256)


def add(gallery: Gallery, photo: EmbeddedPhoto, described: Description) -> Item:
    """Add a photo as a new item.

    Raises:
        DuplicateExternalIdError: another item has its external id.
        AttributeTypeError, InvalidArgumentError: attributes or text that cannot be stored.
        GalleryError: the gallery cannot be written to.
    """
    photo = _by_model_of(gallery, photo)
    store = PhotoStore.of(gallery)
    stored = store.put(photo.data)
    try:
        with store.in_their_words({stored.path: THE_PHOTO}):
            new = _new_item(store, stored, photo, described)
            [item_id] = gallery.add([new])
    except OutcomeUnknownError:
        raise  # an item may name the photo
    except BaseException:
        store.tidy(gallery, [stored.path])
        raise
    # Not read back: a server that is gone just now must not have it added once more.
    return Item(
        id=item_id,
        external_id=new.external_id,
        label=new.label,
        attributes=new.attributes,
        root=new.root,
        path=new.path,
        size=new.size,
        mtime_ns=new.mtime_ns,
        sha256=new.sha256,
    )


def upsert(
    gallery: Gallery, external_id: str, photo: EmbeddedPhoto, described: Description
) -> tuple[Item, bool]:
    """Make the item with an external id be this photo with this description.

    The same photo keeps the item's id; another photo gets a new one.

    Returns:
        The item, and whether there was none with this external id.

    Raises:
        AttributeTypeError, InvalidArgumentError, GalleryError: as ``add``.
    """
    photo = _by_model_of(gallery, photo)
    store = PhotoStore.of(gallery)
    before = gallery.get(list(gallery.ids_by_external([external_id]).values()))
    stored = store.put(photo.data)
    files = [stored.path, *(item.path for item in before if store.holds(item))]
    try:
        if before and before[0].sha256 == stored.sha256:
            ids = [before[0].id]
            gone = dict.fromkeys(before[0].attributes)
            gallery.update(
                ids[0], label=described.label, attributes={**gone, **described.attributes}
            )
        else:
            with store.in_their_words({stored.path: THE_PHOTO}):
                ids = gallery.upsert([_new_item(store, stored, photo, described)])
    finally:
        store.tidy(gallery, files)
    [item] = gallery.get(ids)
    return item, not before


def change(
    gallery: Gallery,
    item_id: int,
    *,
    label: str | Keep | None = KEEP,
    attributes: Mapping[str, AttributeValue] | None = None,
    external_id: str | Keep | None = KEEP,
) -> Item:
    """Change what is known about an item: see ``Gallery.update``."""
    gallery.update(item_id, label=label, attributes=attributes, external_id=external_id)
    [item] = gallery.get([item_id])
    return item


def remove(gallery: Gallery, item_id: int) -> None:
    """Remove an item, and its photo if it is kept here; photos in folders of others stay.

    Raises:
        ItemNotFoundError: no such item.
        GalleryError: the gallery cannot be written to.
    """
    [item] = gallery.get([item_id])
    gallery.remove([item_id])
    store = PhotoStore.of(gallery)
    if store.holds(item):
        store.tidy(gallery, [item.path])


def _by_model_of(gallery: Gallery, photo: EmbeddedPhoto) -> EmbeddedPhoto:
    """The photo with a vector of the gallery's model, which may just have become another one."""
    if gallery.model.sha256 == photo.model_sha256:
        return photo
    return embed(gallery, photo.data)


def _new_item(
    store: PhotoStore, stored: StoredPhoto, photo: EmbeddedPhoto, described: Description
) -> NewItem:
    return NewItem(
        root=store.folder,
        path=stored.path,
        sha256=stored.sha256,
        size=stored.size,
        mtime_ns=stored.mtime_ns,
        label=described.label,
        attributes=dict(described.attributes),
        external_id=described.external_id,
        vector=photo.vector,
    )
