"""Published data sets in tiny folders that are laid out as the real ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from pytorch_metric_learning.datasets.cub import CUB
from pytorch_metric_learning.datasets.sop import StanfordOnlineProducts

from index.errors import DataError
from tests.training.data_folders import judged, shown, touch
from training.data import Dataset, load_dataset


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def drop_line(path: Path, starts: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(starts)]
    assert len(kept) == len(lines) - 1
    write_lines(path, kept)


def side(dataset: Dataset, split: str) -> list[tuple[str, str]]:
    """(path, class) of each photo of the split, in the order of paths."""
    photos = dataset.train if split == "train" else judged(dataset)
    pairs = zip(photos.paths, photos.labels, strict=True)
    return sorted((str(path), photos.classes[label]) for path, label in pairs)


# CUB-200-2011


def make_cub200(root: Path) -> None:
    """Two photos of each of 200 classes; ids of the images run against the order of classes."""
    photos = [
        (f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg", c) for c in range(200, 0, -1) for i in (1, 2)
    ]
    for name, _ in photos:
        touch(root / "images" / name)
    write_lines(root / "images.txt", (f"{i} {name}" for i, (name, _) in enumerate(photos, 1)))
    write_lines(root / "image_class_labels.txt", (f"{i} {c}" for i, (_, c) in enumerate(photos, 1)))
    write_lines(root / "classes.txt", (f"{c} {c:03d}.Bird_{c}" for c in range(1, 201)))
    write_lines(root / "bounding_boxes.txt", (f"{i} {i}.0 27.0 325.0 304.5" for i in range(1, 401)))


def test_cub200_follows_the_protocol(tmp_path: Path) -> None:
    make_cub200(tmp_path)
    dataset = load_dataset(tmp_path)
    assert (dataset.name, dataset.protocol) == ("cub200-2011", "cub200-2011 100/100")
    assert dataset.train.classes == tuple(f"{c:03d}.Bird_{c}" for c in range(1, 101))
    assert judged(dataset).classes == tuple(f"{c:03d}.Bird_{c}" for c in range(101, 201))
    assert shown(dataset.train)[:3] == [
        ("001.Bird_1", "001.Bird_1/Bird_1_0001.jpg"),
        ("001.Bird_1", "001.Bird_1/Bird_1_0002.jpg"),
        ("002.Bird_2", "002.Bird_2/Bird_2_0001.jpg"),
    ]
    assert (dataset.train.boxes, dataset.queries) == (None, None)
    assert dataset.notes == ("found 400 of 11,788 photos",)


def test_cub200_is_read_as_pytorch_metric_learning_reads_it(tmp_path: Path) -> None:
    make_cub200(tmp_path / "CUB_200_2011")
    dataset = load_dataset(tmp_path)
    for split in ("train", "test"):
        theirs = CUB(str(tmp_path), split=split)
        classes = [f"{label:03d}.Bird_{label}" for label in theirs.labels]
        assert side(dataset, split) == sorted(zip(theirs.paths, classes, strict=True))


def test_cub200_is_found_beside_what_its_archive_has_besides(tmp_path: Path) -> None:
    make_cub200(tmp_path / "CUB_200_2011")
    touch(tmp_path / "attributes.txt")
    touch(tmp_path / "segmentations" / "a" / "0.png")
    assert load_dataset(tmp_path).protocol == "cub200-2011 100/100"


def test_cub200_can_be_cropped_to_its_boxes(tmp_path: Path) -> None:
    make_cub200(tmp_path)
    dataset = load_dataset(tmp_path, crop_boxes=True)
    assert (dataset.name, dataset.protocol) == ("cub200-2011-crop", "cub200-2011-crop 100/100")
    train_boxes, test_boxes = dataset.train.boxes, judged(dataset).boxes
    assert train_boxes is not None
    assert test_boxes is not None
    # Photo 399 is the first to train, photo 2 the last to test; sizes have become corners.
    np.testing.assert_array_equal(train_boxes[0], [399, 27, 399 + 325, 27 + 304.5])
    np.testing.assert_array_equal(test_boxes[-1], [2, 27, 2 + 325, 27 + 304.5])
    (tmp_path / "bounding_boxes.txt").unlink()
    assert load_dataset(tmp_path).protocol == "cub200-2011 100/100"
    with pytest.raises(DataError, match="no annotated boxes"):
        load_dataset(tmp_path, crop_boxes=True)


def test_absent_photos_of_cub200_are_noted(tmp_path: Path) -> None:
    make_cub200(tmp_path)
    for i in (1, 2):
        (tmp_path / f"images/007.Bird_7/Bird_7_000{i}.jpg").unlink()
    dataset = load_dataset(tmp_path)
    assert dataset.protocol == "cub200-2011 99/100"
    assert "007.Bird_7" not in dataset.train.classes
    assert dataset.notes == ("found 398 of 11,788 photos",)


def test_cub200_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    cases = {
        "names": r"not classes\.txt\. Found: .*images/",
        "label": r"image_class_labels\.txt lacks the images 17 of images\.txt",
        "class": r"uses the classes 3, which classes\.txt does not name",
        "box": r"lacks the boxes of the images 17 of images\.txt",
        "number": r"has a class_id that is no integer: .*three",
        "corner": r"has a box that is not made of numbers: .*wide",
        "photos": r"none of the 400 annotated photos is there, such as .*Bird_200_0001\.jpg",
        "columns": r"images\.txt, line 401: expected 'image_id image_name', found '401 a b\.jpg'",
        "empty": r"images\.txt is empty",
        "bytes": r"images\.txt cannot be read as text in UTF-8",
    }
    for name in cases:
        make_cub200(tmp_path / name)
    (tmp_path / "names/classes.txt").unlink()
    drop_line(tmp_path / "label/image_class_labels.txt", "17 ")
    drop_line(tmp_path / "class/classes.txt", "3 ")
    drop_line(tmp_path / "box/bounding_boxes.txt", "17 ")
    for file, line in {
        "number/classes.txt": "three 003.Bird_3",
        "corner/bounding_boxes.txt": "401 1 2 wide 4",
        "columns/images.txt": "401 a b.jpg",
    }.items():
        with (tmp_path / file).open("a") as handle:
            handle.write(f"{line}\n")
    (tmp_path / "photos/images").rename(tmp_path / "photos/pictures")
    (tmp_path / "empty/images.txt").write_text("\n\n")
    (tmp_path / "bytes/images.txt").write_bytes(b"1 \xff.jpg\n")
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path / name)


# Stanford Online Products

PRODUCTS = "image_id class_id super_class_id path"


def make_online_products(root: Path) -> None:
    """Training classes 2, 9 and 10, test classes 11318 and 11319, with two or three photos each."""
    counts = {2: 2, 9: 2, 10: 3, 11318: 2, 11319: 3}
    rows: dict[str, list[str]] = {"train": [PRODUCTS], "test": [PRODUCTS]}
    image = 0
    for c, count in counts.items():
        kind = "bicycle" if c < 10 else "coffee_maker"
        for i in range(count):
            image += 1
            name = f"{kind}_final/{c}00_{i}.JPG"
            touch(root / name)
            rows["train" if c < 11318 else "test"].append(f"{image} {c} {c // 10} {name}")
    for split, lines in rows.items():
        write_lines(root / f"Ebay_{split}.txt", lines)


def test_online_products_follow_their_lists(tmp_path: Path) -> None:
    make_online_products(tmp_path)
    dataset = load_dataset(tmp_path)
    assert (dataset.name, dataset.protocol) == ("online-products", "online-products 3/2")
    assert dataset.train.classes == ("bicycle 2", "bicycle 9", "coffee_maker 10")
    assert shown(judged(dataset)) == [
        ("coffee_maker 11318", "coffee_maker_final/1131800_0.JPG"),
        ("coffee_maker 11318", "coffee_maker_final/1131800_1.JPG"),
        ("coffee_maker 11319", "coffee_maker_final/1131900_0.JPG"),
        ("coffee_maker 11319", "coffee_maker_final/1131900_1.JPG"),
        ("coffee_maker 11319", "coffee_maker_final/1131900_2.JPG"),
    ]
    assert dataset.queries is None
    assert dataset.notes == ("found 12 of 120,053 photos",)


def test_online_products_are_read_as_pytorch_metric_learning_reads_them(tmp_path: Path) -> None:
    make_online_products(tmp_path / "Stanford_Online_Products")
    dataset = load_dataset(tmp_path)  # the folder that the archive unpacks to is looked through
    for split in ("train", "test"):
        theirs = StanfordOnlineProducts(str(tmp_path), split=split)
        ours = [(path, int(name.split()[-1])) for path, name in side(dataset, split)]
        assert ours == sorted(zip(theirs.paths, theirs.labels, strict=True))


def test_products_left_with_one_photo_do_not_train_and_are_noted(tmp_path: Path) -> None:
    make_online_products(tmp_path)
    (tmp_path / "bicycle_final/900_0.JPG").unlink()
    (tmp_path / "coffee_maker_final/1131800_0.JPG").unlink()  # may still be judged
    dataset = load_dataset(tmp_path)
    assert dataset.protocol == "online-products 3/2"
    assert dataset.train.classes == ("bicycle 2", "coffee_maker 10")
    assert len(judged(dataset)) == 4
    assert dataset.notes == (
        "found 10 of 120,053 photos",
        "left out 1 training class of one photo: bicycle 9",
    )


def test_products_that_all_have_one_photo_are_refused(tmp_path: Path) -> None:
    make_online_products(tmp_path)
    for name in ("bicycle_final/200_0", "bicycle_final/900_0", "coffee_maker_final/1000_0"):
        (tmp_path / f"{name}.JPG").unlink()
    (tmp_path / "coffee_maker_final/1000_1.JPG").unlink()
    with pytest.raises(DataError, match="3 training classes have one photo only"):
        load_dataset(tmp_path)


def test_lists_of_products_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    cases = {
        "one": r"lacks Ebay_test\.txt of Stanford Online Products\. Found: Ebay_train\.txt",
        "header": r"Ebay_train\.txt, line 1: expected the columns 'image_id class_id .*'1 2 0 b",
        "shared": "1 class is in both train and test: bicycle 2",
        "none": r"Ebay_test\.txt, line 1: expected the columns .* found ''",
    }
    for name in cases:
        make_online_products(tmp_path / name)
    (tmp_path / "one/Ebay_test.txt").unlink()
    drop_line(tmp_path / "header/Ebay_train.txt", PRODUCTS)
    touch(tmp_path / "shared/bicycle_final/x.JPG")
    with (tmp_path / "shared/Ebay_test.txt").open("a") as handle:
        handle.write("99 2 0 bicycle_final/x.JPG\n")
    (tmp_path / "none/Ebay_test.txt").write_text("")
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path / name)


# In-Shop Clothes

ITEMS = (  # path below img/, item, status
    ("WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("WOMEN/Shorts/id_00000001/01_1_front.jpg", "id_00000001", "query"),
    ("MEN/Denim/id_00000003/01_1_front.jpg", "id_00000003", "train"),
    ("MEN/Denim/id_00000003/01_7_full.jpg", "id_00000003", "train"),
    ("MEN/Denim/id_00000003/02_1_front.jpg", "id_00000003", "train"),
    ("WOMEN/Shorts/id_00000001/01_2_side.jpg", "id_00000001", "gallery"),
    ("WOMEN/Shorts/id_00000001/01_3_back.jpg", "id_00000001", "query"),
    ("MEN/Pants/id_00000008/01_1_front.jpg", "id_00000008", "gallery"),
    ("MEN/Pants/id_00000008/02_1_front.jpg", "id_00000008", "query"),
    ("MEN/Pants/id_00000009/01_1_front.jpg", "id_00000009", "train"),  # the only one of its item
)
LIST = "list_eval_partition.txt"
HEADER = "image_name item_id evaluation_status"


def make_in_shop(root: Path, *, images: str = "img", list_file: str = f"Eval/{LIST}") -> None:
    for name, _, _ in ITEMS:
        touch(root / images / name)
    rows = (f"img/{name}   {item} {status}" for name, item, status in ITEMS)
    write_lines(root / list_file, (str(len(ITEMS)), HEADER, *rows))


@pytest.mark.parametrize("list_file", [f"Eval/{LIST}", LIST])
@pytest.mark.parametrize("images", ["img", "Img", "Img/img"])
def test_in_shop_has_queries_and_a_gallery(tmp_path: Path, images: str, list_file: str) -> None:
    make_in_shop(tmp_path, images=images, list_file=list_file)
    dataset = load_dataset(tmp_path)
    # Item 9 counts in the protocol, though nothing can be learned from it.
    assert (dataset.name, dataset.protocol) == ("in-shop", "in-shop 3/2")
    assert dataset.train.classes == ("id_00000002", "id_00000003")
    assert judged(dataset).classes == ("id_00000001", "id_00000008")
    assert dataset.queries is not None
    for mask, status in ((dataset.queries, "query"), (~dataset.queries, "gallery")):
        found = [judged(dataset).paths[i] for i in np.flatnonzero(mask)]
        expected = sorted(name for name, _, kind in ITEMS if kind == status)
        below = [path.relative_to(tmp_path / images).as_posix() for path in found]
        assert sorted(below) == expected
    assert dataset.notes == (
        "found 11 of 52,712 photos",
        "left out 1 training class of one photo: id_00000009",
    )


def test_in_shop_less_some_photos_keeps_its_queries(tmp_path: Path) -> None:
    make_in_shop(tmp_path)
    before = load_dataset(tmp_path)
    (tmp_path / "img/WOMEN/Shorts/id_00000001/01_1_front.jpg").unlink()
    (tmp_path / "img/MEN/Pants/id_00000008/01_1_front.jpg").unlink()
    dataset = load_dataset(tmp_path)
    assert dataset.queries is not None
    assert [path.name for path in judged(dataset).paths] == [
        "01_2_side.jpg", "01_3_back.jpg", "02_1_front.jpg"
    ]  # fmt: skip
    assert dataset.queries.tolist() == [False, True, True]

    gone = set(judged(before).paths) - set(judged(dataset).paths)
    less = before.without(gone)
    assert judged(less).paths == judged(dataset).paths
    assert less.queries is not None
    np.testing.assert_array_equal(less.queries, dataset.queries)


def test_in_shop_without_its_gallery_is_refused(tmp_path: Path) -> None:
    make_in_shop(tmp_path)
    for name, _, status in ITEMS:
        if status == "gallery":
            (tmp_path / "img" / name).unlink()
    with pytest.raises(DataError, match="in-shop has 3 test photos, but no gallery"):
        load_dataset(tmp_path)


def test_in_shop_without_test_photos_can_be_learned_from(tmp_path: Path) -> None:
    make_in_shop(tmp_path)
    for name, _, status in ITEMS:
        if status != "train":
            (tmp_path / "img" / name).unlink()
    dataset = load_dataset(tmp_path)
    assert (dataset.protocol, dataset.test, dataset.queries) == ("in-shop 3/0", None, None)


def test_lists_of_other_parts_of_deepfashion_are_refused(tmp_path: Path) -> None:
    make_in_shop(tmp_path)
    file = tmp_path / "Eval" / LIST
    text = file.read_text()
    file.write_text(text.replace("item_id ", ""))
    with pytest.raises(DataError, match=f"line 2: expected the columns '{HEADER}', found"):
        load_dataset(tmp_path)
    file.write_text(text.replace("gallery", "val"))
    with pytest.raises(DataError, match="evaluation_status val: expected train, query or gallery"):
        load_dataset(tmp_path)
