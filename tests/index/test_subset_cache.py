from __future__ import annotations

import numpy as np

from index.subset_cache import SubsetCache
from index.subsets import Subset
from index.tuning import build_base
from index.vectors import VectorIndex
from tests.index.gallery_items import unit


def subsets(count: int, size: int = 10) -> list[Subset]:
    index = VectorIndex.from_base(build_base(np.arange(size), unit(size), seq=1))
    return [index.subset(np.arange(size)) for _ in range(count)]


def test_what_was_not_used_for_longest_makes_room():
    first, second, third = subsets(3)
    cache = SubsetCache(most_bytes=2 * first.nbytes)
    cache.put("first", first)
    cache.put("second", second)
    assert cache.get("first") is first
    cache.put("third", third)
    assert cache.get("first") is first
    assert cache.get("second") is None
    assert cache.get("third") is third


def test_a_subset_that_is_kept_already_takes_no_room_twice():
    first, again, second = subsets(3)
    cache = SubsetCache(most_bytes=2 * first.nbytes)
    cache.put("first", first)
    cache.put("first", again)
    cache.put("second", second)
    assert cache.get("first") is first
    assert cache.get("second") is second


def test_one_that_is_too_large_is_not_kept_and_the_rest_goes_on():
    [large] = subsets(1, size=100)
    small, other = subsets(2)
    cache = SubsetCache(most_bytes=large.nbytes - 1)
    cache.put("large", large)
    assert cache.get("large") is None
    cache.put("small", small)
    cache.put("other", other)
    assert cache.get("small") is small
    assert cache.get("other") is other
