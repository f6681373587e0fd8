"""Photos to train on and photos of other classes to judge by.

Train and test never share a class: retrieval is judged on classes that training has not seen. How
photos are laid out on disk is the business of ``training.data.layouts``, who trains of
``training.data.split``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError, InvalidArgumentError
from training.data.layouts import read_listing
from training.data.names import few, plural
from training.data.photos import Photos, check_trainable, without_single
from training.data.split import choose_train, refuse_repeated_photos

__all__ = ["Dataset", "hold_out", "load_dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Photos to train on and photos of other classes to judge by.

    Attributes:
        name: ``cars196``, ``cars196-devkit``, ``cub200-2011`` (each with ``-crop`` where photos are
            cut to their boxes), ``online-products``, ``in-shop``, or the name of the folder or CSV
            file.
        protocol: what every figure taken on it must be labelled with: kind and numbers of training
            and test classes, such as ``cars196 98/98``, ``in-shop 3997/3985`` or ``folders 98/49``.
        layout: how the files were laid out: ``train-test``, ``folders``, ``csv``, ``car_ims``,
            ``devkit``, ``cub200-2011``, ``online-products`` or ``in-shop``.
        train: photos to train on; each class has at least two.
        test: photos of classes that are not in ``train``; None if there are none.
        notes: what a careful reader of the figures should know (photos missing, folders ignored).
        queries: bool, one for each photo of ``test``: those that are queries, to be looked up among
            the others, their gallery. None: each photo is a query to all others, or there is no
            test photo.

    Raises:
        DataError: if ``queries`` leaves no query or no gallery.
    """

    name: str
    protocol: str
    layout: str
    train: Photos
    test: Photos | None
    notes: tuple[str, ...] = ()
    queries: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.queries is not None and (self.queries.all() or not self.queries.any()):
            lacking = "no gallery to look them up in" if self.queries.any() else "no query"
            raise DataError(
                f"{self.name} has {plural(len(self.queries), 'test photo')}, but {lacking}: it "
                "takes photos of both kinds."
            )

    def without(self, paths: Iterable[Path]) -> Dataset:
        """The data set less these photos, such as those that cannot be read.

        Classes left empty vanish. The protocol keeps its name.

        Raises:
            DataError: if no training photo is left, or of the test photos no query or no gallery.
        """
        gone = set(paths)
        trains = _others(self.train, gone)
        if not trains.any():
            raise DataError(f"no training photo of {self.name} is left: all are unusable.")
        test, queries = self.test, self.queries
        if test is not None:
            keep = _others(test, gone)
            test = test.subset(keep) if keep.any() else None
            queries = None if queries is None or test is None else queries[keep]
        return replace(self, train=self.train.subset(trains), test=test, queries=queries)


def load_dataset(
    path: Path, *, train_classes: str | None = None, crop_boxes: bool = False
) -> Dataset:
    """Find out how the photos under ``path`` are laid out, and split them by class.

    Args:
        path: a folder (train/ and test/ of class folders; class folders; Cars196, CUB-200-2011,
            Stanford Online Products or In-Shop Clothes as published) or a CSV file.
        train_classes: the classes that train, all others test, whatever split the files suggest: a
            number N (the first N classes), or names and ranges of names (``001-098``, both
            included) with commas between them. Classes are ordered by name, numbers in it by
            value; published data sets keep their own order. None: the split of the files, where
            there is none the first half.
        crop_boxes: use only the annotated box of each photo (Cars196, CUB-200-2011).

    Raises:
        DataError: if nothing usable is there, if train and test share a class, if a photo is listed
            twice, if queries lack a gallery or are to be split anew, or if the training photos
            cannot train (see ``check_trainable``).
    """
    listing = read_listing(path)
    refuse_repeated_photos(listing.photos)
    if crop_boxes and listing.photos.boxes is None:
        raise DataError(
            f"{path} has no annotated boxes to crop to: they come with Cars196 (cars_annos.mat or "
            "the devkit) and CUB-200-2011 (bounding_boxes.txt). Leave --crop-boxes away."
        )
    photos = listing.photos if crop_boxes else replace(listing.photos, boxes=None)
    trains = choose_train(listing, train_classes)
    if not trains.any():
        raise DataError(f"{path} has no training photos: at least two classes must train.")
    train, notes = photos.subset(trains), listing.notes
    test = None if trains.all() else photos.subset(~trains)

    suffix = "-crop" if crop_boxes else ""
    tested = 0 if test is None else len(test.classes)
    # Counted before single photos go: the protocol is what the files say, whatever of it is used.
    protocol = f"{listing.kind}{suffix} {len(train.classes)}/{tested}"
    if listing.leave_out_single:
        several, names = without_single(train)
        if names and len(several):
            classes = plural(len(names), "training class", "training classes")
            notes = (*notes, f"left out {classes} of one photo: {few(names)}")
            train = several
    check_trainable(train)
    return Dataset(
        name=listing.name + suffix,
        protocol=protocol,
        layout=listing.layout,
        train=train,
        test=test,
        notes=notes,
        queries=None if listing.queries is None or test is None else listing.queries[~trains],
    )


def hold_out(photos: Photos, count: int) -> tuple[Photos, Photos]:
    """Set the last ``count`` classes aside: (the others, those), both relabelled densely.

    Settings are chosen on classes held out of training, never on test classes.
    """
    c = len(photos.classes)
    if not 1 <= count <= c - 2:
        raise InvalidArgumentError(
            f"cannot hold out {count} of {c} classes: hold out at least one and leave two to train."
        )
    held = photos.labels >= c - count
    return photos.subset(~held), photos.subset(held)


def _others(photos: Photos, gone: set[Path]) -> NDArray[np.bool_]:
    """Mask (n,) of the photos that are not among ``gone``."""
    return np.array([path not in gone for path in photos.paths], dtype=np.bool_)
