"""``Served``: an open gallery that is not closed while anybody uses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from index import Gallery

__all__ = ["RetiredError", "Served"]


class RetiredError(Exception):
    """Another gallery took this one's place; look there."""


class Served:
    """An open gallery. Once retired, it is closed when its last lease ends."""

    def __init__(self, gallery: Gallery) -> None:
        """Take over ``gallery``."""
        self.gallery = gallery
        self._lock = threading.Lock()
        self._leases = 0
        self._retired = False

    @contextmanager
    def lease(self) -> Iterator[Gallery]:
        """The gallery, which stays open meanwhile.

        Raises:
            RetiredError: it has been retired.
        """
        with self._lock:
            if self._retired:
                raise RetiredError
            self._leases += 1
        try:
            yield self.gallery
        finally:
            self._end_lease()

    def retire(self) -> None:
        """Give no more leases, and close the gallery once those there are have ended."""
        with self._lock:
            unused = self._leases == 0 and not self._retired
            self._retired = True
        if unused:
            self.gallery.close()

    def _end_lease(self) -> None:
        with self._lock:
            self._leases -= 1
            unused = self._retired and self._leases == 0
        if unused:
            self.gallery.close()
