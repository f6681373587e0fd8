"""Builds that are stopped at a known photo: it is a pipe, whose reader waits until it is fed."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from index import Gallery

#: Seconds within which whatever is waited for has happened, on a machine that is busy.
PATIENCE = 120

DSCL = [sys.executable, "-c", "from service.cli import main; main()"]


@contextmanager
def dscl(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a process, and a process group, of its own; in the end it is gone."""
    run = subprocess.Popen(
        [*DSCL, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with run:
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)


def until(what: Callable[[], Any]) -> Any:
    """The first true value of ``what``, which is asked again and again."""
    deadline = time.monotonic() + PATIENCE
    while not (value := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


class Pipe:
    """A photo whose reader waits. ``as_before`` puts the photo back for those who come later."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stamp = file.stat()
        self.data = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        self._feed: int | None = None

    def is_read(self) -> bool:
        """Whether a reader waits now. From then on it does so until it is let go, or gone."""
        if self._feed is None:
            try:
                self._feed = os.open(self.file, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return False
        poll = select.poll()
        poll.register(self._feed, select.POLLOUT)
        return not poll.poll(0)[0][1] & select.POLLERR

    def as_before(self) -> None:
        fresh = self.file.with_suffix(".fresh")
        fresh.write_bytes(self.data)
        os.utime(fresh, ns=(self.stamp.st_atime_ns, self.stamp.st_mtime_ns))
        fresh.replace(self.file)

    def let_go(self) -> None:
        """Its reader finds an empty file."""
        if self._feed is not None:
            os.close(self._feed)
            self._feed = None


def contents(gallery: Gallery | Path) -> list[tuple[Any, ...]]:
    """Everything that a gallery knows of its items, vectors bit by bit."""
    if isinstance(gallery, Path):
        with Gallery.open(gallery) as opened:
            return contents(opened)
    items = gallery.items(limit=10**6)
    vectors = gallery.vectors([each.id for each in items])
    return [(asdict(item), vector.tobytes()) for item, vector in zip(items, vectors, strict=True)]


def done(work: Path) -> set[int]:
    """The shards of a work folder that say they are done."""
    return {int(file.name.split(".")[0]) for file in work.glob("*.done.json")}


def stamps(work: Path) -> dict[int, int]:
    """When each of these was."""
    return {
        int(file.name.split(".")[0]): file.stat().st_mtime_ns for file in work.glob("*.done.json")
    }
