"""Classes and photos that must not be in both train and test, whatever their names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import DataError
from tests.training.data_folders import judged, make_classes, shown
from training.data import leaked_photos, load_dataset
from training.data.names import folded

# Classes


@pytest.mark.parametrize("twin", ["bmw x5", "BMW_X5", " BMW X5", "BMW X5_", "_bmw__x5 "])
def test_a_class_written_in_two_ways_is_refused_by_both_names(tmp_path: Path, twin: str) -> None:
    make_classes(tmp_path / "train", "audi", "BMW X5")
    make_classes(tmp_path / "test", "fiat", twin)
    with pytest.raises(DataError, match=f"1 class is in both .*: 'BMW X5' and '{twin}'. "):
        load_dataset(tmp_path)


def test_classes_written_in_two_ways_are_refused_however_they_came_apart(tmp_path: Path) -> None:
    make_classes(tmp_path, "A", "B", "a", "b", "c")
    with pytest.raises(DataError, match=r"2 classes are in both .*: 'A' and 'a', 'B' and 'b'"):
        load_dataset(tmp_path, train_classes="A,B")
    with pytest.raises(DataError, match=r"1 class is in both .*: 'B' and 'b'"):
        load_dataset(tmp_path)  # A, B and a train
    assert load_dataset(tmp_path, train_classes="A,B,a,b").protocol == "folders 4/1"


@pytest.mark.parametrize("other", ["BMW X6", "BMWX5", "BMW-X5", "BMW X5 2012"])
def test_classes_that_differ_in_more_are_different(tmp_path: Path, other: str) -> None:
    make_classes(tmp_path / "train", "audi", "BMW X5")
    make_classes(tmp_path / "test", other)
    assert load_dataset(tmp_path).protocol == "folders 2/1"


@given(st.text("aB _ß\t", max_size=8), st.integers(0, 3))
def test_folding_a_name_removes_case_and_margins_once_and_for_all(name: str, margin: int) -> None:
    assert folded(folded(name)) == folded(name)
    assert folded(" " * margin + name.upper() + "_" * margin) == folded(name)


# Photos


def make_photos(root: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_photos_with_the_same_bytes_in_train_and_test_are_found(tmp_path: Path) -> None:
    make_photos(
        tmp_path,
        {
            "train/a/0.jpg": b"one",
            "train/a/1.jpg": b"two",
            "train/b/0.jpg": b"three",
            "train/b/1.jpg": b"two",  # twice in train is no leak by itself
            "test/c/0.jpg": b"six",  # of the size of others, not their content
            "test/c/1.jpg": b"two",
            "test/d/0.jpg": b"thirteen",
            "test/d/1.jpg": b"thirteen",  # nor is twice in test
            "test/d/2.jpg": b"three",
            "test/d/3.jpg": b"two",
        },
    )
    dataset = load_dataset(tmp_path)
    assert leaked_photos(dataset) == [
        (tmp_path / "train/a/1.jpg", tmp_path / "test/c/1.jpg"),
        (tmp_path / "train/b/0.jpg", tmp_path / "test/d/2.jpg"),
        (tmp_path / "train/a/1.jpg", tmp_path / "test/d/3.jpg"),
    ]
    clean = dataset.without(test for _, test in leaked_photos(dataset))
    assert leaked_photos(clean) == []
    assert shown(judged(clean)) == [("c", "c/0.jpg"), ("d", "d/0.jpg"), ("d", "d/1.jpg")]


def test_hard_links_are_the_same_bytes(tmp_path: Path) -> None:
    make_photos(tmp_path, {f"train/{c}/{i}.jpg": f"{c}{i}".encode() for c in "ab" for i in (0, 1)})
    (tmp_path / "test" / "c").mkdir(parents=True)
    (tmp_path / "test/c/0.jpg").hardlink_to(tmp_path / "train/b/0.jpg")
    pairs = leaked_photos(load_dataset(tmp_path))
    assert pairs == [(tmp_path / "train/b/0.jpg", tmp_path / "test/c/0.jpg")]


def test_only_files_of_a_shared_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(
        tmp_path,
        {
            "train/a/0.jpg": b"1", "train/a/1.jpg": b"22", "train/b/0.jpg": b"333",
            "train/b/1.jpg": b"4444", "test/c/0.jpg": b"xx", "test/c/1.jpg": b"55555",
        },
    )  # fmt: skip
    read: list[str] = []

    def recorded(path: Path) -> str:
        read.append(path.relative_to(tmp_path).as_posix())
        return path.read_text()

    monkeypatch.setattr("training.data.leaks.sha256_file", recorded)
    assert leaked_photos(load_dataset(tmp_path)) == []
    assert sorted(read) == ["test/c/0.jpg", "train/a/1.jpg"]


def test_without_test_photos_nothing_leaks(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", "a", "b")
    assert leaked_photos(load_dataset(tmp_path)) == []


# Leaving photos out


def test_photos_left_out_take_empty_classes_with_them(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", "a", "b", "c")
    make_classes(tmp_path / "test", "d")
    dataset = load_dataset(tmp_path)
    gone = {tmp_path / "train/a/0.jpg", tmp_path / "train/b/0.jpg", tmp_path / "train/b/1.jpg"}
    less = dataset.without(gone)
    assert shown(less.train) == [("a", "a/1.jpg"), ("c", "c/0.jpg"), ("c", "c/1.jpg")]
    assert shown(judged(less)) == shown(judged(dataset))
    assert less.protocol == dataset.protocol
    assert dataset.without(judged(dataset).paths).test is None
    with pytest.raises(DataError, match="no training photo"):
        dataset.without(dataset.train.paths)


def test_photos_left_out_take_their_query_mark_with_them(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", "a", "b")
    make_classes(tmp_path / "test", "c", "d")
    queries = np.array([True, False, False, True])
    dataset = dataclasses.replace(load_dataset(tmp_path), queries=queries)
    less = dataset.without([tmp_path / "test/c/1.jpg"])
    assert less.queries is not None
    assert less.queries.tolist() == [True, False, True]
    with pytest.raises(DataError, match="2 test photos, but no gallery"):
        less.without([tmp_path / "test/d/0.jpg"])
    with pytest.raises(DataError, match="2 test photos, but no query"):
        dataset.without([tmp_path / "test/c/0.jpg", tmp_path / "test/d/1.jpg"])
    assert dataset.without(judged(dataset).paths).queries is None
