"""A token bucket for each client, one for all worker processes together.

A bucket holds a minute's requests and fills up evenly. It is kept as the one moment at which it
will be full again (the generic cell rate algorithm), in a table of fixed size: no number of clients
makes it grow, and processes share it by mapping the same file.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Allowance", "RateLimiter"]

WINDOW_S = 60.0

#: The client's hash, and the moment at which its bucket is full.
SLOT = struct.Struct("=Qd")

#: Clients whose hashes fall into one row share its slots; a row is what a process locks.
ROW_SLOTS = 8
ROW_BYTES = ROW_SLOTS * SLOT.size
ROWS = 8192
TABLE_BYTES = ROWS * ROW_BYTES


@dataclass(frozen=True)
class Allowance:
    """What a client may still do."""

    allowed: bool  #: whether this request may be served
    remaining: int  #: requests that it could make at once after this one
    full_in_s: float  #: seconds until its bucket is full
    retry_in_s: float  #: seconds until it may ask again; 0 where it may at once


class RateLimiter:
    """So many requests a minute for each client."""

    def __init__(
        self,
        per_minute: int,
        file: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make or join the table of buckets.

        Args:
            per_minute: requests a client may make in a minute, and at once after a minute's rest.
            file: where processes share the table; made if it is not there. It must not outlive
                the machine's clock: give each run of the service its own. None: this process alone.
            clock: seconds that only grow, the same in all processes.
        """
        if per_minute < 1:
            raise ValueError(f"{per_minute} requests a minute: expected at least 1")
        self.per_minute = per_minute
        self._clock = clock
        self._file = -1 if file is None else os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        if file is not None:
            os.ftruncate(self._file, TABLE_BYTES)  # what is new is zeros, what is there stays
        self._table = mmap.mmap(self._file, TABLE_BYTES)

    def take(self, client: str) -> Allowance:
        """Count a request of ``client``, if it has one left."""
        interval = WINDOW_S / self.per_minute
        # 0 would be a slot that nobody has used.
        key = int.from_bytes(hashlib.blake2b(client.encode(), digest_size=8).digest(), "big") or 1
        row = key % ROWS * ROW_BYTES
        with self._locked(row):
            now = self._clock()
            place, full_at = self._slot(row, key)
            full_at = max(full_at, now)
            retry_in = full_at + interval - now - WINDOW_S
            allowed = retry_in <= 1e-6  # sums of many intervals differ in the last digits
            if allowed:
                full_at += interval
                SLOT.pack_into(self._table, place, key, full_at)
        return Allowance(
            allowed=allowed,
            remaining=max(0, math.floor((WINDOW_S - (full_at - now)) / interval + 1e-6)),
            full_in_s=full_at - now,
            retry_in_s=0.0 if allowed else retry_in,
        )

    def close(self) -> None:
        """Let go of the table."""
        self._table.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _slot(self, row: int, key: int) -> tuple[int, float]:
        """Where a client's bucket is, and when it is full; else the slot whose own is soonest full.

        So in a crowd, those who have asked least lose their count first.
        """
        best, best_full_at = row, math.inf
        for place in range(row, row + ROW_BYTES, SLOT.size):
            known, full_at = SLOT.unpack_from(self._table, place)
            if known == key:
                return place, full_at
            if full_at < best_full_at:
                best, best_full_at = place, full_at
        return best, 0.0

    @contextmanager
    def _locked(self, row: int) -> Iterator[None]:
        """Keep other processes from one row; the system lets go of it if this process dies."""
        if self._file < 0:
            yield
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX, ROW_BYTES, row)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, ROW_BYTES, row)
