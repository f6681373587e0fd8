"""``Writer``: the gallery open for changes, but only while there are any.

One process at a time may open a gallery folder for changes. A service that held it all the time
would keep out `dscl index add`, so it lets go some seconds after its last change. Of a gallery on a
server there may be many, and the service keeps its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from index import Gallery

__all__ = ["Writer"]

#: Seconds after the last change, and between two looks whether work on the index has ended.
IDLE_S = 5.0


class Writer:
    """Opens a gallery for changes when one is to be made. Safe to use from any thread."""

    def __init__(self, open_gallery: Callable[[], Gallery]) -> None:
        """Open nothing yet; ``open_gallery`` opens the gallery for writing."""
        self._open = open_gallery
        self._lock = threading.Lock()
        self._gallery: Gallery | None = None
        self._leases = 0
        self._closed = False
        self._timer: threading.Timer | None = None

    @contextmanager
    def lease(self) -> Iterator[Gallery]:
        """The gallery, open for changes.

        Raises:
            GalleryLockedError: another process changes it.
            GalleryError: its folder cannot be written to.
        """
        with self._lock:
            self._stop_timer()
            if self._gallery is None:
                self._gallery = self._open()
            gallery = self._gallery
            self._leases += 1
        try:
            yield gallery
        finally:
            self._end_lease()

    def close(self) -> None:
        """Let go of the gallery as soon as nobody changes it."""
        with self._lock:
            self._closed = True
            self._stop_timer()
            if self._leases == 0:
                self._let_go()

    def _end_lease(self) -> None:
        with self._lock:
            self._leases -= 1
            if self._leases > 0:
                return
            if self._closed:
                self._let_go()
            elif self._gallery is not None and not self._gallery.is_remote:
                self._start_timer()

    def _when_idle(self) -> None:
        with self._lock:
            if self._leases > 0 or self._gallery is None:
                return
            # A new index that is being built would be lost.
            if self._gallery.index_info().updating and not self._closed:
                self._start_timer()
            else:
                self._let_go()

    def _let_go(self) -> None:
        gallery, self._gallery = self._gallery, None
        if gallery is not None:
            gallery.close()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = threading.Timer(IDLE_S, self._when_idle)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
