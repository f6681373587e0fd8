"""``WriterLock``: one process at a time changes a gallery, and others are told which."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from index.errors import GalleryError, GalleryLockedError

__all__ = ["LOCK_FILE", "WriterLock"]

LOCK_FILE = "writer.lock"


class WriterLock:
    """The right to change a gallery. The operating system takes it from a process that dies."""

    def __init__(self, file: IO[bytes]) -> None:
        """Use ``acquire``."""
        self._file = file

    @classmethod
    def acquire(cls, folder: Path) -> WriterLock:
        """Become the only writer of the gallery in ``folder``, at once or not at all.

        Raises:
            GalleryLockedError: another process is, which the message names with its command.
            GalleryError: the folder cannot be written to.
        """
        path = folder / LOCK_FILE
        while True:
            file: IO[bytes] | None = None
            try:
                # Unbuffered: what a full disk does not take must not be tried again on closing.
                file = path.open("a+b", buffering=0)
                _claim(folder, file)
                if _is_at(path, file):
                    return cls(file)
            except OSError as error:
                if file is not None:
                    file.close()
                raise GalleryError(
                    f"gallery {folder} cannot be changed: {path} cannot be written to "
                    f"({error.strerror}). Open it for reading, make it writable, or make room."
                ) from error
            except BaseException:
                if file is not None:
                    file.close()
                raise
            # The gallery was exchanged for another between opening and locking.
            file.close()

    def release(self) -> None:
        """Let another process write. Releasing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _claim(folder: Path, file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode(errors="replace").strip() or "another process"
        raise GalleryLockedError(
            f"gallery {folder} is being changed by {owner}: wait until it is done, or stop it."
        ) from None
    file.truncate(0)
    owner = f"process {os.getpid()} ({' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])})"
    # An argument may be a file name that is not UTF-8.
    file.write(owner.encode(errors="backslashreplace"))


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
