"""What a run can be told, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from index.errors import InvalidArgumentError
from training.settings import TrainSettings


def test_the_defaults_are_accepted() -> None:
    TrainSettings(data="cars")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("dim", 1),
        ("size", 32),
        ("epochs", 1),
        ("images_per_class", 2),
        ("chunk_size", 1),
        ("lr", 0),
        ("backbone_lr", 0),
        ("weight_decay", 0),
        ("ridge", 0),
        ("whitening_ridge", 0),
        ("validation_classes", 0),
        ("workers", 0),
        ("cache_mb", 0),
        ("seed", 0),
    ],
)
def test_a_value_below_the_least_is_refused_by_name(name: str, least: int) -> None:
    TrainSettings(**{name: least})
    option = name.replace("_", "-")
    for value in (least - 1, math.nan):
        with pytest.raises(InvalidArgumentError) as caught:
            TrainSettings(**{name: value})
        assert str(caught.value) == f"--{option} is {value}: expected at least {least}."


@pytest.mark.parametrize(
    ("name", "good", "bad", "expected"),
    [
        ("warmup", [0, 1], [-0.1, 1.1, math.nan], r"0 … 1"),
        ("color", [0, 1], [-0.1, 1.1, math.nan], r"0 … 1"),
        ("min_area", [0.01, 1], [0, -1, 1.1, math.nan], r"above 0, at most 1"),
        ("feature_power", [0.1, 1], [0, -1, 1.1, math.nan], r"above 0, at most 1"),
        ("resize", ["squash", "crop", "pad"], ["stretch", ""], r"squash or crop or pad"),
        ("batch_norm", ["auto", "frozen", "train"], ["eval", None], r"auto or frozen or train"),
        ("device", ["auto", "cpu", "cuda"], ["gpu", "cuda:0"], r"auto or cpu or cuda"),
    ],
)
def test_a_value_that_is_not_among_the_possible_is_refused_by_name(
    name: str, good: list[Any], bad: list[Any], expected: str
) -> None:
    for value in good:
        TrainSettings(**{name: value})
    option = name.replace("_", "-")
    for value in bad:
        with pytest.raises(InvalidArgumentError, match=rf"--{option} is {value}: .*{expected}\."):
            TrainSettings(**{name: value})


@pytest.mark.parametrize("dim", [3, 64, 128])
def test_a_batch_on_which_the_loss_is_flat_is_refused_with_the_way_out(dim: int) -> None:
    TrainSettings(dim=dim, batch_size=dim + 2)
    with pytest.raises(InvalidArgumentError) as caught:
        TrainSettings(dim=dim, batch_size=dim + 1)
    for fact in (f"batch of {dim + 1} images", f"--batch-size above {dim + 1}", f"({8 * dim} is"):
        assert fact in str(caught.value)


def test_batch_norm_is_learned_where_nothing_is_known() -> None:
    learned = {
        (mode, weights): TrainSettings(batch_norm=mode, weights=weights).trains_batch_norm
        for mode in ("auto", "frozen", "train")
        for weights in ("none", "imagenet", "model/")
    }
    assert {case for case, yes in learned.items() if yes} == {
        ("auto", "none"), ("train", "none"), ("train", "imagenet"), ("train", "model/")
    }  # fmt: skip


def test_settings_survive_json() -> None:
    settings = TrainSettings(data="é", size=64, flip=False, lr=1e-5, train_classes="1-3", seed=7)
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_unknown_settings_are_refused_by_name() -> None:
    values = TrainSettings().to_dict() | {"momentum": 0.9, "beta": 1}
    with pytest.raises(InvalidArgumentError, match=r"unknown settings: beta, momentum\."):
        TrainSettings.from_dict(values)


def test_settings_kept_by_a_run_are_checked_again() -> None:
    with pytest.raises(InvalidArgumentError, match=r"--epochs is 0"):
        TrainSettings.from_dict(TrainSettings().to_dict() | {"epochs": 0})


def test_settings_do_not_change_under_way() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSettings().lr = 1  # type: ignore[misc]
