"""Zips of labelled photos that come from strangers: what is in them, and its bytes within bounds.

Nothing is ever unpacked to a path that an archive names: entries are read into memory one by one,
so no name in it can lead anywhere. Names that try are refused all the same.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, BinaryIO, Self, cast

from fastapi import UploadFile

from index.errors import DataError, DsclError
from index.images import IMAGE_SUFFIXES
from index.photos import Photo, list_photos

__all__ = ["Archive", "ArchiveError", "ArchiveLimits", "detached"]

#: The list of photos that an archive may hold at its top.
LIST_FILE = "items.csv"

#: Bytes read at a time, and the most that zipfile may read at once: its table of contents.
CHUNK = 2**16
MAX_CONTENTS_BYTES = 2**24

#: Below this unpacked size no ratio is suspicious.
RATIO_FROM = 2**24

METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
ENCRYPTED = 0x1


class ArchiveError(DsclError):
    """A zip that cannot be used.

    ``code``: ``archive_invalid`` (no zip, damaged, encrypted), ``archive_unsafe`` (names that lead
    out of it, links, the same name twice) or ``archive_too_large`` (beyond a limit).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """How much an archive may hold, counted unpacked."""

    files: int = 100_000
    file_bytes: int = 20_000_000  #: of one photo or list
    total_bytes: int = 4_000_000_000
    ratio: int = 100  #: unpacked to packed, of the whole


class Archive:
    """A zip of photos, checked when it is opened. Safe to read from several threads."""

    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        """Check names and declared sizes of all that is inside; no photo is unpacked yet.

        Args:
            file: the zip; closed together with the archive, or on an error.
            limits: bounds on photos and list; other files in the zip are never read.

        Raises:
            ArchiveError: see there.
        """
        self._limits = limits
        self._file = file
        try:
            self._zip = zipfile.ZipFile(cast(IO[bytes], _BoundedReads(file)))
            self._entries = {info.filename: info for info in self._zip.infolist()}
            self._check()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            file.close()
            raise ArchiveError(
                "archive_invalid",
                f"the upload cannot be read as a zip ({error}): make it with `zip -r photos.zip .` "
                "inside the folder of photos.",
            ) from error
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._zip.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def photos(self) -> list[Photo]:
        """The photos, by their path in the archive, with what is known about them.

        With ``items.csv`` at the top (``path``, optionally ``label`` and ``sku``, any further
        columns as attributes) those that it lists, in its order; they need not all be there.
        Without it every image by its name, sorted, and its folder is its label. Roots are empty.

        Raises:
            ArchiveError: no photo in it, or a damaged list.
            DataError: a list that cannot be used; see ``index.photos.list_photos``.
        """
        if LIST_FILE in self._entries:
            return self._listed()
        photos = [
            Photo(root=Path(), path=path, label=_label(path)) for path in sorted(self._images())
        ]
        if not photos:
            some = ", ".join(list(self._entries)[:5]) or "nothing"
            raise ArchiveError(
                "archive_invalid",
                f"the zip holds no photo ({', '.join(sorted(IMAGE_SUFFIXES))}); it holds {some}.",
            )
        return photos

    def read(self, path: str) -> bytes:
        """The bytes of a file in the archive.

        Raises:
            ArchiveError: it is not there (``archive_invalid``), damaged, or larger than it says.
        """
        if path not in self._entries:
            raise ArchiveError("archive_invalid", f"{path} is not in the zip.")
        parts = []
        size = 0
        try:
            with self._zip.open(self._entries[path]) as file:
                while part := file.read(CHUNK):
                    size += len(part)
                    if size > self._limits.file_bytes:
                        raise self._too_large(path, size)
                    parts.append(part)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ArchiveError(
                "archive_invalid", f"{path} in the zip is damaged ({error}): zip it again."
            ) from error
        return b"".join(parts)

    # Inside

    def _check(self) -> None:
        infos = self._zip.infolist()
        if len(infos) > self._limits.files:
            raise ArchiveError(
                "archive_too_large",
                f"the zip holds {len(infos):,} files: the limit is {self._limits.files:,}. Send it "
                "in parts.",
            )
        if len(self._entries) < len(infos):
            raise ArchiveError("archive_unsafe", "the zip holds a name twice: zip it anew.")
        for info in infos:
            _check_entry(info)
        read = [self._entries[path] for path in self._images()]
        read += [self._entries[LIST_FILE]] if LIST_FILE in self._entries else []
        for info in read:
            if info.file_size > self._limits.file_bytes:
                raise self._too_large(info.filename, info.file_size)
        total = sum(info.file_size for info in read)
        if total > self._limits.total_bytes:
            raise ArchiveError(
                "archive_too_large",
                f"the zip unpacks to {total:,} bytes: the limit is {self._limits.total_bytes:,}. "
                "Send it in parts.",
            )
        packed = self._file.seek(0, os.SEEK_END)
        if total > max(RATIO_FROM, self._limits.ratio * packed):
            raise ArchiveError(
                "archive_too_large",
                f"the zip of {packed:,} bytes unpacks to {total:,}, more than "
                f"{self._limits.ratio} times as many: photos do not shrink like that.",
            )

    def _images(self) -> Iterator[str]:
        for path in self._entries:
            parts = PurePosixPath(path).parts
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
            if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES and not hidden:
                yield path

    def _listed(self) -> list[Photo]:
        with tempfile.TemporaryDirectory() as name:
            file = Path(name).resolve() / LIST_FILE
            file.write_bytes(self.read(LIST_FILE))
            try:
                listed = list_photos(file)
            except DataError as error:
                # The archive is all the sender knows; where we read the list is nobody's matter.
                message = str(error).replace(f"{file.parent}/", "")
                raise DataError(message.replace(str(file.parent), "the zip")) from error
        return [
            Photo(
                root=Path(),
                path=photo.path,
                label=photo.label,
                attributes=photo.attributes,
                external_id=photo.external_id,
                stated=photo.stated,
            )
            for photo in listed
        ]

    def _too_large(self, path: str, size: int) -> ArchiveError:
        return ArchiveError(
            "archive_too_large",
            f"{path} in the zip has {size:,} bytes unpacked: the limit is "
            f"{self._limits.file_bytes:,}. Scale it down, or leave it out.",
        )


def detached(upload: UploadFile) -> BinaryIO:
    """The uploaded file, to be kept open after its request has ended; it has no name on disk."""
    descriptor = os.dup(upload.file.fileno())  # moves an upload in memory to the disk
    file = os.fdopen(descriptor, "rb")
    file.seek(0)
    return file


def _label(path: str) -> str | None:
    """The folder of a photo."""
    return "/".join(PurePosixPath(path).parts[:-1]) or None


def _check_entry(info: zipfile.ZipInfo) -> None:
    # The name as it stands in the archive: zipfile cuts at NUL.
    name = info.orig_filename
    parts = name.split("/")
    if (
        name.startswith("/")
        or re.match(r"[A-Za-z]:", name)
        or "\\" in name
        or "\0" in name
        or ".." in parts
        or "." in parts
    ):
        raise ArchiveError(
            "archive_unsafe",
            f"the zip holds the name {name[:200]!r}: expected relative paths with forward slashes, "
            "without `..`.",
        )
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(
            "archive_unsafe",
            f"{name[:200]} in the zip is a link or no plain file: put the file itself in.",
        )
    if info.flag_bits & ENCRYPTED:
        raise ArchiveError(
            "archive_invalid", f"{name[:200]} in the zip is encrypted: zip it without a password."
        )
    if info.compress_type not in METHODS:
        raise ArchiveError(
            "archive_invalid",
            f"{name[:200]} in the zip is packed by method {info.compress_type}: expected stored or "
            "deflated, as `zip` does.",
        )


class _BoundedReads:
    """A file from which no one reads more than a bound at once.

    zipfile reads the whole table of contents, of which an upload of 1 GB could be made, and makes
    an object of every 46 bytes of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, size: int = -1) -> bytes:
        """As ``file.read``. Raises ArchiveError beyond the bound."""
        if size > MAX_CONTENTS_BYTES:
            raise ArchiveError(
                "archive_too_large",
                f"the zip's table of contents has {size:,} bytes: the limit is "
                f"{MAX_CONTENTS_BYTES:,}. Send it in parts.",
            )
        return self._file.read(size)
