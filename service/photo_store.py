"""``PhotoStore``: the photos that came over the network, kept where their gallery says.

In a folder of the gallery's own, or in a store that several services share (``index.stores``). A
photo is there, durably, before the gallery names it; a crash in between leaves a file that belongs
to nothing, which ``sweep`` removes. Each item has a file of its own, also where two photos are byte
for byte the same, so a file goes together with its item.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from index import Gallery, Item
from index.errors import GalleryError, InvalidArgumentError, StoreError
from index.files import sha256_bytes
from index.kept_photos import PHOTOS_FOLDER
from index.stores import PhotoPath, is_remote, stamp_of
from service.kept_files import KeptFiles, files_of
from service.media_types import HEAD_BYTES, suffix_of

__all__ = ["UNNAMED_S", "PhotoStore", "StoredPhoto"]

logger = logging.getLogger(__name__)

#: How long a photo of a shared store may lie there before the gallery names it. Putting and naming
#: are seconds apart; the rest is for clocks that differ.
UNNAMED_S = 3600.0


@dataclass(frozen=True)
class StoredPhoto:
    """A photo of the store; ``path`` is relative to its folder, with forward slashes."""

    path: str
    sha256: str
    size: int
    mtime_ns: int


class PhotoStore:
    """The photos below ``folder``, each at ``<2>/<sha256>….<ext>``.

    Reading and writing may wait for the network: call it on a thread.
    """

    def __init__(self, folder: PhotoPath | None, *, shared: bool, name: str = "") -> None:
        """Nothing is made yet: the folder comes with its first photo.

        Args:
            folder: where the photos lie; None for a gallery that takes none.
            shared: whether other processes may put photos there meanwhile.
            name: what the gallery is called in errors.
        """
        self._folder = folder
        self._shared = shared
        self._name = name
        self._files = None if folder is None else files_of(folder, shared=shared)

    @classmethod
    def of(cls, gallery: Gallery) -> Self:
        """Where photos lie: shared, unless it is in the folder that its writer has locked.

        A gallery on Milvus that has been given no store has one that takes no photos.
        """
        folder = gallery.photos_folder
        own = isinstance(gallery.path, Path) and folder == gallery.path / PHOTOS_FOLDER
        return cls(folder, shared=not own, name=str(gallery.path))

    @property
    def folder(self) -> PhotoPath:
        """Where the photos lie. Raises GalleryError where none are taken."""
        if self._folder is None:
            raise GalleryError(
                f"{self._name} has no store for photos: name one behind its address, as "
                "milvus://…?store=FOLDER."
            )
        return self._folder

    @property
    def _kept(self) -> KeptFiles:
        """The files in the folder. Raises GalleryError where none are taken."""
        _ = self.folder
        assert self._files is not None  # or there is no folder
        return self._files

    def put(self, data: bytes) -> StoredPhoto:
        """Keep a photo under a name that nothing has yet; durable on return.

        Raises:
            GalleryError: it cannot be written (StoreError: the store does not answer, or denies
                access); then nothing is left.
        """
        sha256 = sha256_bytes(data)
        try:
            path = self._kept.put(sha256, suffix_of(data[:HEAD_BYTES]), data)
            try:
                size, mtime_ns = stamp_of(self.folder / path)
            except BaseException:
                with suppress(OSError, StoreError):
                    self._kept.remove(path)
                raise
        except OSError as error:
            raise self._unwritable(error) from error
        return StoredPhoto(path, sha256, size, mtime_ns)

    def holds(self, item: Item) -> bool:
        """Whether an item's photo is kept here, rather than in a folder that was indexed."""
        return self._folder is not None and item.root == self._folder

    def paths_of(self, sha256: str) -> list[str]:
        """The paths of the photos with this content. Raises StoreError."""
        return self._kept.named(sha256)

    def tidy(self, gallery: Gallery, paths: Iterable[str]) -> None:
        """Remove those of these photos that no item of the gallery names.

        What a store does not remove now is left to ``sweep``: by now the gallery has changed.
        """
        photos = {path: self.folder / path for path in paths}
        named = gallery.ids_by_path(list(photos.values()))
        for path, photo in photos.items():
            if photo not in named:
                try:
                    self._kept.remove(path)
                except StoreError as error:
                    logger.warning("%s A photo of no item stays there until a sweep.", error)
                    return

    @contextmanager
    def in_their_words(self, names: Mapping[str, str]) -> Iterator[None]:
        """Refusals raised inside call photos by ``names``, given for their paths in the store."""
        try:
            yield
        except InvalidArgumentError as error:
            message = str(error)
            for path, name in names.items():
                message = message.replace(str(self.folder / path), name)
            raise type(error)(message) from error

    def sweep(self, gallery: Gallery, *, older_than_s: float | None = None) -> int:
        """Remove what no item names: what a crash has left. Call before photos come in.

        Args:
            gallery: what names them.
            older_than_s: leave what was written since. Default: an hour for a shared store, where
                another process may just have put a photo that it has not named yet; else nothing.

        Returns:
            How many files went.

        Raises:
            StoreError: the store does not answer, or denies access.
        """
        if self._folder is None:
            return 0
        if older_than_s is None:
            older_than_s = UNNAMED_S if self._shared else 0.0
        # In this order: a photo that is named between the two is not taken for one of nothing.
        found = list(self._kept.older_than(older_than_s))
        named = gallery.files(self.folder)
        unnamed = [path for path in found if path not in named]
        for path in unnamed:
            self._kept.remove(path)
        return len(unnamed)

    def _unwritable(self, error: OSError) -> GalleryError:
        if is_remote(self.folder):  # what it held is gone: the bucket, or the photo just put
            return StoreError(
                f"the photo cannot be kept at {self.folder}: check that its bucket is still there."
            )
        return GalleryError(
            f"the photo cannot be kept ({error.strerror}): make room on the gallery's disk, or "
            "make its folder writable."
        )
