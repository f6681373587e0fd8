"""Which layout a path has: each is recognised by its files and read by a module of its own."""

from __future__ import annotations

from pathlib import Path

from index.errors import DataError
from training.data.cars196 import read_cars196
from training.data.cub200 import read_cub200
from training.data.files import contents, unwrap
from training.data.folders import read_folders, read_train_test
from training.data.in_shop import read_in_shop
from training.data.listing import Listing
from training.data.online_products import read_online_products
from training.data.table import read_csv

__all__ = ["read_listing"]

LAYOUTS = """\
  train/CLASS/*.jpg and test/CLASS/*.jpg
  CLASS/*.jpg (the first half of the classes trains; --train-classes chooses)
  a CSV file with the columns path,label,split
  Cars196: car_ims/ + cars_annos.mat, or devkit/ + cars_train/ + cars_test/
  CUB-200-2011: images/ + images.txt, image_class_labels.txt, classes.txt
  Stanford Online Products: Ebay_train.txt + Ebay_test.txt beside the photos' folders
  In-Shop Clothes: img/ or Img/ + Eval/list_eval_partition.txt"""


def read_listing(path: Path) -> Listing:
    """All photos of a folder or CSV file, whatever its layout.

    Raises:
        DataError: if there is nothing there, no photo or no known layout.
    """
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise DataError(f"{path} is neither a folder nor a CSV file. Known layouts:\n{LAYOUTS}")
        return read_csv(path)
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a folder of photos or a CSV file.")
    root = unwrap(path)
    # Published data sets first: some of them also look like class folders.
    for read_published in (read_cars196, read_cub200, read_online_products, read_in_shop):
        if (listing := read_published(root)) is not None:
            return listing
    name = path.resolve().name
    for read in (read_train_test, read_folders):
        if (listing := read(root, name)) is not None:
            return listing
    raise DataError(
        f"no folders of photos in {root}. Found: {contents(root)}. Known layouts:\n{LAYOUTS}"
    )
