"""``SubsetCache``: prepared filters of one state of an index, kept while they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict

from index.subsets import Subset

__all__ = ["SubsetCache"]

#: Memory that the subsets of one cache may hold together.
MOST_BYTES = 256 * 2**20


class SubsetCache:
    """Subsets by the key of their filter; those not used for longest make room."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._subsets: OrderedDict[str, Subset] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> Subset | None:
        """The subset of this filter, if it is here."""
        with self._lock:
            subset = self._subsets.get(key)
            if subset is not None:
                self._subsets.move_to_end(key)
            return subset

    def put(self, key: str, subset: Subset) -> None:
        """Keep a subset, unless it is larger than the whole cache may be."""
        with self._lock:
            if key in self._subsets or subset.nbytes > self._most_bytes:
                return
            self._subsets[key] = subset
            self._bytes += subset.nbytes
            while self._bytes > self._most_bytes:
                _, oldest = self._subsets.popitem(last=False)
                self._bytes -= oldest.nbytes
