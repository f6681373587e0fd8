"""Ids that several processes can give at once without asking one another.

41 bits of milliseconds since 2025, 10 that the process has drawn for itself, 2 that count. So they
ascend with time, and stay below 2⁵³, where JavaScript's numbers end. Two processes can only give
the same id if they have drawn the same 10 bits and give ids in the same millisecond.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

__all__ = ["IdMaker"]

#: 2025-01-01T00:00:00Z, in milliseconds.
EPOCH_MS = 1_735_689_600_000

PROCESS_BITS = 10
COUNT_BITS = 2


class IdMaker:
    """Gives ids, each once, ascending. Safe to use from several threads."""

    def __init__(self, *, clock_ms: Callable[[], int] = lambda: time.time_ns() // 10**6) -> None:
        self._clock_ms = clock_ms
        self._process = secrets.randbits(PROCESS_BITS)
        self._lock = threading.Lock()
        self._next = 0  # in units of the count: milliseconds and count, without the process

    def take(self, count: int) -> list[int]:
        """``count`` ids. More than 4 a millisecond are taken from the milliseconds to come."""
        with self._lock:
            now = (self._clock_ms() - EPOCH_MS) << COUNT_BITS
            first = max(self._next, now)
            self._next = first + count
        return [self._id(number) for number in range(first, first + count)]

    def _id(self, number: int) -> int:
        moment, count = number >> COUNT_BITS, number & (1 << COUNT_BITS) - 1
        return (moment << PROCESS_BITS | self._process) << COUNT_BITS | count
