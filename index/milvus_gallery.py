"""Opening and making galleries on Milvus: the parts that ``index.gallery.Gallery`` is made of.

The model lies in the gallery's notes, so that an address is all that a replica needs; each machine
keeps a copy of it in its cache.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from index.address import MilvusAddress
from index.approximate import RequestedKind
from index.errors import GalleryError, ModelError, ModelMismatchError
from index.files import sha256_bytes
from index.kept_photos import PHOTOS_FOLDER
from index.milvus_catalog import MilvusCatalog
from index.milvus_client import MilvusConnection
from index.milvus_notes import Notes
from index.milvus_place import Place
from index.milvus_schema import Described
from index.milvus_search import MilvusLive
from index.model import Model
from index.runtimes import Runtime
from index.stores import PhotoPath, open_store

__all__ = ["MilvusParts", "cache_folder", "create", "exists", "keep_model", "open_parts"]

#: Where models are kept that were fetched from a gallery.
CACHE_VARIABLE = "DSCL_CACHE"

#: The note that names the store of photos.
STORE_NOTE = "meta/store"


@dataclass(frozen=True)
class MilvusParts:
    """A gallery on Milvus, open."""

    model: Model
    catalog: MilvusCatalog
    live: MilvusLive
    notes: Notes
    place: Place
    photos: PhotoPath | None  #: where photos that come over the network are kept


def create(
    address: MilvusAddress, model: Model, *, index_kind: RequestedKind, target_recall: float
) -> None:
    """Make an empty gallery for the vectors of ``model``.

    Raises:
        GalleryError: something of that name is there already, or the server refuses.
        GalleryUnavailableError: the server does not answer.
    """
    if address.store:
        open_store(address.store)  # what is wrong with it is found before anything is made
    connection = MilvusConnection(address)
    try:
        Place.create(
            connection,
            Described.new(
                model_sha256=model.sha256,
                precision=model.precision,
                dim=model.card.dim,
                index_kind=index_kind,
                target_recall=target_recall,
            ),
            prepare=lambda notes: _prepare(notes, address, model),
        )
    finally:
        connection.close()


def exists(address: MilvusAddress) -> bool:
    """Whether the server has something of this name.

    Raises:
        GalleryUnavailableError, GalleryError: as ``open_parts``.
    """
    connection = MilvusConnection(address)
    try:
        return connection.has(address.name)
    finally:
        connection.close()


def open_parts(address: MilvusAddress, *, runtime: Runtime) -> MilvusParts:
    """Connect to a gallery.

    Raises:
        GalleryError: no gallery there, of another format, or the server refuses.
        GalleryUnavailableError: the server does not answer.
        ModelError: the gallery's model cannot be loaded.
        ModelMismatchError: the model there is not the one the vectors were made with.
    """
    connection = MilvusConnection(address)
    try:
        place = Place(connection)
        described = place.described
        model = _load_model(place, runtime)
        if model.sha256 != described.model_sha256:
            raise ModelMismatchError(
                f"{address} was built with model {described.model_sha256[:12]}…, and keeps model "
                f"{model.sha256[:12]}…: it was changed by something else. Build it anew."
            )
        store = address.store or place.notes.get(STORE_NOTE) or ""
        photos = open_store(store) / PHOTOS_FOLDER if store else None
        catalog = MilvusCatalog(place, photos)
        live = MilvusLive(place, catalog)
    except BaseException:
        connection.close()
        raise
    return MilvusParts(model, catalog, live, place.notes, place, photos)


def keep_model(notes: Notes, model: Model) -> None:
    """Put a model into a gallery's notes, if it is not there yet."""
    key = _model_key(model.sha256)
    if notes.has_files(key):
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        model.copy_to(folder)  # what inference needs, and nothing else
        notes.put_files(key, sorted(folder.iterdir()))


def _prepare(notes: Notes, address: MilvusAddress, model: Model) -> None:
    keep_model(notes, model)
    if address.store:
        notes.put(STORE_NOTE, address.store)


def _load_model(place: Place, runtime: Runtime) -> Model:
    """The gallery's model, from this machine's cache if it is there and whole."""
    precision = place.described.precision
    try:
        return Model.load(_model_folder(place), runtime=runtime, precision=precision)
    except ModelError:
        folder = _model_folder(place, anew=True)
        return Model.load(folder, runtime=runtime, precision=precision)


def _model_folder(place: Place, *, anew: bool = False) -> Path:
    """The model's folder on this machine, fetched if it is not there, or ``anew``."""
    sha256 = place.described.model_sha256
    key = _model_key(sha256)
    card = place.notes.get(f"{key}.files")
    if card is None:
        raise GalleryError(
            f"{place.address} does not keep the model {sha256[:12]}… that its vectors were made "
            "with: it was removed by something else. Build the gallery anew."
        )
    folder = cache_folder() / "models" / f"{sha256}-{sha256_bytes(card.encode())[:16]}"
    if anew or not folder.is_dir():
        place.notes.get_files(key, folder)
    return folder


def _model_key(sha256: str) -> str:
    return f"model/{sha256}"


def cache_folder() -> Path:
    """Where this machine keeps what it can fetch or make again."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dscl"
