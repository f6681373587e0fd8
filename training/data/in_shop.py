"""In-Shop Clothes Retrieval, a part of DeepFashion, with its list of queries and gallery.

Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations",
CVPR 2016: 25,882 photos of 3,997 items train; 14,218 queries are looked up in a gallery of 12,612
photos, both of 3,985 other items.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.errors import DataError
from training.data.files import existing
from training.data.listing import Listing
from training.data.names import few, natural
from training.data.published import Annotations, list_published, read_columns

__all__ = ["read_in_shop"]

PHOTOS = 25_882 + 14_218 + 12_612

#: Where the list is found, relative to the data set's folder.
LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")

COLUMNS = ("image_name", "item_id", "evaluation_status")


def read_in_shop(root: Path) -> Listing | None:
    """``list_eval_partition.txt`` with photos in ``img/`` or ``Img/``; None if it is not there.

    Raises:
        DataError: if the list has other columns (other parts of DeepFashion have a list of the same
            name) or another status than train, query and gallery.
    """
    file = next((root / name for name in LISTS if (root / name).is_file()), None)
    if file is None:
        return None
    # The first line counts the rows, the second names the columns.
    names, items, statuses = read_columns(file, COLUMNS, header_line=2).values()
    unknown = sorted(set(statuses) - {"train", "query", "gallery"})
    if unknown:
        raise DataError(
            f"{file} has the evaluation_status {few(unknown)}: expected train, query or gallery."
        )
    classes = sorted(set(items), key=natural)
    label = {item: i for i, item in enumerate(classes)}
    status = np.array(statuses)
    annotations = Annotations(
        paths=_place(root, names),
        labels=np.array([label[item] for item in items], dtype=np.int64),
        trains=status == "train",
        queries=status == "query",
    )
    return list_published(
        annotations,
        name="in-shop",
        layout="in-shop",
        root=root,
        classes=classes,
        complete=PHOTOS,
        leave_out_single=True,  # items are what they are: nobody can add a photo to one
    )


def _place(root: Path, names: list[str]) -> list[Path]:
    """Files of the names, which start with ``img/``, where most of them are."""
    places = (
        [root / name for name in names],
        [root / "Img" / name for name in names],
        [root / "Img" / name.removeprefix("img/") for name in names],
    )
    return max(places, key=lambda paths: len(existing(paths)))
