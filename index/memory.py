"""What glibc's allocator does with large blocks that are freed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["M_MMAP_THRESHOLD", "M_TRIM_THRESHOLD", "mallopt", "return_freed_memory"]

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

#: Photos of a megapixel stay below, so that they do not pay for fresh pages.
LARGE_BYTES = 4_000_000

#: What each arena keeps of freed memory. Once the other limit is set, glibc's own for this is
#: 128 KB, less than any photo: each one then had its pages (240 of 4 KB at 512 px) mapped anew.
KEPT_BYTES = 16_000_000


def return_freed_memory() -> None:
    """Let large blocks go back to the system when they are freed.

    Left alone, glibc keeps what it once had for later, for each thread: after a few photos of
    50 megapixels a service rested at 1.7 GB, with this at 0.13 GB. Call it before any thread is
    started.
    """
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def mallopt(option: int, value: int) -> None:
    """Set an option of glibc's allocator; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    function = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if function is not None:
        function(option, value)
