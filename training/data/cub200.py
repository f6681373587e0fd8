"""CUB-200-2011 with its annotations.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011: 11,788 photos of 200 species of bird.
Retrieval is judged on the second half of the classes: 5,864 photos of 100 classes train, 5,924 of
100 others test (Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR
2016, section 6). ``train_test_split.txt`` is for classification and is not used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from training.data.files import contents
from training.data.listing import Listing
from training.data.names import few
from training.data.published import Annotations, integers, list_published, read_columns

__all__ = ["read_cub200"]

TRAIN_CLASSES = 100
PHOTOS = 11_788

#: The archive has a file beside its folder, so that people name the one or the other.
PLACES = ("", "CUB_200_2011")

LABELS = "image_class_labels.txt"


def read_cub200(root: Path) -> Listing | None:
    """``images/`` with ``images.txt`` and its companions; None if they are not there.

    Boxes come from ``bounding_boxes.txt`` if that is there.

    Raises:
        DataError: if files are missing or do not belong together.
    """
    folder = next((root / place for place in PLACES if (root / place / LABELS).is_file()), None)
    if folder is None:
        return None
    absent = [name for name in ("images.txt", "classes.txt") if not (folder / name).is_file()]
    if absent:
        raise DataError(
            f"{folder} has CUB-200-2011's {LABELS} but not {few(absent)}. "
            f"Found: {contents(folder)}."
        )
    photos = read_columns(folder / "images.txt", ("image_id", "image_name"))
    labels = read_columns(folder / LABELS, ("image_id", "class_id"))
    classes = read_columns(folder / "classes.txt", ("class_id", "class_name"))

    images = photos["image_id"]
    id_of = dict(zip(labels["image_id"], labels["class_id"], strict=True))
    unlabelled = [image for image in images if image not in id_of]
    if unlabelled:
        raise DataError(
            f"{folder / LABELS} lacks the images {few(unlabelled)} of images.txt: the files do not "
            "belong together."
        )
    ids = integers([id_of[image] for image in images], folder / LABELS, "class_id")
    named = integers(classes["class_id"], folder / "classes.txt", "class_id")
    unnamed = np.setdiff1d(ids, named)
    if len(unnamed):
        raise DataError(
            f"{folder / LABELS} uses the classes {few([str(i) for i in unnamed])}, which "
            "classes.txt does not name: the files do not belong together."
        )
    order = np.argsort(named)
    annotations = Annotations(
        paths=[folder / "images" / name for name in photos["image_name"]],
        labels=np.searchsorted(named[order], ids).astype(np.int64),
        trains=ids <= TRAIN_CLASSES,
        boxes=_read_boxes(folder / "bounding_boxes.txt", images),
    )
    return list_published(
        annotations,
        name="cub200-2011",
        layout="cub200-2011",
        root=folder,
        classes=[classes["class_name"][i] for i in order],
        complete=PHOTOS,
    )


def _read_boxes(file: Path, images: list[str]) -> NDArray[np.float64] | None:
    """Boxes (m, 4) of the images: left, top, right, bottom; None if there is no such file."""
    if not file.is_file():
        return None
    table = read_columns(file, ("image_id", "x", "y", "width", "height"))
    row = {image: i for i, image in enumerate(table.pop("image_id"))}
    lacking = [image for image in images if image not in row]
    if lacking:
        raise DataError(f"{file} lacks the boxes of the images {few(lacking)} of images.txt.")
    try:
        x, y, width, height = (np.array(values).astype(np.float64) for values in table.values())
    except ValueError as error:
        raise DataError(f"{file} has a box that is not made of numbers: {error}.") from error
    return np.stack([x, y, x + width, y + height], axis=1)[[row[image] for image in images]]
