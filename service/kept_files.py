"""The files of a ``PhotoStore``: in a folder, or as the objects of a store.

A name is ``<2>/<sha256>…<suffix>``, relative and with forward slashes. One that was given is never
given to other content, so what lies under a name is whole and stays what it is until it goes.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from index.errors import StoreError
from index.files import sync_folder
from index.stores import PhotoPath, is_remote, modified_ns, reaching

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["KeptFiles", "files_of"]

#: Prefix of files that are being written.
TEMPORARY = ".new-"


class KeptFiles(Protocol):
    """What a ``PhotoStore`` needs of the place where its photos lie.

    All of it raises StoreError where a store does not answer, and OSError where a folder fails.
    """

    def put(self, sha256: str, suffix: str, data: bytes) -> str:
        """Keep a photo under a name that nothing has; whole and durable on return."""

    def remove(self, name: str) -> None:
        """Remove a photo; harmless where there is none."""

    def named(self, sha256: str) -> list[str]:
        """The names of the photos with this content, sorted."""

    def older_than(self, seconds: float) -> Iterator[str]:
        """The names of all files that were written so long ago, half-written ones too."""


def files_of(folder: PhotoPath, *, shared: bool) -> KeptFiles:
    """The files below ``folder``, which is made with the first of them.

    Args:
        folder: where they lie.
        shared: whether other processes write and remove files there, too.
    """
    return ObjectFiles(folder) if is_remote(folder) else FolderFiles(folder, shared=shared)


class FolderFiles:
    """Files of a local file system, or of one that is mounted."""

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self._folder = folder
        self._shared = shared

    def put(self, sha256: str, suffix: str, data: bytes) -> str:
        """Write a temporary file, reserve a name, rename: see ``KeptFiles``."""
        folder = self._folder / sha256[:2]
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
            sync_folder(self._folder)
        descriptor, temporary_name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
        temporary = Path(temporary_name)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fchmod(handle.fileno(), 0o644)
                os.fsync(handle.fileno())
            # The reserved file is ours alone: creating it fails where there is one, whoever made
            # it, so no rename lands on another writer's photo. Where others remove files too, a
            # name must also never come back, or they may remove the second photo for the first.
            file = _reserve(folder, _drawn(sha256) if self._shared else sha256, suffix)
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(folder)
        return file.relative_to(self._folder).as_posix()

    def remove(self, name: str) -> None:
        """See ``KeptFiles``."""
        (self._folder / name).unlink(missing_ok=True)

    def named(self, sha256: str) -> list[str]:
        """See ``KeptFiles``."""
        found = (self._folder / sha256[:2]).glob(f"{sha256}*")
        return sorted(file.relative_to(self._folder).as_posix() for file in found)

    def older_than(self, seconds: float) -> Iterator[str]:
        """See ``KeptFiles``."""
        for file in self._folder.glob("*/*"):
            try:
                old = seconds <= 0 or time.time() - file.stat().st_mtime > seconds
            except FileNotFoundError:  # another writer has just renamed or removed it
                continue
            if old:
                yield file.relative_to(self._folder).as_posix()


class ObjectFiles:
    """Objects of a store, which several services may share."""

    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._fs = folder.fs

    def put(self, sha256: str, suffix: str, data: bytes) -> str:
        """One request, under a name that was drawn for it: see ``KeptFiles``."""
        # What keeps writers apart is the drawn part of the name: no two puts ever share one, so
        # none writes over or removes what another has put, even of the same photo at the same
        # moment. Conditional writes would not do: stores that lack them answer 501 or ignore the
        # condition, and a repeated request fails on the object that its first try has made.
        # An object appears as a whole or not at all: that is what a store promises of one put.
        name = f"{sha256[:2]}/{_drawn(sha256)}{suffix}"
        try:
            with reaching(self._folder):
                self._fs.pipe_file(self._path(name), data)
        except BaseException:
            # An answer that was lost may belong to a put that was done. What cannot be removed
            # now either, ``PhotoStore.sweep`` finds.
            with suppress(StoreError):
                self.remove(name)
            raise
        return name

    def remove(self, name: str) -> None:
        """See ``KeptFiles``."""
        with suppress(FileNotFoundError), reaching(self._folder):
            self._fs.rm_file(self._path(name))

    def named(self, sha256: str) -> list[str]:
        """See ``KeptFiles``."""
        found = self._listed(self._path(sha256[:2]), prefix=sha256)
        # Not all kinds of stores heed the prefix.
        return sorted(name for name in found if name.rpartition("/")[2].startswith(sha256))

    def older_than(self, seconds: float) -> Iterator[str]:
        """See ``KeptFiles``. An object of unknown age is taken for new."""
        now = time.time_ns()
        for name, written in self._listed(self._folder.path).items():
            if seconds <= 0 or (written is not None and now - written > seconds * 1e9):
                yield name

    def _path(self, name: str) -> str:
        return (self._folder / name).path

    def _listed(self, below: str, **options: str) -> dict[str, int | None]:
        """Name → when it was written in ns, of all objects below."""
        root = self._folder.path.rstrip("/") + "/"
        try:
            with reaching(self._folder):
                found = self._fs.find(below, detail=True, **options)
        except FileNotFoundError:
            return {}
        return {
            path.removeprefix(root): modified_ns(info)
            for path, info in found.items()
            if path.startswith(root)
        }


def _drawn(sha256: str) -> str:
    """A stem that nothing has, has had, or will have."""
    return f"{sha256}-{uuid.uuid4().hex}"


def _reserve(folder: Path, stem: str, suffix: str) -> Path:
    """An empty file of the first free one of ``name``, ``name-2``, ``name-3``, …"""
    for number in itertools.count(1):
        mark = "" if number == 1 else f"-{number}"
        file = folder / f"{stem}{mark}{suffix}"
        try:
            file.touch(0o644, exist_ok=False)
        except FileExistsError:
            continue
        return file
    raise AssertionError("unreachable")
