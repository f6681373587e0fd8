"""Which classes train: the split of the files or the user's choice, and what it must not share."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from training.data.listing import Listing
from training.data.names import few, folded, plural
from training.data.photos import Photos

__all__ = ["choose_train", "refuse_repeated_photos"]


def choose_train(listing: Listing, train_classes: str | None) -> NDArray[np.bool_]:
    """Mask (n,) of the photos that train; no class is on both sides.

    Args:
        listing: n photos.
        train_classes: the user's choice, see ``load_dataset``; None: the split of the files, where
            there is none the first half of the classes.

    Raises:
        DataError: if there are no such classes, or if a class is on both sides, be it under names
            that differ only in case, spaces or underscores.
    """
    photos = listing.photos
    if train_classes is not None:
        if listing.queries is not None:
            raise DataError(
                f"--train-classes {train_classes} would split anew what has queries and a gallery "
                "of its own: leave --train-classes away, or list the photos in a CSV file with the "
                "splits train and test."
            )
        trains = np.isin(photos.labels, _parse_classes(train_classes, photos.classes))
    elif listing.trains is None:
        trains = np.asarray(photos.labels < _half(photos))
    else:
        _refuse_shared_classes(listing, listing.trains)
        trains = listing.trains
    _refuse_classes_of_two_names(photos, trains)
    return trains


def _half(photos: Photos) -> int:
    return (len(photos.classes) + 1) // 2


def _refuse_shared_classes(listing: Listing, trains: NDArray[np.bool_]) -> None:
    photos = listing.photos
    shared = np.intersect1d(photos.labels[trains], photos.labels[~trains])
    if len(shared) == 0:
        return
    way_out = "move each class to one side"
    if listing.queries is None:
        way_out += (
            ", or split all photos by class with --train-classes, such as --train-classes "
            f"{_half(photos)}"
        )
    raise DataError(
        f"{plural(len(shared), 'class is', 'classes are')} in both train and test: "
        f"{few([photos.classes[label] for label in shared])}. Retrieval is judged on classes that "
        f"training has not seen: {way_out}."
    )


def _refuse_classes_of_two_names(photos: Photos, trains: NDArray[np.bool_]) -> None:
    """One class under two names, one of them in train and one in test, is shared all the same."""
    learned = {
        folded(photos.classes[i]): photos.classes[i] for i in np.unique(photos.labels[trains])
    }
    judged = [photos.classes[i] for i in np.unique(photos.labels[~trains])]
    pairs = [
        f"{learned[folded(name)]!r} and {name!r}" for name in judged if folded(name) in learned
    ]
    if pairs:
        raise DataError(
            f"{plural(len(pairs), 'class is', 'classes are')} in both train and test, under names "
            f"that differ only in case, spaces or underscores: {few(pairs)}. Retrieval is judged "
            "on classes that training has not seen: give all photos of a class the same name, or, "
            "if these are different classes, names that differ in more."
        )


def _parse_classes(text: str, classes: Sequence[str]) -> list[int]:
    """Labels chosen by a number, or by names and ranges of names."""
    c = len(classes)
    if text.strip().isdecimal():
        if not 1 <= int(text) <= c:
            raise DataError(f"--train-classes {text}: there are {c} classes.")
        return list(range(int(text)))
    label = {name: i for i, name in enumerate(classes)}
    chosen: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        if part in label:
            chosen.append(label[part])
        elif (ends := _range_ends(part, label)) is not None:
            chosen += range(ends[0], ends[1] + 1)
        else:
            raise DataError(
                f"--train-classes {text}: there is no class {part!r}, nor a range of that name. "
                f"Give a number, names with commas between them, or a range such as "
                f"{classes[0]}-{classes[-1]}. The {c} classes: {few(classes)}."
            )
    return chosen


def _range_ends(text: str, label: dict[str, int]) -> tuple[int, int] | None:
    """Labels of the two class names around a dash; names may have dashes of their own."""
    for dash in re.finditer("-", text):
        first, last = label.get(text[: dash.start()].strip()), label.get(text[dash.end() :].strip())
        if first is not None and last is not None and first <= last:
            return first, last
    return None


def refuse_repeated_photos(photos: Photos) -> None:
    """Refuse a file that is listed twice: it would be its own nearest neighbour.

    Raises:
        DataError: naming both places.
    """
    first: dict[str, int] = {}
    for i, path in enumerate(photos.paths):
        j = first.setdefault(os.path.realpath(path), i)
        if j != i:
            raise DataError(
                f"{photos.paths[j]} (class {photos.classes[photos.labels[j]]}) and {path} (class "
                f"{photos.classes[photos.labels[i]]}) are one and the same file: list it once."
            )
