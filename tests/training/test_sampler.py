"""Laws of class-balanced batches."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import InvalidArgumentError
from training.sampler import ClassBalancedBatches, plan_batch


@st.composite
def samplers(draw: st.DrawFn) -> tuple[np.ndarray, ClassBalancedBatches]:
    counts = draw(st.lists(st.integers(1, 13), min_size=1, max_size=8))
    names = draw(st.lists(st.integers(0, 99), min_size=len(counts), max_size=len(counts),
                          unique=True))  # fmt: skip
    labels = np.repeat(names, counts)
    np.random.default_rng(draw(st.integers(0, 9))).shuffle(labels)
    sampler = ClassBalancedBatches(
        labels,
        classes_per_batch=draw(st.integers(1, len(counts))),
        images_per_class=draw(st.integers(2, 5)),
        seed=draw(st.integers(0, 2**32)),
    )
    return labels, sampler


@given(samplers(), st.integers(0, 1000))
def test_every_batch_has_p_classes_of_k_images(
    case: tuple[np.ndarray, ClassBalancedBatches], epoch: int
) -> None:
    labels, sampler = case
    for batch in sampler.epoch(epoch):
        assert batch.dtype == np.int64
        per_class = Counter(labels[batch].tolist())
        assert len(per_class) == sampler.classes_per_batch
        assert set(per_class.values()) == {sampler.images_per_class}


@given(samplers(), st.integers(0, 1000))
def test_classes_take_turns_so_that_each_part_of_a_batch_shows_as_many_as_it_can(
    case: tuple[np.ndarray, ClassBalancedBatches], epoch: int
) -> None:
    labels, sampler = case
    for batch in sampler.epoch(epoch):
        for start in range(len(batch)):
            part = labels[batch[start : start + sampler.classes_per_batch]]
            assert len(set(part.tolist())) == len(part)


@given(samplers(), st.integers(0, 1000))
def test_every_epoch_visits_every_image(
    case: tuple[np.ndarray, ClassBalancedBatches], epoch: int
) -> None:
    labels, sampler = case
    visited = np.concatenate(sampler.epoch(epoch))
    assert set(visited.tolist()) == set(range(len(labels)))


@given(samplers())
def test_images_repeat_within_a_batch_only_in_classes_too_small_and_then_evenly(
    case: tuple[np.ndarray, ClassBalancedBatches],
) -> None:
    labels, sampler = case
    sizes = Counter(labels.tolist())
    for batch in sampler.epoch(0):
        for image, times in Counter(batch.tolist()).items():
            assert times <= math.ceil(sampler.images_per_class / sizes[labels[image]])


@given(samplers())
def test_no_schedule_has_fewer_batches(case: tuple[np.ndarray, ClassBalancedBatches]) -> None:
    labels, sampler = case
    groups = [math.ceil(n / sampler.images_per_class) for n in Counter(labels.tolist()).values()]
    # A class is in a batch once at most, and a batch has room for P groups.
    least = max(max(groups), math.ceil(sum(groups) / sampler.classes_per_batch))
    assert len(sampler) == len(sampler.epoch(0)) == least


@given(samplers(), st.integers(0, 1000))
def test_an_epoch_depends_on_seed_and_number_alone(
    case: tuple[np.ndarray, ClassBalancedBatches], epoch: int
) -> None:
    labels, sampler = case
    sampler.epoch(epoch + 1)  # what was asked before does not matter
    again = ClassBalancedBatches(
        labels,
        classes_per_batch=sampler.classes_per_batch,
        images_per_class=sampler.images_per_class,
        seed=sampler.seed,
    )
    np.testing.assert_array_equal(sampler.epoch(epoch), again.epoch(epoch))


def test_epochs_and_seeds_differ() -> None:
    labels = np.repeat(np.arange(5), 12)

    def first(seed: int, epoch: int) -> list[int]:
        sampler = ClassBalancedBatches(labels, classes_per_batch=3, images_per_class=4, seed=seed)
        return sampler.epoch(epoch)[0].tolist()

    assert len({tuple(first(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_companions_within_a_group_change_from_epoch_to_epoch() -> None:
    sampler = ClassBalancedBatches(
        np.repeat([0, 1], 8), classes_per_batch=2, images_per_class=2, seed=0
    )
    batches = [batch for epoch in range(60) for batch in sampler.epoch(epoch)]
    pairs = {frozenset(batch[batch < 8].tolist()) for batch in batches}
    assert len(pairs) == 28  # all pairs of 8 images


def test_classes_left_out_of_the_last_batches_are_filled_in_at_random() -> None:
    labels = np.repeat(np.arange(6), [40, 2, 2, 2, 2, 2])
    sampler = ClassBalancedBatches(labels, classes_per_batch=2, images_per_class=2, seed=3)
    companions = Counter(
        label for e in range(5) for b in sampler.epoch(e) for label in set(labels[b].tolist())
    )
    assert companions[0] == 5 * len(sampler) == 100  # the big class is in every batch
    assert all(companions[label] >= 10 for label in range(1, 6))


def test_filling_draws_other_images_each_time() -> None:
    labels = np.repeat([0, 1], [40, 8])
    sampler = ClassBalancedBatches(labels, classes_per_batch=2, images_per_class=4, seed=0)
    drawn = {frozenset(batch[labels[batch] == 1].tolist()) for batch in sampler.epoch(0)}
    assert len(drawn) > 6  # two groups that cover the class, eight fillings


def test_fewer_classes_than_a_batch_needs_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"batch of 4 classes.*there are 3.*--batch-size"
    ):
        ClassBalancedBatches([0, 0, 1, 1, 2, 2], classes_per_batch=4, images_per_class=2, seed=0)


@pytest.mark.parametrize(
    ("p", "k", "seed", "message"),
    [(2, 1, 0, "1 images per class"), (0, 2, 0, "0 classes per batch"), (2, 2, -1, "seed -1")],
)
def test_values_out_of_range_are_refused(p: int, k: int, seed: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ClassBalancedBatches([0, 0, 1, 1], classes_per_batch=p, images_per_class=k, seed=seed)


@pytest.mark.parametrize(
    ("batch_size", "k", "classes", "expected"),
    [
        (784, 8, 98, (98, 8)),
        (1024, 8, 98, (98, 10)),  # all classes fit and share the rest
        (1024, 8, 16, (16, 64)),
        (128, 4, 98, (32, 4)),
        (130, 4, 98, (32, 4)),
        (4, 2, 2, (2, 2)),
    ],
)
def test_a_batch_is_divided_among_as_many_classes_as_fit(
    batch_size: int, k: int, classes: int, expected: tuple[int, int]
) -> None:
    assert plan_batch(batch_size, k, classes) == expected


@given(st.integers(4, 5000), st.integers(2, 64), st.integers(2, 1000))
def test_a_planned_batch_keeps_its_limits(batch_size: int, k: int, classes: int) -> None:
    if batch_size < 2 * k:
        with pytest.raises(InvalidArgumentError, match=f"batch of {batch_size}.*--batch-size"):
            plan_batch(batch_size, k, classes)
        return
    p, planned = plan_batch(batch_size, k, classes)
    assert 2 <= p <= classes
    assert planned >= k
    assert p * planned <= batch_size
    assert p == classes or (planned == k and (p + 1) * k > batch_size)
