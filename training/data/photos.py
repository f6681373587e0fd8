"""Labelled photos: files, their classes and boxes; read, checked, but not yet turned into tensors.

Pixels appear here only as they are in the file; turning photos into training tensors is the
business of ``training.augment``. Where photos come from is the business of the readers of layouts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError, ImageError
from index.images import decode
from training.data.names import few, plural

__all__ = ["Photos", "check_photos", "check_trainable", "read_photo", "without_single"]


@dataclass(frozen=True, eq=False)
class Photos:
    """n labelled photos of c classes.

    Attributes:
        paths: the n image files.
        labels: int64 (n,), in 0 … c−1; photo i shows ``classes[labels[i]]``.
        classes: c names, each of at least one photo.
        boxes: float64 (n, 4), the part of each photo to use: left, top, right, bottom in pixels of
            the upright photo, right and bottom exclusive. None: the whole photo.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    boxes: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, keep: NDArray[np.bool_]) -> Photos:
        """Photos where ``keep`` (n,) is true; classes left empty vanish, labels stay dense."""
        kept = np.flatnonzero(keep)
        present, labels = np.unique(self.labels[kept], return_inverse=True)
        return Photos(
            paths=tuple(self.paths[i] for i in kept),
            labels=labels.astype(np.int64),
            classes=tuple(self.classes[label] for label in present),
            boxes=None if self.boxes is None else self.boxes[kept],
        )


def check_trainable(photos: Photos) -> None:
    """Refuse photos that no metric can be learned from.

    Raises:
        DataError: if there is one class only, or a class with a single photo.
    """
    if len(photos.classes) < 2:
        raise DataError(
            f"the training photos show one class only ({photos.classes[0]}): an embedding learns "
            "from what sets classes apart. Add photos of another class or choose more training "
            "classes."
        )
    _, single = without_single(photos)
    if single:
        raise DataError(
            f"{plural(len(single), 'training class has', 'training classes have')} one photo "
            f"only: {few(single)}. A class needs two photos to learn what they share: remove "
            f"{'it' if len(single) == 1 else 'them'} or add photos."
        )


def without_single(photos: Photos) -> tuple[Photos, tuple[str, ...]]:
    """Leave out classes of one photo: the photos of the others, and the names left out.

    A class of one photo has nothing to learn, as its photo has no other to come near to.
    """
    counts = np.bincount(photos.labels, minlength=len(photos.classes))
    names = tuple(photos.classes[label] for label in np.flatnonzero(counts < 2))
    return (photos.subset(counts[photos.labels] >= 2) if names else photos), names


def read_photo(
    photos: Photos, position: int, *, at_least: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode one photo, cut to its box if it has one.

    Args:
        photos: the photos.
        position: which of them.
        at_least: (height, width) that the caller will shrink to; see ``index.images.decode``.

    Returns:
        uint8 [h, w, 3], upright RGB.

    Raises:
        ImageError: if the photo cannot be read or its box lies outside of it.
    """
    path = photos.paths[position]
    if photos.boxes is None:
        return decode(path, at_least=at_least)
    image = decode(path)  # boxes count the pixels of the full size
    h, w, _ = image.shape
    left, top, right, bottom = np.rint(photos.boxes[position]).astype(int)
    cut = image[max(top, 0) : min(bottom, h), max(left, 0) : min(right, w)]
    if cut.size == 0:
        raise ImageError(
            "image_box_outside",
            f"{path} has {w} × {h} pixels, its box is {left}, {top}, {right}, {bottom}: correct "
            "the annotation or train without boxes.",
        )
    return cut


def check_photos(
    photos: Photos, progress: Callable[[int, int], None] | None = None
) -> tuple[Photos, list[tuple[Path, str]]]:
    """Decode every photo once, so that training meets no broken file an hour later.

    Args:
        photos: the photos.
        progress: called after each photo with the numbers of photos done and of all.

    Returns:
        The readable photos (classes that lost all of theirs are gone) and (path, reason) of each
        unreadable one.

    Raises:
        DataError: if no photo can be read.
    """

    def reason(position: int) -> str | None:
        try:
            # Reads the file to its end all the same: a JPEG's detail is skipped, not its data.
            read_photo(photos, position, at_least=(1, 1))
        except ImageError as error:
            return str(error)
        return None

    n = len(photos)
    keep = np.ones(n, dtype=np.bool_)
    unreadable: list[tuple[Path, str]] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for position, why in enumerate(pool.map(reason, range(n))):
            if why is not None:
                keep[position] = False
                unreadable.append((photos.paths[position], why))
            if progress is not None:
                progress(position + 1, n)
    finally:
        pool.shutdown(cancel_futures=True)
    if len(unreadable) == n:
        first = f" The first: {unreadable[0][1]}" if unreadable else ""
        raise DataError(f"none of {n} photos can be read.{first}")
    return photos.subset(keep), unreadable
