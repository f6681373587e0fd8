"""Stanford Online Products with its lists of training and test photos.

Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, section 5:
59,551 photos of 11,318 products train, 60,502 of 11,316 others test; each product has two photos or
more.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from index.errors import DataError
from training.data.files import contents
from training.data.listing import Listing
from training.data.published import Annotations, integers, list_published, read_columns

__all__ = ["read_online_products"]

PHOTOS = 59_551 + 60_502

COLUMNS = ("image_id", "class_id", "super_class_id", "path")


def read_online_products(root: Path) -> Listing | None:
    """``Ebay_train.txt`` and ``Ebay_test.txt`` beside their photos; None if neither is there.

    A class is named after the kind of product and its number, such as ``bicycle 17``.

    Raises:
        DataError: if one of the two files is missing, or has other columns.
    """
    files = [root / "Ebay_train.txt", root / "Ebay_test.txt"]
    absent = [file.name for file in files if not file.is_file()]
    if len(absent) == 2:
        return None
    if absent:
        raise DataError(
            f"{root} lacks {absent[0]} of Stanford Online Products. Found: {contents(root)}."
        )
    tables = {file: read_columns(file, COLUMNS, header_line=1) for file in files}
    paths = [path for table in tables.values() for path in table["path"]]
    ids = np.concatenate(
        [integers(table["class_id"], file, "class_id") for file, table in tables.items()]
    )
    unique, first, labels = np.unique(ids, return_index=True, return_inverse=True)
    kinds = [PurePosixPath(paths[i]).parts[0].removesuffix("_final") for i in first]
    annotations = Annotations(
        paths=[root / path for path in paths],
        labels=labels.astype(np.int64),
        trains=np.arange(len(ids)) < len(tables[files[0]]["path"]),
    )
    return list_published(
        annotations,
        name="online-products",
        layout="online-products",
        root=root,
        classes=[f"{kind} {number}" for kind, number in zip(kinds, unique, strict=True)],
        complete=PHOTOS,
        # Products have few photos: a copy that lacks some should not be refused for one of them.
        leave_out_single=True,
    )
