"""A whole data set of drawn cars, as folders of JPEG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from index.errors import DataError, InvalidArgumentError
from index.files import replace_folder
from training.render.model import BodyType, CarModel
from training.render.photo import check_size, render_car

__all__ = ["render_dataset"]

JPEG_QUALITY = 90


def render_dataset(
    out: Path,
    *,
    classes: int = 40,
    test_classes: int | None = None,
    per_class: int = 30,
    size: int = 192,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``out/train/<class>/<nnn>.jpg`` and ``out/test/<class>/<nnn>.jpg``.

    No class is in both splits. Classes are called by body type and number, such as ``sedan-01``;
    body types take turns. Class c depends on (seed, c) alone and its photo i on (seed, c, i), so
    a larger data set of the same seed contains the same photos.

    Args:
        out: folder to make; it may exist if it is empty. It appears complete or not at all.
        classes: models of car in both splits together, at least 2.
        test_classes: how many of them go to ``test``, 1 … classes − 1; half if not given.
        per_class: photos of each class, at least 2.
        size: width of the photos in pixels, 32…1024; the height is three quarters of it.
        seed: 0 or more.
        progress: called with (photos done, photos in all) after each photo.

    Raises:
        InvalidArgumentError: an argument is out of range.
        DataError: ``out`` is a file, or a folder that is not empty.
    """
    test_classes = classes // 2 if test_classes is None else test_classes
    _check_counts(classes, test_classes, per_class, seed)
    check_size(size)
    _check_vacant(out)
    bodies = list(BodyType)
    digits = max(2, len(str(classes)))
    with replace_folder(out) as folder:
        for c in range(classes):
            body = bodies[c % len(bodies)]
            # NumPy seeds [seed, c] and [seed, c, 0] alike, so photos count from 1.
            model = CarModel.sample(np.random.default_rng([seed, c]), body=body)
            split = "train" if c < classes - test_classes else "test"
            class_folder = folder / split / f"{body}-{c + 1:0{digits}}"
            class_folder.mkdir(parents=True)
            for i in range(per_class):
                photo = render_car(model, np.random.default_rng([seed, c, i + 1]), size=size)
                path = class_folder / f"{i:03}.jpg"
                Image.fromarray(photo).save(path, quality=JPEG_QUALITY)
                if progress is not None:
                    progress(c * per_class + i + 1, classes * per_class)


def _check_counts(classes: int, test_classes: int, per_class: int, seed: int) -> None:
    if classes < 2:
        raise InvalidArgumentError(
            f"classes is {classes}: a data set needs at least 2, one to train and one to test."
        )
    if not 1 <= test_classes < classes:
        raise InvalidArgumentError(
            f"test_classes is {test_classes}: of {classes} classes, 1 to {classes - 1} can be for "
            "testing."
        )
    if per_class < 2:
        raise InvalidArgumentError(
            f"per_class is {per_class}: retrieval needs at least 2 photos of a class."
        )
    if seed < 0:
        raise InvalidArgumentError(f"seed is {seed}: it must be 0 or more.")


def _check_vacant(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise DataError(
                f"{out} is not empty: nothing in it is overwritten. Name a new folder, or remove "
                "this one first."
            )
    elif out.exists():
        raise DataError(f"{out} is a file: name a new folder for the data set.")
