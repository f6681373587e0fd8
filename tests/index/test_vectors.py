from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import vectors as vectors_module
from index.approximate import EXACT_LIMIT, SearchParameters
from index.errors import InvalidArgumentError
from index.tuning import build_base
from index.vectors import Base, VectorIndex
from tests.index.vector_sets import (
    assert_exact,
    assert_ranked,
    brute_force_recall,
    clustered,
    near,
    unit,
)

NONE = np.empty(0, np.int64)
KINDS = ("flat", "ivf", "hnsw")


def flat(ids: np.ndarray, vectors: np.ndarray) -> VectorIndex:
    return VectorIndex.from_base(build_base(ids, vectors, seq=0, kind="flat"))


def empty(d: int) -> VectorIndex:
    return flat(NONE, np.empty((0, d), np.float32))


@cache
def base_of(kind: str) -> Base:
    """1,500 clustered vectors with ids 0, 2, 4 …, tuned to .95."""
    vectors = clustered(np.random.default_rng(11), 1500, 16)
    return build_base(np.arange(1500) * 2, vectors, seq=0, kind=kind, target_recall=0.95)


def as_dict(index: VectorIndex) -> dict[int, np.ndarray]:
    ids, vectors = index.live()
    return dict(zip(ids.tolist(), vectors, strict=True))


def test_flat_search_equals_exact_search():
    rng = np.random.default_rng(0)
    ids, stored = np.arange(3000) * 3 + 7, unit(rng, 3000, 24)
    index = flat(ids, stored)
    for queries in (unit(rng, 1, 24), unit(rng, 20, 24)):
        found, scores = index.search(queries, 15)
        for row, query in enumerate(queries):
            assert_exact(found[row], scores[row], as_dict(index), query, 15)


def test_a_batch_finds_what_single_queries_find():
    rng = np.random.default_rng(1)
    for kind in KINDS:
        index = VectorIndex.from_base(base_of(kind))
        index = index.with_changes(np.arange(5000, 5100), unit(rng, 100, 16), np.arange(0, 200))
        queries = clustered(rng, 30, 16)
        ids, scores = index.search(queries, 7)
        for row, query in enumerate(queries):
            single_ids, single_scores = index.search(query[None], 7)
            assert ids[row].tolist() == single_ids[0].tolist()
            assert np.array_equal(scores[row], single_scores[0])


@pytest.mark.parametrize(("kind", "copies"), [("flat", 10_000), ("ivf", 10_000), ("hnsw", 1500)])
def test_of_identical_vectors_the_lowest_ids_come_first(kind, copies):
    rng = np.random.default_rng(2)
    one = unit(rng, 1, 9)
    vectors = np.concatenate([unit(rng, 1200, 9), np.repeat(one, copies, axis=0)])
    order = rng.permutation(len(vectors))
    index = VectorIndex.from_base(
        build_base(np.arange(len(vectors)), vectors[order], seq=0, kind=kind)
    )
    same = np.flatnonzero(order >= 1200)
    gone, later = same[:3], np.arange(20_000, 20_010)
    index = index.with_changes(later, np.repeat(one, 10, axis=0), gone)
    for k in (1, 5, 60):
        ids, scores = index.search(one, k)
        assert ids[0].tolist() == same[3 : 3 + k].tolist()
        assert np.ptp(scores) == 0
    everything, _ = index.search(one, copies + 7)
    assert everything[0].tolist() == [*same[3:].tolist(), *later.tolist()]


def test_equal_vectors_tie_wherever_they_are_stored():
    rng = np.random.default_rng(3)
    one = unit(rng, 1, 33)
    # At every alignment in memory, in base, delta and gathered subset
    stored = np.insert(unit(rng, 40, 33), 5, np.repeat(one, 7, axis=0), axis=0)
    index = flat(np.arange(47), stored).with_changes(
        np.arange(47, 50), np.repeat(one, 3, axis=0), NONE
    )
    same = [*range(5, 12), 47, 48, 49]
    query = unit(rng, 1, 33)
    for within in (None, index.subset(np.array(same))):
        ids, scores = index.search(query, 50, within=within)
        chosen = np.isin(ids[0], same)
        assert ids[0, chosen].tolist() == same
        assert np.ptp(scores[0, chosen]) == 0


def test_scores_stay_within_cosine_bounds():
    x = unit(np.random.default_rng(4), 2000, 128)
    index = flat(np.arange(2000), x)
    assert index.search(x, 1)[1].max() <= 1.0
    assert index.search(-x[:100], 2000)[1].min() >= -1.0


def test_an_empty_index_finds_nothing():
    index = empty(8)
    ids, scores = index.search(unit(np.random.default_rng(5), 2, 8), 3)
    assert ids.shape == scores.shape == (2, 0)
    assert len(index) == 0
    assert index.measure_recall() == 1.0
    assert index.subset(np.arange(5)).search(unit(np.random.default_rng(5), 2, 8), 3)[0].shape == (
        2,
        0,
    )


steps = st.lists(
    st.tuples(
        st.integers(0, 5),  # which of the indexes so far changes
        st.integers(0, 12),  # how many vectors come
        st.lists(st.integers(0, 60), max_size=8),  # which ids go
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=100)
@given(steps=steps, start=st.integers(0, 20), k=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_any_history_of_changes_equals_exact_search_over_dicts(steps, start, k, seed):
    """Changes may branch; every index of the history keeps its own content."""
    rng = np.random.default_rng(seed)
    palette = unit(rng, 6, 5)  # few distinct vectors, so that ties are common
    first = palette[rng.integers(0, 6, start)].reshape(-1, 5)
    history = [(flat(np.arange(start), first), dict(enumerate(first)))]
    next_id = start
    for which, count, removed in steps:
        index, oracle = history[which % len(history)]
        ids = np.arange(next_id, next_id + count)
        added = palette[rng.integers(0, 6, count)].reshape(-1, 5)
        next_id += count
        # What is removed is what was there before: ids are never used again.
        left = {i: v for i, v in oracle.items() if i not in removed}
        history.append(
            (
                index.with_changes(ids, added, np.array(removed, np.int64)),
                left | dict(zip(ids.tolist(), added, strict=True)),
            )
        )
    query = palette[rng.integers(0, 6)]
    for index, oracle in history:
        assert len(index) == len(oracle)
        ids, vectors = index.live()
        assert ids.tolist() == sorted(oracle)
        assert all(np.array_equal(oracle[i], v) for i, v in zip(ids.tolist(), vectors, strict=True))
        found, scores = index.search(query[None], k)
        assert_exact(found[0], scores[0], oracle, query, k)
        wanted = rng.integers(0, next_id + 3, 10)
        subset = index.subset(wanted)
        chosen = {i: v for i, v in oracle.items() if i in wanted}
        assert len(subset) == len(chosen)
        found, scores = index.search(query[None], k, within=subset)
        assert_exact(found[0], scores[0], chosen, query, k)


@pytest.mark.parametrize("kind", KINDS)
def test_removed_vectors_stay_away_and_added_ones_are_found(kind):
    rng = np.random.default_rng(6)
    base = base_of(kind)
    index, oracle = (
        VectorIndex.from_base(base),
        dict(zip(base.ids.tolist(), base.vectors, strict=True)),
    )
    next_id = 3000
    for _ in range(5):
        removed = rng.choice(sorted(oracle), 120, replace=False)
        ids, added = np.arange(next_id, next_id + 30), clustered(rng, 30, 16)
        next_id += 30
        index = index.with_changes(ids, added, removed)
        oracle = {i: v for i, v in oracle.items() if i not in removed}
        oracle |= dict(zip(ids.tolist(), added, strict=True))
        for query in added[:5]:
            found, scores = index.search(query[None], 10)
            assert_ranked(found[0], scores[0], oracle, query, 10)
            assert ids[np.flatnonzero((added == query).all(1))[0]] in found[0]
    assert len(index) == len(oracle)
    live_ids, live = index.live()
    queries = near(rng, live, 50)
    assert brute_force_recall(index.search(queries, 10)[0], live_ids, live, queries) >= 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [0, 3, 40])
def test_all_that_is_left_is_found_when_nearly_all_went(kind, left):
    base = base_of(kind)
    keep = np.random.default_rng(left).choice(base.ids, left, replace=False)
    index = VectorIndex.from_base(base).with_changes(
        NONE, np.empty((0, 16), np.float32), np.setdiff1d(base.ids, keep)
    )
    query = base.vectors[0]
    for k in (1, 10, 50):
        ids, scores = index.search(query[None], k)
        if k < left and kind != "flat":
            assert_ranked(ids[0], scores[0], as_dict(index), query, k)
        else:
            assert_exact(ids[0], scores[0], as_dict(index), query, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 60, 400, 1000])
@pytest.mark.parametrize("limit", [10, EXACT_LIMIT])
def test_a_subset_gives_full_k_of_its_own_items(kind, size, limit, monkeypatch):
    monkeypatch.setattr(vectors_module, "EXACT_LIMIT", limit)
    rng = np.random.default_rng(size)
    added = clustered(rng, 50, 16)
    changed = VectorIndex.from_base(base_of(kind)).with_changes(
        np.arange(4000, 4050), added, np.arange(0, 300)
    )
    everything = as_dict(changed)
    ids = rng.choice(sorted(everything), size, replace=False)
    # Ids that are not there, gone ones and repeated ones are passed over.
    subset = changed.subset(np.concatenate([ids, ids[:1], np.arange(0, 300), [9999]]))
    stored = {i: everything[i] for i in ids.tolist()}
    assert len(subset) == size
    assert subset.nbytes > 0
    queries = near(rng, changed.live()[1], 30)
    for k in (1, 10, size, size + 1):
        found, scores = changed.search(queries, k, within=subset)
        for row, query in enumerate(queries):
            if limit == EXACT_LIMIT:
                assert_exact(found[row], scores[row], stored, query, k)
            else:
                assert_ranked(found[row], scores[row], stored, query, k)
    found, _ = changed.search(queries, 10, within=subset)
    matrix = np.array([stored[i] for i in ids.tolist()])
    assert brute_force_recall(found, ids, matrix, queries) >= 0.9


def test_a_subset_of_another_index_is_refused():
    before = flat(np.arange(20), unit(np.random.default_rng(7), 20, 4))
    subset = before.subset(np.arange(5))
    after = before.with_changes(NONE, np.empty((0, 4), np.float32), np.array([1]))
    with pytest.raises(ValueError, match="another index"):
        after.search(unit(np.random.default_rng(7), 1, 4), 3, within=subset)
    assert before.search(unit(np.random.default_rng(7), 1, 4), 9, within=subset)[0].shape == (1, 5)


@pytest.mark.parametrize(("n", "limit"), [(0, 1024), (1000, 1024), (30_000, 1500)])
def test_a_rebuild_is_due_when_more_changed_than_the_limit(n, limit):
    index = flat(np.arange(n), np.ones((n, 1), np.float32))
    ids = np.arange(n, n + limit + 1)
    ones = np.ones((limit + 1, 1), np.float32)
    assert not index.with_changes(ids[:-1], ones[:-1], NONE).needs_rebuild
    assert index.with_changes(ids, ones, NONE).needs_rebuild
    if n > limit:
        nothing = np.empty((0, 1), np.float32)
        assert not index.with_changes(NONE, nothing, np.arange(limit)).needs_rebuild
        assert index.with_changes(NONE, nothing, np.arange(limit + 1)).needs_rebuild


def test_a_rebuild_is_due_when_the_size_wants_another_kind():
    n = EXACT_LIMIT
    base = build_base(np.arange(n), np.ones((n, 1), np.float32), seq=0)
    index, one = VectorIndex.from_base(base), np.ones((1, 1), np.float32)
    assert not index.needs_rebuild
    assert index.with_changes(np.array([n]), one, NONE).needs_rebuild
    assert not index.with_changes(np.array([n]), one, np.array([0])).needs_rebuild
    by_hand = VectorIndex.from_base(replace(base, requested="flat"))
    assert not by_hand.with_changes(np.array([n]), one, NONE).needs_rebuild


def test_adding_a_few_vectors_does_not_copy_those_that_came_before():
    d, many = 32, 100_000
    vectors = np.ones((many, d), np.float32) / np.float32(np.sqrt(d))
    index = empty(d).with_changes(np.arange(many), vectors, NONE)
    tracemalloc.start()
    for first in range(many, many + 640, 64):
        index = index.with_changes(np.arange(first, first + 64), vectors[:64], NONE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == many + 640
    assert peak < vectors.nbytes / 10


def test_an_index_is_searched_while_later_ones_grow_from_it():
    rng = np.random.default_rng(8)
    first = flat(np.arange(500), unit(rng, 500, 8)).with_changes(
        np.arange(500, 600), unit(rng, 100, 8), np.arange(10)
    )
    query = unit(rng, 1, 8)
    expected = first.search(query, 20)
    done, failures = threading.Event(), []

    def search() -> None:
        while not done.is_set():
            ids, scores = first.search(query, 20)
            if not (np.array_equal(ids, expected[0]) and np.array_equal(scores, expected[1])):
                failures.append(ids)

    readers = [threading.Thread(target=search) for _ in range(2)]
    for reader in readers:
        reader.start()
    grown = first
    for start in range(600, 3600, 10):
        grown = grown.with_changes(
            np.arange(start, start + 10), np.repeat(query, 10, axis=0), np.array([start - 600])
        )
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(grown) == len(as_dict(grown))


def test_measured_recall_is_that_of_every_item_looked_up_by_itself():
    base = replace(base_of("ivf"), parameters=SearchParameters(nprobe=1, refine=1))
    rng = np.random.default_rng(9)
    index = VectorIndex.from_base(base).with_changes(
        np.arange(5000, 5100), clustered(rng, 100, 16), base.ids[::7]
    )
    ids, vectors = index.live()
    scores = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    hits = 0
    for row, own in enumerate(ids):
        found, _ = index.search(vectors[row][None], 6)
        others = [i for i in found[0].tolist() if i != own][:5]
        scores[row, row] = -np.inf
        hits += len(set(others) & set(ids[np.argsort(-scores[row])[:5]].tolist()))
    expected = hits / 5 / len(ids)
    assert expected < 0.95, "the test wants an index that misses some"
    assert index.measure_recall(sample=len(ids), k=5) == pytest.approx(expected, abs=1e-3)
    assert flat(ids, vectors).measure_recall() == 1.0


def test_measuring_recall_of_nothing_is_refused():
    with pytest.raises(InvalidArgumentError, match="sample"):
        flat(np.arange(20), unit(np.random.default_rng(10), 20, 4)).measure_recall(sample=0)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_search_works_beside_what_torch_makes_of_faiss():
    """pytorch-metric-learning imports this module, which replaces FAISS's search."""
    code = """
import faiss.contrib.torch_utils, numpy as np
from index.tuning import build_base
from index.vectors import VectorIndex
x = np.random.default_rng(0).normal(size=(1200, 8)).astype("f4")
x /= np.linalg.norm(x, axis=1, keepdims=True)
index = VectorIndex.from_base(build_base(np.arange(1200), x, seq=0, kind="ivf"))
assert (index.search(x[:50], 1)[0][:, 0] == np.arange(50)).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
