"""``BackgroundWork``: what a thread does whenever it is due, with its errors told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from index.errors import GalleryError

__all__ = ["BackgroundWork", "StoppedError"]

#: After a failure, work is left alone for this many times as long as it took to fail.
REST = 10

log = logging.getLogger(__name__)


class StoppedError(GalleryError):
    """The gallery was closed while its index was being built."""


class BackgroundWork:
    """Work of one kind. A thread lives only while there is some, and there is never a second.

    An error in the thread is logged, kept in ``error``, and ends the thread; the next ``wake``
    after a rest tries again.
    """

    def __init__(self, name: str, is_due: Callable[[], bool], do: Callable[[], None]) -> None:
        """Prepare work; nothing starts before ``wake``.

        Args:
            name: what it is, for the log.
            is_due: whether there is any.
            do: a piece of it, after which ``is_due`` is asked again.
        """
        self.error: str | None = None  #: why the last piece failed
        #: Held while a piece is done; whoever does such work in a thread of their own holds it too.
        self.lock = threading.Lock()
        self._name = name
        self._is_due = is_due
        self._do = do
        self._retry_at = 0.0
        self._closing = threading.Event()
        self._waking = threading.Lock()  # guards _worker
        self._worker: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether a thread is at work."""
        return self._worker is not None

    def wake(self) -> None:
        """Have a thread do what is due, unless one is at it."""
        with self._waking:
            rested = time.monotonic() >= self._retry_at
            if self._worker is None and rested and not self._closing.is_set() and self._is_due():
                self._worker = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._worker.start()

    def settle(self) -> None:
        """Wait until nothing is due or under way.

        Raises:
            GalleryError: work failed, or was stopped by ``close``.
        """
        self._retry_at = 0.0  # whoever waits wants it tried now
        while True:
            self.check()
            self.wake()
            with self._waking:
                worker = self._worker
            if worker is not None:
                worker.join()
            elif not self._is_due():
                return
            if self.error is not None:
                raise GalleryError(f"{self._name} failed: {self.error}")

    def check(self) -> None:
        """Raises StoppedError once the work is to stop; long pieces call it now and then."""
        if self._closing.is_set():
            raise StoppedError("the gallery was closed while its index was being built.")

    def close(self) -> None:
        """Stop at the next ``check`` and wait for that. Nothing starts any more."""
        self._closing.set()
        with self._waking:
            worker = self._worker
        if worker is not None:
            worker.join()

    def _work(self) -> None:
        while True:
            started = time.monotonic()
            try:
                with self.lock:
                    self._do()
                self.error = None
            except StoppedError:
                log.info("%s was stopped", self._name)
            except Exception as error:  # nobody else would ever hear of it
                log.exception("%s failed", self._name)
                self.error = str(error) or type(error).__name__
                now = time.monotonic()
                self._retry_at = now + REST * (now - started)
            with self._waking:
                if self._closing.is_set() or self.error is not None or not self._is_due():
                    self._worker = None
                    return
