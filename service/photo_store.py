"""``PhotoStore``: the photos that came over the network, kept in the gallery's folder.

A photo is on disk, durably, before the catalog names it; a crash in between leaves a file that
belongs to nothing, which ``sweep`` removes. Each item has a file of its own, also where two photos
are byte for byte the same, so a file goes together with its item.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from index import Gallery, Item
from index.errors import GalleryError, InvalidArgumentError
from index.files import sha256_bytes, sync_folder
from service.media_types import HEAD_BYTES, suffix_of

__all__ = ["PhotoStore", "StoredPhoto"]

#: Prefix of files that are being written.
TEMPORARY = ".new-"


@dataclass(frozen=True)
class StoredPhoto:
    """A photo of the store; ``path`` is relative to its folder, with forward slashes."""

    path: str
    sha256: str
    size: int
    mtime_ns: int


class PhotoStore:
    """The photos in ``<gallery>/photos``, each at ``<2>/<sha256>.<ext>``, further ones ``…-2``."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made with its first photo."""
        self.folder = folder

    @classmethod
    def of(cls, gallery: Gallery) -> Self:
        """The store of a gallery.

        Raises:
            GalleryError: a gallery on Milvus that has been given none.
        """
        if gallery.photos_folder is None:
            raise GalleryError(
                f"{gallery.path} has no store for photos: name one behind its address, as "
                "milvus://…?store=FOLDER."
            )
        return cls(gallery.photos_folder)

    def put(self, data: bytes) -> StoredPhoto:
        """Keep a photo under a name that nothing has yet; durable on return.

        Raises:
            GalleryError: it cannot be written; then nothing is left.
        """
        sha256 = sha256_bytes(data)
        try:
            file = self._write(f"{sha256}{suffix_of(data[:HEAD_BYTES])}", data)
            status = file.stat()
        except OSError as error:
            raise GalleryError(
                f"the photo cannot be kept ({error.strerror}): make room on the gallery's disk, or "
                "make its folder writable."
            ) from error
        path = file.relative_to(self.folder).as_posix()
        return StoredPhoto(path, sha256, status.st_size, status.st_mtime_ns)

    def holds(self, item: Item) -> bool:
        """Whether an item's photo is kept here, rather than in a folder that was indexed."""
        return item.root == self.folder

    def paths_of(self, sha256: str) -> list[str]:
        """The paths of the photos with this content."""
        folder = self.folder / sha256[:2]
        if not folder.is_dir():
            return []
        found = folder.glob(f"{sha256}*")
        return sorted(file.relative_to(self.folder).as_posix() for file in found)

    def tidy(self, gallery: Gallery, paths: Iterable[str]) -> None:
        """Remove those of these photos that no item of the gallery names."""
        files = [self.folder / path for path in paths]
        named = gallery.ids_by_path(files)
        for file in files:
            if file not in named:
                file.unlink(missing_ok=True)

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

    def sweep(self, gallery: Gallery) -> int:
        """Remove what no item names: what a crash has left. Call before photos come in.

        Returns:
            How many files went.
        """
        named = gallery.files(self.folder)
        swept = 0
        for file in self.folder.glob("*/*"):
            if file.relative_to(self.folder).as_posix() not in named:
                file.unlink(missing_ok=True)
                swept += 1
        return swept

    def _write(self, name: str, data: bytes) -> Path:
        folder = self.folder / name[:2]
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)
            sync_folder(self.folder)
        descriptor, temporary_name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
        temporary = Path(temporary_name)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fchmod(handle.fileno(), 0o644)
                os.fsync(handle.fileno())
            file = _reserve(folder / name)
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(folder)
        return file


def _reserve(wanted: Path) -> Path:
    """An empty file of the first free one of ``name``, ``name-2``, ``name-3``, …"""
    for number in itertools.count(1):
        mark = "" if number == 1 else f"-{number}"
        file = wanted.with_name(f"{wanted.stem}{mark}{wanted.suffix}")
        try:
            file.touch(0o644, exist_ok=False)
        except FileExistsError:
            continue
        return file
    raise AssertionError("unreachable")
