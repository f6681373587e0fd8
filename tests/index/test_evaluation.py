"""``Gallery.evaluate`` and ``evaluate_photos`` against a double loop over a dict of items."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index import Evaluation, Gallery, Model
from index.errors import InvalidArgumentError
from index.evaluation import MAX_CONFUSION, MAX_HARDEST, Confusion, HardQuery
from tests.index.gallery_items import DIM, item, unit
from tests.tiny_model import make_model_folder

KS = (1, 3, 200)


@dataclass(frozen=True)
class Stored:
    id: int
    vector: NDArray[np.float64]
    label: str | None
    year: int


@dataclass(frozen=True)
class Query:
    """How a query did, by a loop."""

    id: int
    label: str
    ranking: list[Stored]  # of all the gallery but itself, nearest first
    hits: dict[int, bool]
    r_precision: float
    average_precision: float
    answers: int
    first: int  # rank of the first right answer, from 1


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """130 items: labels of different sizes, some alone, some without; some vectors equal."""
    model = Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))
    rng = np.random.default_rng(3)
    vectors = unit(130, seed=4)
    vectors[100:130] = vectors[40:70]
    labels: list[str | None] = [f"car-{int(rng.exponential(4))}" for _ in vectors]
    labels[5:9] = [None] * 4
    labels[9] = "alone"
    with Gallery.create(tmp_path_factory.mktemp("galleries") / "cars", model) as gallery:
        ids = gallery.add(
            [
                item(f"{i}.jpg", v, label=labels[i], attributes={"year": 2000 + i % 6})
                for i, v in enumerate(vectors)
            ]
        )
        gallery.remove(ids[20:24])
        yield gallery


@pytest.fixture(scope="module")
def stored(gallery: Gallery) -> list[Stored]:
    return [
        Stored(each.id, vector.astype(np.float64), each.label, int(str(each.attributes["year"])))
        for each in gallery.items(limit=1000)
        for vector in gallery.vectors([each.id])
    ]


def loop(queries: Sequence[Stored], among: Sequence[Stored]) -> tuple[list[Query], int]:
    """How each query did that has an answer, and how many have none."""
    done, skipped = [], 0
    for query in queries:
        others = [each for each in among if each.id != query.id and each.label is not None]
        others.sort(key=lambda each: (-float(each.vector @ query.vector), each.id))
        right = [each.label == query.label for each in others]
        answers = sum(right)
        if query.label is None:
            continue
        if answers == 0:
            skipped += 1
            continue
        precisions = [sum(right[: i + 1]) / (i + 1) for i in range(answers) if right[i]]
        done.append(
            Query(
                id=query.id,
                label=query.label,
                ranking=others,
                hits={k: any(right[:k]) for k in KS},
                r_precision=sum(right[:answers]) / answers,
                average_precision=sum(precisions) / answers,
                answers=answers,
                first=right.index(True) + 1,
            )
        )
    return done, skipped


def mean(values: Sequence[float]) -> Any:
    return pytest.approx(sum(values) / len(values), abs=1e-12)


def assert_is_loop(found: Evaluation, done: Sequence[Query], skipped: int) -> None:
    metrics = found.metrics
    assert (metrics.queries, metrics.skipped) == (len(done), skipped)
    assert metrics.recall == {k: mean([query.hits[k] for query in done]) for k in KS}
    assert metrics.r_precision == mean([query.r_precision for query in done])
    assert metrics.map_at_r == mean([query.average_precision for query in done])

    assert found.per_class is not None
    labels = sorted({query.label for query in done})
    assert [each.label for each in found.per_class] == labels
    for each in found.per_class:
        own = [query for query in done if query.label == each.label]
        assert each.queries == len(own)
        assert each.recall == {k: mean([query.hits[k] for query in own]) for k in KS}
        assert each.r_precision == mean([query.r_precision for query in own])
        assert each.map_at_r == mean([query.average_precision for query in own])


def assert_hardest_are_loop(found: Sequence[HardQuery], done: Sequence[Query], count: int) -> None:
    # Stable: of equals the one that came first.
    hardest = sorted(done, key=lambda query: (round(query.average_precision, 12), -query.first))
    hardest = hardest[:count]
    assert [each.id for each in found] == [query.id for query in hardest]
    for each, query in zip(found, hardest, strict=True):
        assert (each.label, each.answers, each.first) == (query.label, query.answers, query.first)
        assert each.average_precision == pytest.approx(query.average_precision, abs=1e-12)
        nearest = query.ranking[:8]
        assert [near.id for near in each.neighbours] == [near.id for near in nearest]
        assert [near.label for near in each.neighbours] == [near.label for near in nearest]


def assert_confusion_is_loop(found: Sequence[Confusion], done: Sequence[Query]) -> None:
    by_id = {near.id: near for query in done for near in query.ranking}
    labels = Counter(query.label for query in done)
    wrong: dict[tuple[str, str], list[Query]] = {}
    for query in done:
        first = query.ranking[0]
        if first.label != query.label:
            wrong.setdefault((str(query.label), str(first.label)), []).append(query)
    expected = sorted(
        wrong, key=lambda pair: (-len(wrong[pair]), -len(wrong[pair]) / labels[pair[0]], pair)
    )
    assert [(each.label, each.found) for each in found] == expected
    for each in found:
        queries = wrong[each.label, each.found]
        assert each.count == len(queries)
        assert each.share == pytest.approx(len(queries) / labels[each.label])
        assert each.query in {query.id for query in queries}
        [query] = [query for query in queries if query.id == each.query]
        assert each.nearest.id == query.ranking[0].id
        assert by_id[each.nearest.id].label == each.found


SIDES: dict[str, tuple[dict[str, Any] | None, Callable[[Stored], bool]]] = {
    "all": (None, lambda _: True),
    "old": ({"year": {"lt": 2003}}, lambda each: each.year < 2003),
    "odd": ({"year": [2001, 2003, 2005]}, lambda each: each.year % 2 == 1),
    "new": ({"year": {"gte": 2003}}, lambda each: each.year >= 2003),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("asking", "among"), list(itertools.product(SIDES, SIDES)))
def test_figures_of_any_queries_in_any_gallery_are_those_of_a_double_loop(
    gallery: Gallery, stored: list[Stored], asking: str, among: str, exact: bool
) -> None:
    (query_where, is_query), (gallery_where, is_there) = SIDES[asking], SIDES[among]
    queries = [each for each in stored if is_query(each)]
    searched = [each for each in stored if is_there(each)]
    done, skipped = loop(queries, searched)
    found = gallery.evaluate(
        KS,
        query_where=query_where,
        gallery_where=gallery_where,
        exact=exact,
        per_class=True,
        hardest=12,
        confusion=MAX_CONFUSION,
    )
    assert_is_loop(found, done, skipped)
    assert found.confusion is not None
    assert_confusion_is_loop(found.confusion, done)
    assert found.hardest is not None
    assert_hardest_are_loop(found.hardest, done, 12)
    assert found.gallery == sum(each.label is not None for each in searched)
    assert found.unlabelled == sum(
        each.label is None and (is_query(each) or is_there(each)) for each in stored
    )
    assert ("leave-one-out" in found.protocol) == (asking == among)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("among", SIDES)
def test_photos_from_outside_are_looked_up_and_find_themselves(
    gallery: Gallery, stored: list[Stored], among: str, exact: bool
) -> None:
    gallery_where, is_there = SIDES[among]
    vectors = np.concatenate([unit(30, seed=9), gallery.vectors([stored[0].id, stored[50].id])])
    labels = [f"car-{i % 9}" for i in range(30)] + ["unknown here", str(stored[50].label)]
    outside = [
        Stored(-1 - i, vector.astype(np.float64), label, 0)
        for i, (vector, label) in enumerate(zip(vectors, labels, strict=True))
    ]
    done, skipped = loop(outside, [each for each in stored if is_there(each)])
    assert skipped > 0
    found = gallery.evaluate_photos(
        vectors,
        labels,
        KS,
        gallery_where=gallery_where,
        exact=exact,
        per_class=True,
        hardest=MAX_HARDEST,
        confusion=MAX_CONFUSION,
    )
    assert_is_loop(found, done, skipped)
    assert found.confusion is not None
    assert_confusion_is_loop(found.confusion, done)
    assert found.hardest is not None
    assert_hardest_are_loop(found.hardest, done, MAX_HARDEST)
    assert "32 photos looked up in" in found.protocol


def test_where_is_both_sides_and_stands_alone(gallery: Gallery) -> None:
    where = {"year": {"lt": 2003}}
    both = gallery.evaluate(KS, query_where=where, gallery_where=where)
    assert gallery.evaluate(KS, where=where) == both
    with pytest.raises(InvalidArgumentError, match="either it or them"):
        gallery.evaluate(KS, where=where, query_where=where)


def test_what_was_not_asked_for_is_not_there(gallery: Gallery) -> None:
    found = gallery.evaluate(KS)
    assert (found.per_class, found.hardest, found.metrics.nmi) == (None, None, None)
    assert found.confusion is None


@pytest.mark.parametrize("count", [-1, MAX_CONFUSION + 1])
def test_a_number_of_confused_pairs_out_of_range_is_refused(gallery: Gallery, count: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"confusion is {count}"):
        gallery.evaluate(KS, confusion=count)
    some = gallery.evaluate(KS, confusion=2).confusion
    assert some == gallery.evaluate(KS, confusion=3).confusion[:2]


@pytest.mark.parametrize("count", [-1, MAX_HARDEST + 1])
def test_a_number_of_hardest_out_of_range_is_refused_and_named(
    gallery: Gallery, count: int
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"hardest is {count}"):
        gallery.evaluate(KS, hardest=count)


def test_sides_that_share_no_label_say_so(gallery: Gallery) -> None:
    with pytest.raises(InvalidArgumentError, match=r"none of the 1 queries .* written alike"):
        gallery.evaluate(KS, query_where={"label": "alone"})
    with pytest.raises(InvalidArgumentError, match="no labelled items, where"):
        gallery.evaluate(KS, gallery_where={"year": 1900})


@pytest.mark.parametrize("exact", [True, False])
def test_progress_ends_at_all_queries_and_can_stop_the_work(gallery: Gallery, exact: bool) -> None:
    told: list[tuple[int, int]] = []
    found = gallery.evaluate(KS, exact=exact, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (found.metrics.queries, found.metrics.queries)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.evaluate(KS, exact=exact, progress=stop)


def test_a_single_item_gallery_answers_photos_and_no_query_of_its_own(
    tmp_path: Path, gallery: Gallery
) -> None:
    with Gallery.create(tmp_path / "one", gallery.model) as one:
        one.add([item("1.jpg", unit(1)[0], label="a")])
        for exact in (True, False):
            found = one.evaluate_photos(unit(2, seed=1), ["a", "b"], (1,), exact=exact)
            assert (found.metrics.recall, found.metrics.skipped) == ({1: 1.0}, 1)
            with pytest.raises(InvalidArgumentError):
                one.evaluate((1,), exact=exact)
