"""``Subset``: the items a filter matches, prepared for many searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from index.exact import Ids, Segment, Vectors, search_segments

if TYPE_CHECKING:
    from index.vectors import VectorIndex

__all__ = ["Subset"]


class Subset:
    """Some items of one ``VectorIndex``; made by its ``subset``, searched through its ``search``.

    Few items are gathered into a matrix and compared one and all; many are a bit each, which the
    base's index consults.
    """

    def __init__(self, index: VectorIndex, segments: Sequence[Segment], nbytes: int) -> None:
        """Use ``VectorIndex.subset``."""
        self.index = index
        self.nbytes = nbytes  #: memory held by this subset alone
        self._segments = segments

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """As ``VectorIndex.search``, among these items."""
        return search_segments(self._segments, queries, k)
