"""Near-identical photos of a gallery, as groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import ItemNotFoundError
from index.gallery import MAX_K, Gallery
from index.results import check_threshold

__all__ = ["DEFAULT_THRESHOLD", "DuplicateGroup", "find_duplicates"]

#: A cosine similarity that copies of a photo reach (another size, quality or file format) and two
#: photos hardly do. What it means depends on the model: look at the groups, then choose.
DEFAULT_THRESHOLD = 0.98

#: Items looked up at a time.
PAGE = 256

#: Neighbours looked at first; more where all of them are near enough.
NEIGHBOURS = 16


@dataclass(frozen=True)
class DuplicateGroup:
    """Items that hang together by similarities at or above the threshold."""

    ids: tuple[int, ...]  #: ascending, at least two
    least: float  #: the lowest of those similarities; two items that no link joins may be lower


def find_duplicates(
    gallery: Gallery,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    progress: Callable[[int, int], object] | None = None,
) -> list[DuplicateGroup]:
    """The connected components of the items whose similarity is at least ``threshold``.

    Neighbours come from the gallery's own search: exact up to the size where it is approximate.
    Above that a link may be missed, at most as often as the index misses a neighbour. An item with
    more than 10,000 such neighbours is linked to the nearest 10,000.

    Args:
        gallery: may be changed by others meanwhile.
        threshold: cosine similarity in [−1, 1].
        progress: called with (items just looked at, all items).

    Returns:
        The groups, largest first, then by their lowest id.

    Raises:
        InvalidArgumentError: the threshold is out of range.
    """
    check_threshold(threshold)
    groups = _Groups()
    total, last = gallery.count(), 0
    while page := gallery.items(limit=PAGE, where={"id": {"gt": last}}):
        ids = [item.id for item in page]
        try:
            vectors = gallery.vectors(ids)
        except ItemNotFoundError:  # removed since: look at the page again
            continue
        hits = gallery.search(vectors, NEIGHBOURS, threshold=threshold)
        for row, item_id in enumerate(ids):
            near, scores = hits.row(row)
            if len(near) == NEIGHBOURS:
                near, scores = _all_near(gallery, vectors[row], threshold)
            for other, score in zip(near.tolist(), scores.tolist(), strict=True):
                if other != item_id:
                    groups.link(item_id, other, score)
        last = ids[-1]
        if progress is not None:
            progress(len(ids), total)
    return groups.result()


def _all_near(
    gallery: Gallery, vector: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    k = NEIGHBOURS
    while True:
        k = min(4 * k, MAX_K)
        near, scores = gallery.search(vector, k, threshold=threshold).row(0)
        if len(near) < k or k == MAX_K:
            return near, scores


class _Groups:
    """Disjoint sets of linked ids, each with the score of its weakest link."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._least: dict[int, float] = {}

    def link(self, one: int, other: int, score: float) -> None:
        first, second = self._root(one), self._root(other)
        least = min(score, self._least.pop(first, score), self._least.pop(second, score))
        self._parent[second] = first
        self._least[first] = least

    def result(self) -> list[DuplicateGroup]:
        members: dict[int, list[int]] = {}
        for item_id in sorted(self._parent):
            members.setdefault(self._root(item_id), []).append(item_id)
        groups = [DuplicateGroup(tuple(ids), self._least[root]) for root, ids in members.items()]
        return sorted(groups, key=lambda group: (-len(group.ids), group.ids))

    def _root(self, item_id: int) -> int:
        root = item_id
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while item_id != root:  # shorten the way for the next time
            item_id, self._parent[item_id] = self._parent[item_id], root
        return root
