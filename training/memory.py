"""Memory that a training step frees and the next one needs again."""

from __future__ import annotations

from index.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt

__all__ = ["keep_freed_memory"]

LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of handing them back to the kernel at once.

    Activations are hundreds of megabytes that are freed and wanted again all the time; mapping and
    clearing their pages anew took most of a CPU step (MobileNetV2, 64 photos: 5 photos a second
    without this, 28 with it). Elsewhere than on glibc nothing happens.
    """
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, LARGEST)
