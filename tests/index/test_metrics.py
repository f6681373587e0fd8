"""Retrieval metrics against a double loop in float64, pytorch-metric-learning and scikit-learn."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from index import metrics
from index.errors import InvalidArgumentError
from index.metrics import evaluate, nearest, normalized_mutual_information, score

Mask = NDArray[np.bool_]


def naive_neighbours(
    embeddings: NDArray[Any], row: int, queries: Mask | None = None, gallery: Mask | None = None
) -> list[int]:
    x = embeddings.astype(np.float64)
    if gallery is None:
        gallery = np.ones(len(x), bool) if queries is None else ~queries
    others = [j for j in range(len(x)) if j != row and gallery[j]]
    return sorted(others, key=lambda j: (((x[row] - x[j]) ** 2).sum(), j))


def naive_metrics(
    embeddings: NDArray[Any],
    labels: Sequence[Any],
    ks: Sequence[int],
    queries: Mask | None = None,
    gallery: Mask | None = None,
) -> dict[str, Any]:
    hits: dict[int, list[bool]] = {k: [] for k in ks}
    r_precisions, average_precisions, skipped = [], [], 0
    for row in range(len(embeddings)):
        if queries is not None and not queries[row]:
            continue
        right = [
            labels[j] == labels[row] for j in naive_neighbours(embeddings, row, queries, gallery)
        ]
        total = sum(right)
        if total == 0:
            skipped += 1
            continue
        for k in ks:
            hits[k].append(any(right[:k]))
        r_precisions.append(sum(right[:total]) / total)
        precisions = [sum(right[: i + 1]) / (i + 1) for i in range(total) if right[i]]
        average_precisions.append(sum(precisions) / total)
    return {
        "recall": {k: sum(hit) / len(hit) for k, hit in hits.items()},
        "r_precision": sum(r_precisions) / len(r_precisions),
        "map_at_r": sum(average_precisions) / len(average_precisions),
        "queries": len(r_precisions),
        "skipped": skipped,
    }


def assert_equals_naive(
    embeddings: NDArray[Any],
    labels: Sequence[Any],
    ks: Sequence[int],
    queries: Mask | None = None,
    gallery: Mask | None = None,
) -> None:
    found = evaluate(embeddings, labels, ks=ks, queries=queries, gallery=gallery)
    expected = naive_metrics(embeddings, labels, ks, queries, gallery)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-12)
    assert found.r_precision == pytest.approx(expected["r_precision"], abs=1e-12)
    assert found.map_at_r == pytest.approx(expected["map_at_r"], abs=1e-12)
    assert (found.queries, found.skipped) == (expected["queries"], expected["skipped"])


def ranking(embeddings: NDArray[Any], m: int) -> NDArray[np.int64]:
    """The m nearest of every row, in the order of the rows."""
    n = len(embeddings)
    found = np.full((n, min(m, n - 1)), -1)
    for rows, neighbours in nearest(embeddings, np.full(n, m)):
        assert (found[rows] == -1).all()
        found[rows] = neighbours
    return found


def clusters(seed: int, n: int, d: int, classes: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    x = rng.standard_normal((classes, d))[labels] + 0.9 * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


# Definitions


def test_worked_example_of_six_rankings() -> None:
    positions = [[0, 1, 3], [0, 3, 4], [1, 2, 4], [2, 3, 4], [0], [3]]
    relevant = np.zeros((6, 5), bool)
    for row, right in enumerate(positions):
        relevant[row, right] = True
    first, r_precision, average_precision = score(relevant, relevant.sum(1))
    assert first.tolist() == [1, 1, 2, 3, 1, 4]  # so that recall@1, 2, 3, 4 is 3, 4, 5, 6 of 6
    assert r_precision.mean() == pytest.approx(0.5)
    assert average_precision.mean() == pytest.approx(5 / 12)


def test_the_query_is_left_out_by_index_though_another_item_ties_with_it() -> None:
    found = evaluate(np.array([[10.0], [10.0], [20.0], [20.0]]), [1, 0, 1, 0], ks=[1])
    assert found.recall == {1: 0.0}


def test_ties_go_to_the_lowest_index() -> None:
    x = np.array([[0.0], [1.0], [-1.0], [1.0], [0.0], [2.0]])
    assert ranking(x, 5).tolist() == [
        [4, 1, 2, 3, 5],
        [3, 0, 4, 5, 2],
        [0, 4, 1, 3, 5],
        [1, 0, 4, 5, 2],
        [0, 1, 2, 3, 5],
        [1, 3, 0, 4, 2],
    ]


def test_items_alone_in_their_class_are_skipped_but_still_found() -> None:
    # The stranger lies between the two of a kind and takes their first rank.
    found = evaluate(np.array([[0.0], [0.4], [1.0]]), ["a", "stranger", "a"], ks=[1, 2])
    assert found.recall == {1: 0.0, 2: 1.0}
    assert (found.queries, found.skipped) == (2, 1)


def test_k_beyond_the_gallery_counts_all_other_items() -> None:
    x, labels = clusters(0, n=12, d=3, classes=3)
    assert evaluate(x, labels, ks=[11, 12, 10_000]).recall == {11: 1.0, 12: 1.0, 10_000: 1.0}


# Independent implementations


@given(data=st.data(), n=st.integers(2, 14), d=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_equals_a_double_loop_on_small_integers_full_of_ties(
    data: st.DataObject, n: int, d: int
) -> None:
    x = data.draw(hnp.arrays(np.float32, (n, d), elements=st.integers(-2, 2)))
    labels = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    labels[0] = labels[-1]
    assert_equals_naive(x, labels, (1, 2, 4, 20))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 50.0], ids=["centred", "far from the origin"])
def test_equals_a_double_loop_on_clusters(dtype: type, offset: float) -> None:
    x, labels = clusters(1, n=120, d=8, classes=9)
    assert_equals_naive((x + offset).astype(dtype), labels.tolist(), (1, 3, 10))


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-7])
def test_order_is_exact_where_rounding_would_decide(spread: float) -> None:
    """Clusters so tight, beside an outlier so far, that float32 products cannot order them."""
    rng = np.random.default_rng(2)
    x = (1 + spread * rng.standard_normal((80, 16))).astype(np.float32)
    x[40:] *= -1
    x[-1] = 1e4
    assert ranking(x, 20).tolist() == [naive_neighbours(x, row)[:20] for row in range(len(x))]


def test_order_is_exact_between_distances_that_differ_in_the_last_bit() -> None:
    steps = 1 + np.arange(30) * np.finfo(np.float64).eps
    x = np.concatenate([[0.0], np.random.default_rng(3).permutation(steps), [-1e3]])[:, None]
    assert ranking(x, 31)[0].tolist() == naive_neighbours(x, 0)


def test_positive_and_negative_zero_are_the_same_vector() -> None:
    x = np.array([[3.0], [0.0], [-0.0], [0.0], [-0.0]])
    assert ranking(x, 3)[0].tolist() == [1, 2, 3]


def test_equals_pytorch_metric_learning() -> None:
    torch = pytest.importorskip("torch", reason="the reference comes with the train extra")
    pml = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = clusters(4, n=400, d=16, classes=25)
    calculator = pml.AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        device=torch.device("cpu"),
    )
    expected = calculator.get_accuracy(x, labels)
    found = evaluate(x, labels, ks=[1])
    assert found.skipped == 0
    assert found.recall[1] == pytest.approx(expected["precision_at_1"], abs=1e-9)
    assert found.r_precision == pytest.approx(expected["r_precision"], abs=1e-9)
    assert found.map_at_r == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-9)


# Queries and gallery apart


def test_queries_do_not_find_one_another_and_keep_their_gallery_order() -> None:
    # Queries at 0 and 0.1; the gallery ties at 1 and −1, so that the lower index comes first.
    x = np.array([[1.0], [0.0], [-1.0], [0.1], [5.0]])
    queries = np.array([False, True, False, True, False])
    (rows, neighbours), *more = nearest(x, np.where(queries, 9, 0), gallery=~queries)
    assert more == []
    assert rows.tolist() == [1, 3]
    assert neighbours.tolist() == [[0, 2, 4], [0, 2, 4]]
    found = evaluate(x, ["a", "b", "b", "b", "c"], ks=[1, 2], queries=queries)
    assert found.recall == {1: 0.0, 2: 1.0}


def test_queries_without_an_answer_in_the_gallery_are_skipped() -> None:
    # Two queries show a class that is in no gallery item, though they share it.
    x = np.array([[0.0], [0.1], [0.2], [0.3], [0.4]])
    queries = np.array([True, True, True, False, False])
    found = evaluate(x, ["b", "b", "a", "a", "c"], ks=[1], queries=queries)
    assert (found.queries, found.skipped) == (1, 2)  # a and c of the gallery are not counted
    assert found.recall == {1: 1.0}


def test_right_answers_are_those_of_the_gallery() -> None:
    # The query's class has three queries and two gallery items, at ranks 1 and 3: R is 2.
    x = np.array([[0.0], [0.0], [0.0], [1.0], [2.0], [3.0]])
    queries = np.array([True, True, True, False, False, False])
    found = evaluate(x, ["a", "a", "a", "a", "b", "a"], ks=[1], queries=queries)
    assert found.r_precision == pytest.approx(1 / 2)
    assert found.map_at_r == pytest.approx(1 / 2)


@given(data=st.data(), n=st.integers(2, 14), d=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_queries_and_gallery_equal_a_double_loop_on_small_integers(
    data: st.DataObject, n: int, d: int
) -> None:
    x = data.draw(hnp.arrays(np.float32, (n, d), elements=st.integers(-2, 2)))
    labels = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    queries = data.draw(hnp.arrays(np.bool_, n))
    queries[0], queries[-1], labels[0] = True, False, labels[-1]
    assert_equals_naive(x, labels, (1, 2, 4, 20), queries)


@pytest.mark.parametrize("offset", [0.0, 50.0], ids=["centred", "far from the origin"])
@pytest.mark.parametrize("share", [0.1, 0.9], ids=["few queries", "many queries"])
def test_queries_and_gallery_equal_a_double_loop_on_clusters(share: float, offset: float) -> None:
    x, labels = clusters(11, n=120, d=8, classes=9)
    queries = np.random.default_rng(12).random(120) < share
    assert_equals_naive((x + offset).astype(np.float32), labels.tolist(), (1, 3, 10), queries)


@given(data=st.data(), n=st.integers(2, 14), d=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_queries_that_are_in_part_in_the_gallery_equal_a_double_loop(
    data: st.DataObject, n: int, d: int
) -> None:
    x = data.draw(hnp.arrays(np.float32, (n, d), elements=st.integers(-2, 2)))
    labels = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    queries, gallery = (data.draw(hnp.arrays(np.bool_, n)) for _ in range(2))
    queries[0], gallery[-1], labels[0] = True, True, labels[-1]
    assert_equals_naive(x, labels, (1, 2, 4, 20), queries, gallery)


def test_the_last_of_the_gallery_counts_for_queries_inside_and_outside() -> None:
    # To the first item the right answer is the last of the 4 others, to the last one of all 5.
    x = np.array([[0.0], [1.0], [2.0], [9.0], [-2.0], [10.0]])
    queries = np.array([True, False, False, False, False, True])
    gallery = np.array([True, True, True, True, True, False])
    found = evaluate(x, list("baabcc"), ks=[3, 4, 5], queries=queries, gallery=gallery)
    assert found.recall == {3: 0.0, 4: 0.5, 5: 1.0}


def test_order_is_exact_for_queries_far_from_a_tight_gallery() -> None:
    """Keys of a query lose what lies below its own squared length, not that of the gallery."""
    rng = np.random.default_rng(13)
    x = (1 + 1e-6 * rng.standard_normal((80, 16))).astype(np.float32)
    queries = np.arange(80) < 20
    x[queries] += 1e4 * rng.standard_normal((20, 16)).astype(np.float32)
    found: dict[int, list[int]] = {}
    for rows, neighbours in nearest(x, np.where(queries, 15, 0), gallery=~queries):
        found |= dict(zip(rows.tolist(), neighbours.tolist(), strict=True))
    assert found == {row: naive_neighbours(x, row, queries)[:15] for row in range(20)}


def test_queries_and_gallery_equal_pytorch_metric_learning() -> None:
    torch = pytest.importorskip("torch", reason="the reference comes with the train extra")
    pml = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = clusters(14, n=400, d=16, classes=25)
    queries = np.random.default_rng(15).random(400) < 0.5
    labels[~queries & (labels < 3)] = 25  # queries of three classes have no answer
    calculator = pml.AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        device=torch.device("cpu"),
    )
    expected = calculator.get_accuracy(x[queries], labels[queries], x[~queries], labels[~queries])
    found = evaluate(x, labels, ks=[1], queries=queries)
    assert found.skipped == np.count_nonzero(labels[queries] < 3) > 0
    assert found.recall[1] == pytest.approx(expected["precision_at_1"], abs=1e-9)
    assert found.r_precision == pytest.approx(expected["r_precision"], abs=1e-9)
    assert found.map_at_r == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-9)


def test_blocks_do_not_change_the_figures_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clusters(16, n=200, d=8, classes=4)
    queries = np.arange(200) % 3 == 0
    whole = evaluate(x, labels, queries=queries)
    monkeypatch.setattr(metrics, "BLOCK_BYTES", 20_000)
    assert len(list(nearest(x, np.where(queries, 8, 0), gallery=~queries))) > 1
    assert evaluate(x, labels, queries=queries) == whole


def test_nmi_is_over_queries_and_gallery() -> None:
    x, labels = clusters(17, n=120, d=8, classes=12)
    queries = np.arange(120) < 50
    found = evaluate(x, labels, clustering=True, queries=queries)
    assert found.nmi == evaluate(x, labels, clustering=True).nmi


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones(4, bool), "4 of 4 items are queries and 0 the gallery"),
        (np.zeros(4, bool), "0 of 4 items are queries and 4 the gallery"),
        (np.ones(3, bool), r"queries are bool \[3\]: expected bool \[4\]"),
        (np.array([0, 1]), r"queries are int64 \[2\]: expected bool \[4\]"),
        (np.array([True, True, False, False]), "none of the 2 queries .* in the gallery of 2"),
    ],
)
def test_queries_that_cannot_be_judged_are_refused(queries: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        evaluate(np.eye(4), [0, 0, 1, 1], queries=queries)


# Laws


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_names_of_classes_do_not_matter_and_recall_grows_with_k(seed: int) -> None:
    x, labels = clusters(seed, n=40, d=4, classes=6)
    labels[:2] = 0
    names = np.array([f"car {label}" for label in range(6)])
    found = evaluate(x, labels, ks=[1, 2, 4, 39])
    assert evaluate(x, names[labels], ks=[1, 2, 4, 39]) == found
    assert evaluate(x, names[labels].astype(object), ks=[1, 2, 4, 39]) == found
    assert list(found.recall.values()) == sorted(found.recall.values())
    assert found.recall[39] == 1.0
    assert found.map_at_r <= found.r_precision


@pytest.mark.parametrize("block_bytes", [1, 20_000, 300_000])
def test_blocks_do_not_change_the_figures(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = clusters(5, n=200, d=8, classes=4)
    labels[:90] = 0  # one class much larger than the others
    whole = evaluate(x, labels)
    monkeypatch.setattr(metrics, "BLOCK_BYTES", block_bytes)
    blocks = [len(rows) for rows, _ in nearest(x, np.full(200, 8))]
    assert len(blocks) > 1
    assert evaluate(x, labels) == whole


def test_each_row_is_searched_as_deep_as_it_asks() -> None:
    x, _ = clusters(6, n=50, d=4, classes=5)
    depths = np.arange(50) % 7
    seen = []
    for rows, neighbours in nearest(x, depths):
        seen += rows.tolist()
        assert neighbours.shape[1] == depths[rows].max()
    assert sorted(seen) == np.flatnonzero(depths).tolist()


# Cost


def test_ten_thousand_identical_vectors_cost_no_more_than_others() -> None:
    n = 10_000
    x = np.tile(np.float32([0.6, -0.8, 0.1]), (n, 1))
    labels = np.arange(n) % 2_000
    found = evaluate(x, labels, ks=[1, 8], clustering=True)
    # All tie, so the ranking is 0, 1, 2, …: rows 0 … 7 are of classes 0 … 7.
    assert found.recall[1] == pytest.approx(4 / n)  # the other four of class 0
    assert found.recall[8] == pytest.approx(8 * 4 / n)


def test_duplicates_of_a_few_vectors_are_ranked_by_index() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((3, 4)).astype(np.float32)[rng.integers(3, size=90)]
    assert ranking(x, 60).tolist() == [naive_neighbours(x, row)[:60] for row in range(len(x))]


def test_order_is_exact_where_some_vectors_have_duplicates_and_others_none() -> None:
    embeddings, labels = clusters(seed=3, n=150, d=16, classes=8)
    embeddings[50:60] = embeddings[40]
    embeddings[70] = embeddings[120]
    assert_equals_naive(embeddings, labels, [1, 5, 12])


@pytest.mark.parametrize("apart", [10.0, 1e4, 1e7])
def test_order_is_exact_in_tight_clusters_far_from_each_other(apart: float) -> None:
    """float32 tells nothing apart there, up to all of a cluster."""
    embeddings, labels = clusters(seed=4, n=150, d=8, classes=6)
    wide = embeddings.astype(np.float64)
    wide[75:] += apart
    assert_equals_naive(wide, labels, [1, 4])


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e20, 1e140])
def test_order_is_exact_at_any_scale(scale: float) -> None:
    embeddings, labels = clusters(seed=5, n=100, d=4, classes=5)
    assert_equals_naive(scale * embeddings.astype(np.float64), labels, [1, 4])


@pytest.mark.parametrize("classes", [400, 2], ids=["small classes", "two huge classes"])
def test_memory_is_a_float64_copy_and_a_block(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d, block = 4_000, 64, 8 * 2**20
    rng = np.random.default_rng(8)
    x = rng.standard_normal((n, d), np.float32)
    labels = rng.integers(classes, size=n)
    monkeypatch.setattr(metrics, "BLOCK_BYTES", block)
    tracemalloc.start()
    evaluate(x, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    copy = n * d * 8
    assert peak < 1.1 * copy + block + n * 200  # n × n float64 would be 128 MB
    assert peak > block / 2  # the budget is used


# Clustering


@given(
    a=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    seed=st.integers(0, 10**6),
    parts=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_nmi_equals_scikit_learn(a: list[int], seed: int, parts: int) -> None:
    b = np.random.default_rng(seed).integers(parts, size=len(a))
    expected = normalized_mutual_info_score(a, b, average_method="arithmetic")
    assert normalized_mutual_information(a, b) == pytest.approx(expected, abs=1e-10)


def test_nmi_of_clusters_that_are_the_classes_is_one() -> None:
    rng = np.random.default_rng(9)
    labels = np.repeat([3, 5], 30)
    x = np.where(labels == 3, -10.0, 10.0)[:, None] + 0.1 * rng.standard_normal((60, 4))
    assert evaluate(x, labels, clustering=True).nmi == pytest.approx(1.0)


def test_nmi_is_reproducible_and_only_on_request() -> None:
    x, labels = clusters(10, n=300, d=8, classes=12)
    first, second = (evaluate(x, labels, clustering=True, seed=1).nmi for _ in range(2))
    assert first == second
    assert 0.2 < first < 1
    assert evaluate(x, labels, clustering=True, seed=2).nmi != first
    assert evaluate(x, labels).nmi is None


# Errors


@pytest.mark.parametrize("k", [0, -1, 10_001, 1.0, True, "1", None])
def test_k_must_be_an_integer_in_range(k: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"from 1 to 10,000"):
        evaluate(np.eye(4), [0, 0, 1, 1], ks=[1, k])


def test_numpy_integers_are_integers_and_ks_come_back_sorted() -> None:
    found = evaluate(np.eye(4), [0, 0, 1, 1], ks=[np.int64(2), 1, 2])
    assert list(found.recall) == [1, 2]
    assert all(type(k) is int for k in found.recall)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200, -1e200])
def test_embeddings_that_cannot_be_ranked_are_counted(bad: float) -> None:
    x = np.eye(4)
    x[1, 2] = x[3, 0] = bad
    with pytest.raises(InvalidArgumentError, match="2 of 4 embeddings hold NaN or infinity"):
        evaluate(x, [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("embeddings", "labels", "ks", "message"),
    [
        (np.zeros(4), [0, 0, 1, 1], [1], r"float64 \[4\]"),
        (np.zeros((4, 0)), [0, 0, 1, 1], [1], r"\[4, 0\]"),
        (np.zeros((4, 2), complex), [0, 0, 1, 1], [1], "complex128"),
        (np.zeros((1, 2)), [0], [1], "at least 2"),
        (np.zeros((0, 2)), [], [1], "at least 2"),
        (np.zeros((4, 2)), [0, 0, 1], [1], r"\[3\].*\[4\]"),
        (np.zeros((4, 2)), [[0], [0], [1], [1]], [1], r"\[4, 1\].*\[4\]"),
        (np.zeros((4, 2)), [0.0, 0.0, 1.0, 1.0], [1], "float64.*integers or strings"),
        (np.zeros((4, 2)), ["a", "a", None, None], [1], "object.*integers or strings"),
        (np.zeros((4, 2)), [0, 0, 1, 1], [], "no K"),
        (np.zeros((4, 2)), [0, 1, 2, 3], [1], "each of the 4 items is alone"),
    ],
)
def test_wrong_input_is_named(embeddings: Any, labels: Any, ks: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        evaluate(embeddings, labels, ks=ks)
