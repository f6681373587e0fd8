"""``Hits``: what a search found, and what makes of a ranking the results that were asked for.

Thresholds, groups and offsets: arrays in, arrays out. Nothing here searches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.errors import InvalidArgumentError
from index.photos import AttributeValue

__all__ = ["MAX_K", "Hits", "best_of_groups", "check_k", "check_offset", "check_threshold"]

#: The most results of one search, those skipped by ``offset`` included.
MAX_K = 10_000

#: What stands in ``Hits`` where a query has fewer results than another.
NO_ID = -1

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]


class Hits(NamedTuple):
    """The results of q queries, best first: score descending, ties by ascending id.

    As wide as the longest row. Shorter rows, which a threshold or groups can make, end in id −1
    and score −inf; so the result of a single query never does.
    """

    ids: Ids  #: int64 (q, m)
    scores: Scores  #: float32 (q, m), cosine similarities in [−1, 1]

    def row(self, query: int) -> tuple[Ids, Scores]:
        """Ids and scores of one query, int64 (m',) and float32 (m',), without the padding."""
        found = self.ids[query] != NO_ID
        return self.ids[query][found], self.scores[query][found]

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[Ids, Scores]]) -> Hits:
        """Pad results of different lengths to a common one."""
        width = max((len(ids) for ids, _ in rows), default=0)
        all_ids = np.full((len(rows), width), NO_ID, np.int64)
        all_scores = np.full((len(rows), width), -np.inf, np.float32)
        for i, (ids, scores) in enumerate(rows):
            all_ids[i, : len(ids)], all_scores[i, : len(ids)] = ids, scores
        return cls(all_ids, all_scores)


def best_of_groups(groups: Sequence[AttributeValue], k: int) -> NDArray[np.int64]:
    """Where in a ranking the first item of each group is, for the first k groups.

    Args:
        groups: the group of each item, best item first. None: in no group.
        k: at least 1.

    Returns:
        int64 (k',), ascending, k' = min(k, how many groups there are).
    """
    first: dict[AttributeValue, int] = {}
    for place, group in enumerate(groups):
        if group is not None and group not in first:
            first[group] = place
            if len(first) == k:
                break
    return np.fromiter(first.values(), np.int64, len(first))


def check_k(k: int) -> None:
    """Raises InvalidArgumentError unless ``k`` is an int in 1 … ``MAX_K``."""
    if not _is_int(k) or not 1 <= k <= MAX_K:
        raise InvalidArgumentError(f"k is {k}: expected a whole number from 1 to {MAX_K}.")


def check_offset(offset: int, k: int) -> None:
    """Raises InvalidArgumentError unless ``offset`` is an int in 0 … ``MAX_K`` − k."""
    if not _is_int(offset) or not 0 <= offset <= MAX_K - k:
        raise InvalidArgumentError(
            f"offset is {offset}: expected a whole number from 0 to {MAX_K - k}, so that with k = "
            f"{k} it stays within the first {MAX_K} results. Narrow the search by a filter instead."
        )


def check_threshold(threshold: float | None) -> None:
    """Raises InvalidArgumentError unless ``threshold`` is None or a number in [−1, 1]."""
    if threshold is None:
        return
    number = isinstance(threshold, int | float | np.number) and not isinstance(threshold, bool)
    if not number or math.isnan(threshold) or not -1 <= threshold <= 1:
        raise InvalidArgumentError(
            f"threshold is {threshold!r}: expected a cosine similarity from -1 to 1, such as 0.8."
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
