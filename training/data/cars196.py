"""Cars196 with its annotations, in the layouts that people have.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013: 16,185 photos
of 196 models of car. Retrieval is judged on the second half of the classes (Song et al., "Deep
Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from index.images import IMAGE_SUFFIXES
from training.data.files import contents, visible
from training.data.listing import Listing
from training.data.names import few
from training.data.published import Annotations, list_published

__all__ = ["read_cars196"]

#: Classes 1–98 train, 99–196 test: the retrieval protocol of Cars196.
TRAIN_CLASSES = 98
PHOTOS = 16_185
DEVKIT_PHOTOS = 8_144

#: Where the devkit's files are found, relative to the data set's folder.
DEVKIT_PLACES = ("devkit", "", "car_devkit/devkit", "car_devkit")


def read_cars196(root: Path) -> Listing | None:
    """``car_ims/`` with ``cars_annos.mat``, or the devkit; None if there is neither.

    Raises:
        DataError: if files are missing, damaged or do not belong together.
    """
    annotated = (root / "cars_annos.mat").is_file()
    if annotated and (root / "car_ims").is_dir():
        return _read_car_ims(root)
    if (annotations := _find(root, "cars_train_annos.mat")) is not None:
        return _read_devkit(root, annotations)
    if annotated:
        raise DataError(
            f"{root} has cars_annos.mat but not car_ims/, whose photos it describes (cars_train/ "
            f"and cars_test/ are numbered otherwise and need devkit/). Found: {contents(root)}."
        )
    return None


@dataclass(frozen=True, eq=False)
class _MatFile:
    """What a .mat file says of m photos: path, class id from 1 (m,), box (m, 4)."""

    paths: list[Path]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]


def _read_car_ims(root: Path) -> Listing:
    """``car_ims/`` with one annotation file for all photos, the class names in it."""
    file = root / "cars_annos.mat"
    annotations = _read_annotations(file, root, "relative_im_path")
    return _cars196("cars196", "car_ims", root, annotations, _class_names(file), PHOTOS)


def _read_devkit(root: Path, train_file: Path) -> Listing:
    """``cars_train/`` and ``cars_test/``, annotated by the devkit and a later file of test labels.

    The labels of the test half were published apart from the devkit, so many copies lack them: the
    training half alone is then split by class, under a name of its own.
    """
    meta_file, train_folder = _find(root, "cars_meta.mat"), _image_folder(root, "cars_train")
    if meta_file is None or train_folder is None:
        lacking = "cars_meta.mat" if meta_file is None else "cars_train/ with photos"
        raise DataError(
            f"{root} has Cars196's {train_file.name} but not {lacking}. Found: {contents(root)}."
        )
    names = _class_names(meta_file)
    train = _read_annotations(train_file, train_folder, "fname")

    test_file = _find(root, "cars_test_annos_withlabels.mat")
    test_folder = _image_folder(root, "cars_test")
    if test_file is None or test_folder is None:
        lacking = "cars_test_annos_withlabels.mat" if test_file is None else "cars_test/"
        note = f"{lacking} not found: only the devkit's training half is used"
        return _cars196("cars196-devkit", "devkit", root, train, names, DEVKIT_PHOTOS, (note,))
    test = _read_annotations(test_file, test_folder, "fname")
    both = _MatFile(
        paths=train.paths + test.paths,
        ids=np.concatenate([train.ids, test.ids]),
        boxes=np.concatenate([train.boxes, test.boxes]),
    )
    return _cars196("cars196", "devkit", root, both, names, PHOTOS)


def _cars196(
    name: str,
    layout: str,
    root: Path,
    content: _MatFile,
    class_names: Sequence[str],
    complete: int,
    notes: tuple[str, ...] = (),
) -> Listing:
    """Photos in the order of their class ids."""
    ids = content.ids
    if ids.min() < 1 or ids.max() > len(class_names):
        raise DataError(
            f"the annotations in {root} use classes {ids.min()} to {ids.max()} of "
            f"{len(class_names)} named ones: the .mat files do not belong together."
        )
    annotations = Annotations(
        paths=content.paths, labels=ids - 1, trains=ids <= TRAIN_CLASSES, boxes=content.boxes
    )
    return list_published(
        annotations,
        name=name,
        layout=layout,
        root=root,
        classes=class_names,
        complete=complete,
        notes=notes,
    )


def _read_annotations(file: Path, folder: Path, path_field: str) -> _MatFile:
    """The struct array ``annotations`` of a .mat file; its paths are relative to ``folder``."""
    table = _load_mat(file, "annotations")
    fields = (path_field, "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    names = table.dtype.names or ()
    absent = [name for name in fields if name not in names]
    if absent:
        raise DataError(f"the annotations in {file} lack {few(absent)}; they have {few(names)}.")
    corners = np.stack([table[name].astype(np.float64) for name in fields[2:]], axis=1)
    return _MatFile(
        paths=[folder / str(name) for name in table[path_field]],
        ids=table["class"].astype(np.int64),
        boxes=corners - [1, 1, 0, 0],  # MATLAB counts pixels from 1 and includes both ends
    )


def _class_names(file: Path) -> list[str]:
    return [str(name) for name in _load_mat(file, "class_names")]


def _load_mat(file: Path, variable: str) -> NDArray[Any]:
    """One array of a MATLAB file."""
    import scipy.io  # slow to import, and only Cars196 needs it

    try:
        content = scipy.io.loadmat(file, squeeze_me=True)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(f"{file} is not a readable MATLAB file ({error}): copy it anew.") from error
    if variable not in content:
        found = [name for name in content if not name.startswith("__")]
        raise DataError(f"{file} has no variable {variable!r}, only {few(found) or 'none'}.")
    return np.atleast_1d(content[variable])


def _find(root: Path, name: str) -> Path | None:
    return next((file for place in DEVKIT_PLACES if (file := root / place / name).is_file()), None)


def _image_folder(root: Path, name: str) -> Path | None:
    """``name/``, or ``name/name/`` as Kaggle's copies have it; None if neither holds photos."""
    for folder in (root / name / name, root / name):
        if folder.is_dir() and any(
            file.suffix.lower() in IMAGE_SUFFIXES for file in visible(folder)
        ):
            return folder
    return None
