from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index import vectors as vectors_module
from index.vectors import VectorIndex


def unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def exact(ids, vectors, query, k):
    """Every score, sorted by (score descending, id ascending)."""
    scores = (vectors * query).sum(axis=1, dtype=np.float32)
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))[:k]
    return [ids[i] for i in order], [scores[i] for i in order]


def test_search_equals_exact_search_over_a_thousand_vectors():
    rng = np.random.default_rng(0)
    stored, queries = unit(rng, 1000, 24), unit(rng, 20, 24)
    ids, scores = VectorIndex.build(np.arange(1000) * 3 + 7, stored).search(queries, 15)
    for row, query in enumerate(queries):
        expected_ids, expected_scores = exact(np.arange(1000) * 3 + 7, stored, query, 15)
        assert ids[row].tolist() == expected_ids
        assert np.allclose(scores[row], expected_scores, atol=1e-7)


def test_ties_come_by_id_even_when_there_are_far_more_than_k():
    one = unit(np.random.default_rng(1), 1, 33)
    index = VectorIndex.build(np.arange(10_000), np.repeat(one, 10_000, axis=0))
    ids, scores = index.search(one, 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]]
    assert np.ptp(scores) == 0


def test_an_earlier_index_is_untouched_by_changes():
    rng = np.random.default_rng(2)
    stored = unit(rng, 50, 8)
    before = VectorIndex.build(np.arange(50), stored)
    after = before.with_changes(np.array([50]), stored[:1], np.array([0]))
    assert before.search(stored[:1], 1)[0].tolist() == [[0]]
    assert after.search(stored[:1], 1)[0].tolist() == [[50]]
    assert (len(before), len(after)) == (50, 50)


def test_an_empty_index_finds_nothing():
    index = VectorIndex.build(np.empty(0, np.int64), np.empty((0, 8), np.float32))
    ids, scores = index.search(unit(np.random.default_rng(3), 2, 8), 3)
    assert ids.shape == scores.shape == (2, 0)


def test_scores_stay_within_cosine_bounds():
    x = unit(np.random.default_rng(4), 2000, 128)
    _, scores = VectorIndex.build(np.arange(2000), x).search(x, 1)
    assert scores.max() <= 1.0


changes = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.integers(0, 60), max_size=8)), max_size=8
)


@settings(deadline=None, max_examples=150)
@given(changes=changes, k=st.integers(1, 40), seed=st.integers(0, 2**16), limit=st.integers(0, 12))
def test_any_series_of_changes_equals_exact_search_over_a_dict(changes, k, seed, limit):
    rng = np.random.default_rng(seed)
    # Few distinct vectors, so that ties are common.
    palette = unit(rng, 6, 5)
    oracle: dict[int, np.ndarray] = {}
    next_id = 0
    index = VectorIndex.build(np.empty(0, np.int64), np.empty((0, 5), np.float32))
    original, vectors_module.DELTA_LIMIT = vectors_module.DELTA_LIMIT, limit
    try:
        for count, removed in changes:
            added_ids = np.arange(next_id, next_id + count)
            added = palette[rng.integers(0, 6, count)]
            next_id += count
            index = index.with_changes(added_ids, added, np.array(removed, np.int64))
            # What is removed is what was there before: ids are never used again.
            oracle = {i: v for i, v in oracle.items() if i not in removed}
            oracle |= dict(zip(added_ids.tolist(), added, strict=True))
            query = palette[rng.integers(0, 6)]
            ids, scores = index.search(query[None], k)
            stored = np.array(list(oracle.values()), np.float32).reshape(-1, 5)
            expected_ids, expected_scores = exact(list(oracle), stored, query, k)
            assert ids[0].tolist() == expected_ids
            assert np.array_equal(scores[0], np.clip(expected_scores, -1, 1).astype(np.float32))
            assert len(index) == len(oracle)
    finally:
        vectors_module.DELTA_LIMIT = original
