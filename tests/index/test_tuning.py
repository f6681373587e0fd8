from __future__ import annotations

import itertools

import numpy as np
import pytest

from index import tuning
from index.approximate import due_kind
from index.errors import InvalidArgumentError
from index.tuning import build_base, retune
from index.vectors import VectorIndex
from tests.index.vector_sets import assert_exact, assert_ranked, brute_force_recall, clustered, unit

KINDS = ("flat", "ivf", "hnsw")


@pytest.mark.parametrize(
    ("kind", "target", "n"),
    [("ivf", 0.9, 12_000), ("ivf", 0.99, 12_000), ("hnsw", 0.95, 4000), ("flat", 0.99, 4000)],
)
def test_an_index_reaches_its_promised_recall(kind, target, n):
    rng = np.random.default_rng(0)
    drawn = clustered(rng, n + 300, 32)
    stored, queries = drawn[:n], drawn[n:]
    base = build_base(np.arange(n), stored, seq=3, kind=kind, target_recall=target)
    assert (base.kind, base.planned, base.requested, base.seq) == (kind, kind, kind, 3)
    assert base.recall >= base.target_recall == target
    index = VectorIndex.from_base(base)
    found, _ = index.search(queries, 10)
    # 3,000 answers of 300 queries scatter by about half of this.
    assert brute_force_recall(found, base.ids, stored, queries) >= target - 0.02
    assert index.measure_recall(seed=1) >= target - 0.02


def test_above_the_limit_the_index_is_approximate_by_itself():
    n = 50_001
    vectors = clustered(np.random.default_rng(1), n, 8)
    base = build_base(np.arange(n), vectors, seq=0)
    assert base.kind == base.planned == "ivf"
    assert base.requested == "auto"
    assert base.recall >= 0.99
    assert not VectorIndex.from_base(base).needs_rebuild


def test_the_due_kind_stays_for_sizes_near_the_limit():
    assert [due_kind("auto", n) for n in (0, 50_000, 50_001)] == ["flat", "flat", "ivf"]
    assert [due_kind("auto", n, "ivf") for n in (50_000, 40_001, 40_000)] == ["ivf", "ivf", "flat"]
    assert [due_kind("hnsw", n) for n in (999, 1000, 10**6)] == ["flat", "hnsw", "hnsw"]
    assert due_kind("flat", 10**7) == "flat"


def test_a_lower_target_costs_less_and_needs_no_training():
    vectors = clustered(np.random.default_rng(2), 8000, 32)
    for kind in ("ivf", "hnsw"):
        careful = build_base(np.arange(8000), vectors, seq=0, kind=kind, target_recall=0.995)
        quick = retune(careful, 0.6)
        assert quick.ann is careful.ann
        assert quick.recall >= quick.target_recall == 0.6
        assert quick.parameters.effort <= careful.parameters.effort
        assert quick.parameters.refine <= careful.parameters.refine
        assert kind == "hnsw" or quick.parameters != careful.parameters


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_target_out_of_reach_is_met_by_comparing_all(kind, monkeypatch, caplog):
    # Without a choice of more candidates, codes of 4 bits cannot tell near neighbours apart.
    monkeypatch.setattr(tuning, "REFINES", (1,))
    monkeypatch.setattr(tuning, "EF_SEARCHES", (1,))
    rng = np.random.default_rng(3)
    vectors = unit(rng, 3000, 48)
    base = build_base(np.arange(3000), vectors, seq=0, kind=kind, target_recall=0.999)
    assert (base.kind, base.planned, base.recall, base.ann) == ("flat", kind, 1.0, None)
    assert "reach recall 0.999" in caplog.text
    index = VectorIndex.from_base(base)
    assert not index.needs_rebuild, "it would end the same way"
    query = unit(rng, 1, 48)
    ids, scores = index.search(query, 10)
    assert_exact(ids[0], scores[0], dict(enumerate(vectors)), query[0], 10)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 9, 67])
@pytest.mark.parametrize("kind", KINDS)
def test_any_dimension_is_indexed(kind, d):
    rng = np.random.default_rng(d)
    vectors = unit(rng, 1100, d)
    base = build_base(np.arange(1100), vectors, seq=0, kind=kind, target_recall=0.9)
    index = VectorIndex.from_base(base)
    queries = unit(rng, 20, d)
    ids, scores = index.search(queries, 10)
    for row, query in enumerate(queries):
        assert_ranked(ids[row], scores[row], dict(enumerate(vectors)), query, 10)
    assert index.measure_recall() >= 0.85


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 2, 999])
def test_few_vectors_are_compared_one_and_all(kind, n):
    rng = np.random.default_rng(n)
    vectors = unit(rng, n, 6)
    index = VectorIndex.from_base(build_base(np.arange(n), vectors, seq=0, kind=kind))
    assert index.base.kind == "flat"
    assert not index.needs_rebuild
    query = unit(rng, 1, 6)
    ids, scores = index.search(query, 10)
    assert_exact(ids[0], scores[0], dict(enumerate(vectors)), query[0], 10)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_many_copies_of_a_few_vectors_are_indexed(kind):
    rng = np.random.default_rng(4)
    vectors = unit(rng, 5, 8)[rng.integers(0, 5, 1500)]
    index = VectorIndex.from_base(build_base(np.arange(1500), vectors, seq=0, kind=kind))
    for query in vectors[:3]:
        ids, scores = index.search(query[None], 10)
        assert_exact(ids[0], scores[0], dict(enumerate(vectors)), query, 10)


def test_progress_ascends_to_one():
    told: list[tuple[str, float]] = []
    vectors = clustered(np.random.default_rng(5), 2000, 8)
    for kind in KINDS:
        told.clear()
        build_base(
            np.arange(2000), vectors, seq=0, kind=kind, progress=lambda *step: told.append(step)
        )
        shares = [share for _, share in told]
        assert all(a <= b for a, b in itertools.pairwise(shares))
        assert shares[-1] == 1.0
        assert min(shares) >= 0


def test_what_progress_raises_stops_the_build():
    class StopError(Exception):
        pass

    def stop(stage: str, share: float) -> None:
        if stage == "adding":
            raise StopError

    vectors = clustered(np.random.default_rng(6), 1500, 8)
    with pytest.raises(StopError):
        build_base(np.arange(1500), vectors, seq=0, kind="ivf", progress=stop)


@pytest.mark.parametrize(
    ("ids", "shape", "options", "said"),
    [
        ([0, 1], (3, 4), {}, "shape"),
        ([0, 1, 2], (3,), {}, "shape"),
        ([0, 1, 2], (3, 0), {}, "shape"),
        ([0, 2, 1], (3, 4), {}, "ascend"),
        ([0, 1, 1], (3, 4), {}, "ascend"),
        ([0, 1, 2], (3, 4), {"kind": "lsh"}, "'lsh'.*auto, flat, ivf, hnsw"),
        ([0, 1, 2], (3, 4), {"target_recall": 0.0}, "0.0"),
        ([0, 1, 2], (3, 4), {"target_recall": 1.01}, "1.01"),
        ([0, 1, 2], (3, 4), {"target_recall": float("nan")}, "nan"),
    ],
)
def test_bad_arguments_are_named(ids, shape, options, said):
    with pytest.raises(InvalidArgumentError, match=said):
        build_base(np.array(ids), np.full(shape, 0.5, np.float32), seq=0, **options)


def test_an_exact_base_keeps_its_vectors_for_another_target():
    vectors = unit(np.random.default_rng(7), 50, 4)
    base = build_base(np.arange(50), vectors, seq=0)
    assert retune(base, 0.5).vectors is base.vectors
    with pytest.raises(InvalidArgumentError, match="target recall is 2"):
        retune(base, 2)
