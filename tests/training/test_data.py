"""Layouts, splits and checks of labelled photos."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import StanfordCars

from index.errors import DataError, ImageError, InvalidArgumentError
from index.images import decode
from tests.training.data_folders import judged, make_classes, shown, touch
from training.data import (
    Photos,
    check_photos,
    check_trainable,
    hold_out,
    load_dataset,
    read_photo,
)
from training.data.names import natural

# Folders


def test_train_and_test_folders_give_the_split(tmp_path: Path) -> None:
    root = tmp_path / "cars"
    make_classes(root / "train", "audi", "bmw", "vw")
    make_classes(root / "test", "fiat")
    dataset = load_dataset(root)
    assert (dataset.name, dataset.protocol, dataset.layout) == ("cars", "folders 3/1", "train-test")
    assert dataset.train.classes == ("audi", "bmw", "vw")
    assert dataset.train.labels.dtype == np.int64
    assert shown(dataset.train) == [
        (name, f"{name}/{i}.jpg") for name in ("audi", "bmw", "vw") for i in (0, 1)
    ]
    assert shown(judged(dataset)) == [("fiat", "fiat/0.jpg"), ("fiat", "fiat/1.jpg")]
    assert dataset.notes == ()


def test_without_a_test_folder_there_is_no_test_split(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", "audi", "bmw")
    dataset = load_dataset(tmp_path)
    assert dataset.test is None
    assert dataset.protocol == "folders 2/0"


def test_folders_beside_train_and_test_are_noted(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", "a", "b")
    make_classes(tmp_path / "val", "c")
    (tmp_path / "README.md").touch()
    assert load_dataset(tmp_path).notes == ("only train/ and test/ are used, not val",)


def test_half_of_the_class_folders_train_unless_told_otherwise(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b", "c", "d")
    dataset = load_dataset(tmp_path)
    assert dataset.train.classes == ("a", "b")
    assert judged(dataset).classes == ("c", "d")
    assert (dataset.protocol, dataset.layout) == ("folders 2/2", "folders")


def test_hidden_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b", ".cache", "__MACOSX")
    for name in (".DS_Store", "._0.jpg", "notes.txt", "Thumbs.db"):
        touch(tmp_path / "a" / name)
    touch(tmp_path / "a" / "3.JPG")
    dataset = load_dataset(tmp_path, train_classes="2")
    assert shown(dataset.train) == [
        ("a", "a/0.jpg"), ("a", "a/1.jpg"), ("a", "a/3.JPG"), ("b", "b/0.jpg"), ("b", "b/1.jpg")
    ]  # fmt: skip


def test_numbers_in_class_names_are_ordered_by_value(tmp_path: Path) -> None:
    make_classes(tmp_path, *(str(i) for i in range(1, 12)))
    dataset = load_dataset(tmp_path, train_classes="10")
    assert dataset.train.classes == tuple(str(i) for i in range(1, 11))
    assert judged(dataset).classes == ("11",)


@given(st.lists(st.text("ab0129 -é²", min_size=1, max_size=6), min_size=4, unique=True))
def test_the_order_of_classes_depends_on_their_names_alone(names: list[str]) -> None:
    shuffled = names.copy()
    random.Random(0).shuffle(shuffled)
    assert sorted(names, key=natural) == sorted(shuffled, key=natural)


def test_the_folders_that_an_archive_unpacks_to_are_looked_through(tmp_path: Path) -> None:
    make_classes(tmp_path / "car_data" / "car_data" / "train", "a", "b")
    make_classes(tmp_path / "car_data" / "car_data" / "test", "c")
    (tmp_path / "__MACOSX").mkdir()
    assert load_dataset(tmp_path).protocol == "folders 2/1"


def test_a_class_in_both_folders_is_refused_by_name(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", *"abcdefgh")
    make_classes(tmp_path / "test", *"abcdefgz")
    with pytest.raises(DataError, match=r"7 classes are in both .*: a, b, c, d, e and 2 more\. "):
        load_dataset(tmp_path)


def test_classes_in_both_folders_can_be_split_anew(tmp_path: Path) -> None:
    for side in ("train", "test"):
        make_classes(tmp_path / side, "a", "b", "c", count=1)
    dataset = load_dataset(tmp_path, train_classes="2")
    assert dataset.train.classes == ("a", "b")
    assert [path.parts[-3] for path in dataset.train.paths] == ["test", "train"] * 2
    assert len(judged(dataset)) == 2


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b", "c")
    (tmp_path / "c" / "9.jpg").symlink_to(tmp_path / "a" / "0.jpg")
    with pytest.raises(DataError, match=r"a/0\.jpg \(class a\) and .*c/9\.jpg \(class c\)"):
        load_dataset(tmp_path)


def test_photos_without_class_folders_are_refused_by_what_was_found(tmp_path: Path) -> None:
    for i in range(7):
        touch(tmp_path / f"{i}.jpg")
    with pytest.raises(DataError, match=r"Found: 0\.jpg, .*4\.jpg and 2 more\. Known layouts"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match=r"train should hold a folder .* Found: 0\.jpg"):
        touch(tmp_path / "x" / "train" / "0.jpg")
        load_dataset(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Found: nothing"):
        load_dataset(tmp_path / "empty")


@pytest.mark.parametrize(("name", "message"), [("none", "does not exist"), ("a.txt", "neither")])
def test_what_is_no_data_set_is_refused(tmp_path: Path, name: str, message: str) -> None:
    touch(tmp_path / "a.txt")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / name)


# --train-classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", "001 002 003"),
        ("002-004", "002 003 004"),
        ("001, vw-golf", "001 vw-golf"),
        ("001-002,vw-golf-vw-polo", "001 002 vw-golf vw-polo"),
        ("003,001", "001 003"),
        ("003 - vw-golf", "003 004 vw-golf"),
    ],
)
def test_training_classes_are_chosen_by_number_range_or_name(
    tmp_path: Path, text: str, expected: str
) -> None:
    classes = ["001", "002", "003", "004", "vw-golf", "vw-polo"]
    make_classes(tmp_path, *classes)
    dataset = load_dataset(tmp_path, train_classes=text)
    assert dataset.train.classes == tuple(expected.split())
    assert set(judged(dataset).classes) == set(classes) - set(expected.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "there are 4 classes"),
        ("5", "there are 4 classes"),
        ("a,x", r"no class 'x'.*such as a-d\. The 4 classes: a, b, c, d"),
        ("c-a", "no class 'c-a'"),
        ("", "no class ''"),
        ("1", "one class only"),
        ("b", r"one class only \(b\)"),
    ],
)
def test_training_classes_that_are_not_there_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    make_classes(tmp_path, *"abcd")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path, train_classes=text)


# CSV


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(path: object, label: str, split: str, **more: str) -> dict[str, str]:
    return {"split": split, "path": str(path), "label": label, **more}


def test_a_csv_file_gives_paths_labels_and_split(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere" / "b1.jpg")
    for name in ("a1", "a2", "b2", "t1"):
        touch(tmp_path / "set" / "ims" / f"{name}.jpg")
    file = write_csv(
        tmp_path / "set" / "shop.csv",
        [
            row("ims/b2.jpg", "b", "train", colour="red"),
            row("ims/a2.jpg", "a", "train", colour=""),
            row(elsewhere, "b", "train", colour="red"),
            row("ims/t1.jpg", "é, t", "test", colour="red"),
            row("ims/a1.jpg", "a", "train", colour="red"),
        ],
    )
    dataset = load_dataset(file)
    assert (dataset.name, dataset.protocol, dataset.layout) == ("shop", "csv 2/1", "csv")
    assert shown(dataset.train) == [
        ("a", "ims/a1.jpg"), ("a", "ims/a2.jpg"), ("b", "elsewhere/b1.jpg"), ("b", "ims/b2.jpg")
    ]  # fmt: skip
    assert shown(judged(dataset)) == [("é, t", "ims/t1.jpg")]


def test_a_csv_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b")
    lines = ["path,label,split", *(f"{c}/{i}.jpg,{c},train" for c in "ab" for i in (0, 1))]
    (tmp_path / "x.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert load_dataset(tmp_path / "x.csv").protocol == "csv 2/0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "lacks the column split.*but is 'path,label'"),
        ("", "lacks the column path, label, split"),
        ("path,label,split\n", "lists no photo"),
        ("path,label,split\na/0.jpg,a,train\na/1.jpg,,train\n", "line 3: .*label ''"),
        ("path,label,split\na/0.jpg,a,val\n", "line 2: .*split 'val'"),
        ("path,label,split\na/0.jpg,a\n", "line 2: .*split ''"),
        (
            "path,label,split\na/0.jpg,a,train\na/1.jpg,a,train\nb/0.jpg,b,test\nb/1.jpg,b,query\n",
            r"split test \(line 4\) and the split query \(line 5\)",
        ),
        ("path,label,split\nx.jpg,a,train\na/0.jpg,a,train\n", "lists 1 file not found.*: x.jpg"),
        ("path,label,split\na/0.jpg,a,train\nb/0.jpg,b,test\na/1.jpg,a,test\n", "1 class is in"),
        ("path,label,split\na/0.jpg,a,train\na/../a/0.jpg,b,test\n", "one and the same file"),
        ("path,label,split\na/0.jpg,a,test\n", "no training photos"),
        ("path,label,split\na/0.jpg,\xff,test\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    make_classes(tmp_path, "a", "b")
    (tmp_path / "x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "x.csv")


QUERY_ROWS = [
    *(row(f"{c}/{i}.jpg", c, "train") for c in "ab" for i in (0, 1)),
    row("d/0.jpg", "d", "gallery"),
    row("c/1.jpg", "c", "query"),
    row("c/0.jpg", "c", "gallery"),
    row("d/1.jpg", "d", "query"),
]


def test_a_csv_file_may_have_queries_and_a_gallery(tmp_path: Path) -> None:
    make_classes(tmp_path, *"abcd")
    dataset = load_dataset(write_csv(tmp_path / "x.csv", QUERY_ROWS))
    assert (dataset.protocol, dataset.layout) == ("csv-query-gallery 2/2", "csv")
    assert dataset.queries is not None
    assert dataset.queries.dtype == np.bool_
    queries = zip(shown(judged(dataset)), dataset.queries, strict=True)
    assert [photo for photo, query in queries if query] == [("c", "c/1.jpg"), ("d", "d/1.jpg")]
    assert len(judged(dataset)) == 4


def test_a_csv_file_without_them_has_no_queries(tmp_path: Path) -> None:
    make_classes(tmp_path, *"abcd")
    rows = [{**each, "split": each["split"].replace("query", "test").replace("gallery", "test")}
            for each in QUERY_ROWS]  # fmt: skip
    dataset = load_dataset(write_csv(tmp_path / "x.csv", rows))
    assert (dataset.protocol, dataset.queries) == ("csv 2/2", None)


@pytest.mark.parametrize(("only", "lacking"), [("query", "no gallery"), ("gallery", "no query")])
def test_queries_without_a_gallery_are_refused(tmp_path: Path, only: str, lacking: str) -> None:
    make_classes(tmp_path, *"abcd")
    rows = [each for each in QUERY_ROWS if each["split"] in ("train", only)]
    with pytest.raises(DataError, match=f"x has 2 test photos, but {lacking}"):
        load_dataset(write_csv(tmp_path / "x.csv", rows))


def test_queries_and_gallery_are_not_split_anew(tmp_path: Path) -> None:
    make_classes(tmp_path, *"abcd")
    file = write_csv(tmp_path / "x.csv", QUERY_ROWS)
    with pytest.raises(DataError, match="--train-classes 3 would split anew"):
        load_dataset(file, train_classes="3")
    shared = write_csv(tmp_path / "y.csv", [*QUERY_ROWS[:-1], row("d/1.jpg", "a", "query")])
    with pytest.raises(DataError, match=r"1 class is in both .*: a\. .* to one side\.$"):
        load_dataset(shared)


# Cars196

BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def save_mat(
    path: Path, annotations: list[dict[str, Any]] | None = None, classes: int | None = None
) -> None:
    """A .mat file of the published structure: 1 × m struct array, 1 × c cell array."""
    content: dict[str, Any] = {}
    if annotations is not None:
        table = np.zeros((1, len(annotations)), dtype=[(name, object) for name in annotations[0]])
        for i, annotation in enumerate(annotations):
            table[0, i] = tuple(annotation.values())
        content["annotations"] = table
    if classes is not None:
        names = np.array([f"Make {i}/Model" for i in range(1, classes + 1)], dtype=object)
        content["class_names"] = names[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, content)


def annotation(path_field: str, path: str, label: int | None) -> dict[str, Any]:
    corners = dict(zip(BOX, (np.uint8(3), np.uint8(2), np.uint16(300), np.uint8(9)), strict=True))
    image, labelled = {path_field: path}, {} if label is None else {"class": np.uint8(label)}
    if path_field == "fname":
        return corners | labelled | image
    return image | corners | labelled | {"test": np.uint8(0)}


def make_car_ims(root: Path) -> None:
    """Two photos of each class in the order of the classes, as published."""
    annotations = [
        annotation("relative_im_path", f"car_ims/{i:06d}.jpg", (i + 1) // 2) for i in range(1, 393)
    ]
    for each in annotations:
        touch(root / each["relative_im_path"])
    save_mat(root / "cars_annos.mat", annotations, classes=196)


def make_devkit(
    root: Path, *, devkit: str = "devkit", labels: str | None = "", nested: bool = False
) -> None:
    """Two training photos and one test photo of each class, classes in no order."""
    for side, count in (("train", 392), ("test", 196)):
        folder = root / f"cars_{side}" / (f"cars_{side}" if nested else "")
        annotations, unlabelled = [], []
        for i in range(1, count + 1):
            name = f"{i:05d}.jpg"
            touch(folder / name)
            annotations.append(annotation("fname", name, (i * 5) % 196 + 1))
            unlabelled.append(annotation("fname", name, None))
        if side == "train":
            save_mat(root / devkit / "cars_train_annos.mat", annotations)
        else:
            save_mat(root / devkit / "cars_test_annos.mat", unlabelled)
            if labels is not None:
                save_mat(root / labels / "cars_test_annos_withlabels.mat", annotations)
    save_mat(root / devkit / "cars_meta.mat", classes=196)


def test_car_ims_with_annotations_follows_the_protocol(tmp_path: Path) -> None:
    make_car_ims(tmp_path)
    dataset = load_dataset(tmp_path)
    assert (dataset.name, dataset.protocol, dataset.layout) == (
        "cars196", "cars196 98/98", "car_ims"
    )  # fmt: skip
    assert dataset.train.classes == tuple(f"Make {i}/Model" for i in range(1, 99))
    assert judged(dataset).classes == tuple(f"Make {i}/Model" for i in range(99, 197))
    assert shown(dataset.train)[:3] == [
        ("Make 1/Model", "car_ims/000001.jpg"),
        ("Make 1/Model", "car_ims/000002.jpg"),
        ("Make 2/Model", "car_ims/000003.jpg"),
    ]
    assert dataset.train.boxes is None
    assert dataset.notes == ("found 392 of 16,185 photos",)


@pytest.mark.parametrize(
    ("devkit", "labels", "nested"),
    [
        ("devkit", "", False),
        ("devkit", "devkit", False),
        ("", "", False),
        ("devkit", "", True),
        ("car_devkit/devkit", "", True),
    ],
)
def test_the_devkit_follows_the_protocol_over_both_halves(
    tmp_path: Path, devkit: str, labels: str, nested: bool
) -> None:
    make_devkit(tmp_path, devkit=devkit, labels=labels, nested=nested)
    dataset = load_dataset(tmp_path)
    assert (dataset.name, dataset.protocol, dataset.layout) == (
        "cars196", "cars196 98/98", "devkit"
    )  # fmt: skip
    assert len(dataset.train) == len(judged(dataset)) == 98 * 3
    for photos, first in ((dataset.train, 1), (judged(dataset), 99)):
        assert photos.classes == tuple(f"Make {i}/Model" for i in range(first, first + 98))
        for path, label in zip(photos.paths, photos.labels, strict=True):
            assert (int(path.stem) * 5) % 196 + 1 == label + first
    sides = {path.relative_to(tmp_path).parts[0] for path in judged(dataset).paths}
    assert sides == {"cars_train", "cars_test"}


def test_the_devkit_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    make_devkit(tmp_path / "stanford_cars")
    dataset = load_dataset(tmp_path / "stanford_cars")
    ours = {
        (str(path), photos.classes[label])
        for photos in (dataset.train, judged(dataset))
        for path, label in zip(photos.paths, photos.labels, strict=True)
    }
    halves = [StanfordCars(tmp_path, split) for split in ("train", "test")]
    theirs = {(path, half.classes[target]) for half in halves for path, target in half._samples}
    assert ours == theirs


def test_the_devkit_without_test_labels_has_a_name_of_its_own(tmp_path: Path) -> None:
    make_devkit(tmp_path, labels=None)
    dataset = load_dataset(tmp_path)
    assert (dataset.name, dataset.protocol) == ("cars196-devkit", "cars196-devkit 98/98")
    assert len(dataset.train) == len(judged(dataset)) == 98 * 2
    assert dataset.notes == (
        "found 392 of 8,144 photos",
        "cars_test_annos_withlabels.mat not found: only the devkit's training half is used",
    )


def test_cropping_to_boxes_changes_the_name(tmp_path: Path) -> None:
    make_car_ims(tmp_path / "a")
    make_devkit(tmp_path / "b")
    for root in (tmp_path / "a", tmp_path / "b"):
        dataset = load_dataset(root, crop_boxes=True)
        assert (dataset.name, dataset.protocol) == ("cars196-crop", "cars196-crop 98/98")
        assert dataset.train.boxes is not None
        assert dataset.train.boxes.shape == (len(dataset.train), 4)
        # Columns 3 … 300 counted from one are 2 … 299 counted from zero.
        np.testing.assert_array_equal(dataset.train.boxes[0], [2, 1, 300, 9])


def test_cropping_without_boxes_is_refused(tmp_path: Path) -> None:
    make_classes(tmp_path, *"abcd")
    with pytest.raises(DataError, match="no annotated boxes"):
        load_dataset(tmp_path, crop_boxes=True)


def test_photos_that_are_annotated_but_absent_are_left_out_and_noted(tmp_path: Path) -> None:
    make_car_ims(tmp_path)
    for name in ("000003.jpg", "000391.jpg", "000392.jpg"):
        (tmp_path / "car_ims" / name).unlink()
    with pytest.raises(DataError, match=r"1 training class has one photo only: Make 2/Model\. "):
        load_dataset(tmp_path)
    (tmp_path / "car_ims" / "000004.jpg").unlink()
    dataset = load_dataset(tmp_path)
    assert dataset.protocol == "cars196 97/97"
    assert dataset.train.classes[:2] == ("Make 1/Model", "Make 3/Model")
    assert dataset.train.labels.max() == 96
    assert dataset.notes == ("found 388 of 16,185 photos",)


def test_cars196_can_be_split_otherwise(tmp_path: Path) -> None:
    make_car_ims(tmp_path)
    assert load_dataset(tmp_path, train_classes="10").protocol == "cars196 10/186"


def test_cars196_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    kaggle = tmp_path / "kaggle"
    make_car_ims(kaggle)
    (kaggle / "car_ims").rename(kaggle / "cars_train")
    with pytest.raises(DataError, match=r"not car_ims/, .*Found: cars_annos\.mat, cars_train/"):
        load_dataset(kaggle)

    for name in ("no_meta", "no_photos", "other_names", "unlabelled", "damaged", "other_mat"):
        make_devkit(tmp_path / name, labels=None)
    (tmp_path / "no_meta/devkit/cars_meta.mat").unlink()
    (tmp_path / "no_photos/cars_train").rename(tmp_path / "no_photos/photos")
    save_mat(tmp_path / "other_names/devkit/cars_meta.mat", classes=150)
    (tmp_path / "unlabelled/devkit/cars_test_annos.mat").replace(
        tmp_path / "unlabelled/devkit/cars_train_annos.mat"
    )
    (tmp_path / "damaged/devkit/cars_train_annos.mat").write_bytes(b"not a mat file" * 20)
    save_mat(tmp_path / "other_mat/devkit/cars_train_annos.mat", classes=2)
    for name, message in {
        "no_meta": r"not cars_meta\.mat",
        "no_photos": r"not cars_train/ with photos\. Found: .*photos/",
        "other_names": "classes 1 to 196 of 150 named",
        "unlabelled": "lack class; they have bbox_x1",
        "damaged": "not a readable MATLAB file",
        "other_mat": "no variable 'annotations', only class_names",
    }.items():
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path / name)


def test_annotations_of_other_photos_are_refused(tmp_path: Path) -> None:
    make_devkit(tmp_path, labels=None)
    for file in (tmp_path / "cars_train").iterdir():
        file.rename(file.with_name(f"car-{file.name}"))
    with pytest.raises(DataError, match="none of the 392 annotated photos is there, such as"):
        load_dataset(tmp_path)


# Training classes


def photos_of(counts: dict[str, int]) -> Photos:
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    return Photos(tuple(Path(f"{i}.jpg") for i in range(len(labels))), labels, tuple(counts))


def test_training_classes_of_one_photo_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"2 training classes have one photo only: b, c\. .*remove"):
        check_trainable(photos_of({"a": 2, "b": 1, "c": 1, "d": 3}))
    check_trainable(photos_of({"a": 2, "d": 3}))


def test_test_classes_may_have_one_photo(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", "a", "b")
    make_classes(tmp_path / "test", "c", count=1)
    assert len(judged(load_dataset(tmp_path))) == 1


def test_holding_out_takes_the_last_classes() -> None:
    train, held = hold_out(photos_of({"a": 2, "b": 3, "c": 1, "d": 2}), 2)
    assert (train.classes, held.classes) == (("a", "b"), ("c", "d"))
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(held.labels, [0, 1, 1])
    assert [path.stem for path in (*train.paths, *held.paths)] == [str(i) for i in range(8)]


@pytest.mark.parametrize("count", [0, 3, 4, -1])
def test_holding_out_leaves_two_classes(count: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"hold out {count} of 4"):
        hold_out(photos_of({"a": 2, "b": 2, "c": 2, "d": 2}), count)


@given(st.data())
def test_a_subset_keeps_every_photo_with_its_class_and_box(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    labels = np.unique(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)),
                       return_inverse=True)[1]  # fmt: skip
    photos = Photos(
        tuple(Path(f"{i}.jpg") for i in range(n)),
        labels,
        tuple("abcde"[: labels.max() + 1]),
        np.arange(4.0 * n).reshape(n, 4),
    )
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    part = photos.subset(keep)
    assert part.boxes is not None
    rows = zip(part.paths, part.labels, part.boxes, strict=True)
    facts = [(path, part.classes[label], box[0] / 4) for path, label, box in rows]
    assert facts == [(Path(f"{i}.jpg"), "abcde"[labels[i]], i) for i in np.flatnonzero(keep)]
    assert set(part.labels.tolist()) == set(range(len(part.classes)))


# Reading


def jpeg(size: tuple[int, int] = (64, 48), seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_photo_is_cut_to_its_box_in_full_size_pixels(tmp_path: Path) -> None:
    file = tmp_path / "0.png"
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    boxes = np.array([[20.0, 30, 220, 90], [-5, 390, 700, 500], [600, 0, 650, 10]])
    photos = Photos((file,) * 3, np.zeros(3, np.int64), ("a",), boxes)
    np.testing.assert_array_equal(read_photo(photos, 0, at_least=(8, 8)), pixels[30:90, 20:220])
    np.testing.assert_array_equal(read_photo(photos, 1), pixels[390:, :])  # cut at the border
    with pytest.raises(ImageError, match=r"0\.png has 600 × 400 pixels, its box is 600, 0, 650"):
        read_photo(photos, 2)


def test_a_box_in_a_large_jpeg_is_not_read_from_a_reduced_one(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg((1600, 1200)))
    box = np.array([[800.0, 600, 1600, 1200]])
    photos = Photos((tmp_path / "0.jpg",), np.zeros(1, np.int64), ("a",), box)
    assert read_photo(photos, 0, at_least=(32, 32)).shape == (600, 800, 3)


def test_unreadable_photos_are_left_out_and_listed_with_the_reason(tmp_path: Path) -> None:
    whole = jpeg((640, 480))
    contents = {
        "a0": whole, "a1": jpeg(seed=1), "b0": b"", "b1": b"text", "c0": whole[: len(whole) // 2],
        "c1": jpeg(seed=2), "c2": whole[:-2000],
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    paths = tuple(tmp_path / f"{name}.jpg" for name in contents)
    photos = Photos(paths, np.array([0, 0, 1, 1, 2, 2, 2]), ("a", "b", "c"))
    calls: list[tuple[int, int]] = []
    readable, unreadable = check_photos(photos, lambda done, of: calls.append((done, of)))
    assert shown(readable) == [
        (name[0], f"{tmp_path.name}/{name}.jpg") for name in ("a0", "a1", "c1")
    ]
    assert readable.classes == ("a", "c")  # no photo of b is left
    assert [path.stem for path, _ in unreadable] == ["b0", "b1", "c0", "c2"]
    for path, reason in unreadable:
        with pytest.raises(ImageError) as caught:
            decode(path, at_least=(1, 1))
        assert reason == str(caught.value)
    assert calls == [(i, 7) for i in range(1, 8)]


def test_no_readable_photo_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"text")
    photos = Photos((tmp_path / "a.jpg", tmp_path / "b.jpg"), np.array([0, 1]), ("a", "b"))
    with pytest.raises(DataError, match=r"none of 2 photos can be read\. The first: .*a\.jpg "):
        check_photos(photos)
