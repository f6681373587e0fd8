"""Labelled photos: which files belong to which class, and which classes train.

Knows the layouts that people have (class folders, CSV, Cars196 in its several unpackings) and turns
each into the same ``Dataset``. Train and test never share a class: retrieval is judged on classes
that training has not seen. Pixels appear here only to find out whether they can be read; turning
photos into training tensors is the business of ``training.augment``.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError, ImageError, InvalidArgumentError
from index.images import IMAGE_SUFFIXES, decode
from index.photos import image_files

__all__ = [
    "Dataset",
    "Photos",
    "check_photos",
    "check_trainable",
    "hold_out",
    "load_dataset",
    "read_photo",
]

#: Classes 1–98 train, 99–196 test: the retrieval protocol of Cars196.
CARS196_TRAIN_CLASSES = 98
CARS196_PHOTOS = 16_185
CARS196_DEVKIT_PHOTOS = 8_144

#: Where the devkit's files are found, relative to the data set's folder.
DEVKIT_PLACES = ("devkit", "", "car_devkit/devkit", "car_devkit")

LAYOUTS = """\
  train/CLASS/*.jpg and test/CLASS/*.jpg
  CLASS/*.jpg (the first half of the classes trains; --train-classes chooses)
  a CSV file with the columns path,label,split
  Cars196: car_ims/ + cars_annos.mat, or devkit/ + cars_train/ + cars_test/"""


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


@dataclass(frozen=True, eq=False)
class Dataset:
    """Photos to train on and photos of other classes to judge by.

    Attributes:
        name: ``cars196``, ``cars196-devkit`` (each with ``-crop`` where photos are cut to their
            boxes), or the name of the folder or CSV file.
        protocol: what every figure taken on it must be labelled with: kind and numbers of training
            and test classes, such as ``cars196 98/98`` or ``folders 98/49``.
        layout: how the files were laid out: ``train-test``, ``folders``, ``csv``, ``car_ims`` or
            ``devkit``.
        train: photos to train on; each class has at least two.
        test: photos of classes that are not in ``train``; None if there are none.
        notes: what a careful reader of the figures should know (photos missing, folders ignored).
    """

    name: str
    protocol: str
    layout: str
    train: Photos
    test: Photos | None
    notes: tuple[str, ...] = ()


def load_dataset(
    path: Path, *, train_classes: str | None = None, crop_boxes: bool = False
) -> Dataset:
    """Find out how the photos under ``path`` are laid out, and split them by class.

    Args:
        path: a folder (train/ and test/ of class folders; class folders; Cars196) or a CSV file.
        train_classes: the classes that train, all others test, whatever split the files suggest: a
            number N (the first N classes), or names and ranges of names (``001-098``, both
            included) with commas between them. Classes are ordered by name, numbers in it by
            value; Cars196 keeps its own order. None: the split of the files, where there is none
            the first half.
        crop_boxes: use only the annotated box of each photo (Cars196).

    Raises:
        DataError: if nothing usable is there, if train and test share a class, if a photo is listed
            twice, or if the training photos cannot train (see ``check_trainable``).
    """
    listing = _read_listing(path)
    _refuse_repeated_photos(listing.photos)
    if crop_boxes and listing.photos.boxes is None:
        raise DataError(
            f"{path} has no annotated boxes to crop to: they come with Cars196 (cars_annos.mat or "
            "the devkit). Leave --crop-boxes away."
        )
    photos = listing.photos if crop_boxes else replace(listing.photos, boxes=None)
    trains = _choose_train(listing, train_classes)
    if not trains.any():
        raise DataError(f"{path} has no training photos: at least two classes must train.")
    train = photos.subset(trains)
    check_trainable(train)
    test = None if trains.all() else photos.subset(~trains)

    suffix = "-crop" if crop_boxes else ""
    tested = 0 if test is None else len(test.classes)
    return Dataset(
        name=listing.name + suffix,
        protocol=f"{listing.kind}{suffix} {len(train.classes)}/{tested}",
        layout=listing.layout,
        train=train,
        test=test,
        notes=listing.notes,
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
    counts = np.bincount(photos.labels, minlength=len(photos.classes))
    single = [photos.classes[label] for label in np.flatnonzero(counts < 2)]
    if single:
        raise DataError(
            f"{_plural(len(single), 'training class has', 'training classes have')} one photo "
            f"only: {_few(single)}. A class needs two photos to learn what they share: remove "
            f"{'it' if len(single) == 1 else 'them'} or add photos."
        )


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


# Layouts. Each reader lists all photos it finds, with the split that the files suggest.


@dataclass(frozen=True, kw_only=True, eq=False)
class _Listing:
    """All photos of a data set before train and test are told apart."""

    name: str
    kind: str  # first word of the protocol
    layout: str
    photos: Photos
    trains: NDArray[np.bool_] | None  # (n,) the split of the files, if they have one
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """One photo found, with the side that its place suggests."""

    label: str
    path: Path
    trains: bool | None = None


def _read_listing(path: Path) -> _Listing:
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise DataError(f"{path} is neither a folder nor a CSV file. Known layouts:\n{LAYOUTS}")
        return _read_csv(path)
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a folder of photos or a CSV file.")
    root = _unwrap(path)
    if (root / "cars_annos.mat").is_file() and (root / "car_ims").is_dir():
        return _read_car_ims(root)
    if (annotations := _find(root, "cars_train_annos.mat")) is not None:
        return _read_devkit(root, annotations)
    if (root / "cars_annos.mat").is_file():
        raise DataError(
            f"{root} has cars_annos.mat but not car_ims/, whose photos it describes (cars_train/ "
            f"and cars_test/ are numbered otherwise and need devkit/). Found: {_contents(root)}."
        )
    if (root / "train").is_dir():
        return _read_train_test(path, root)
    return _read_folders(path, root)


def _read_train_test(path: Path, root: Path) -> _Listing:
    train = _class_folders(root / "train", trains=True)
    test = _class_folders(root / "test", trains=False) if (root / "test").is_dir() else []
    if not train:
        raise DataError(
            f"{root / 'train'} should hold a folder of photos for each class. "
            f"Found: {_contents(root / 'train')}."
        )
    others = [e.name for e in _visible(root) if e.is_dir() and e.name not in ("train", "test")]
    notes = (f"only train/ and test/ are used, not {_few(others)}",) if others else ()
    return _listed(path.resolve().name, "folders", "train-test", train + test, notes)


def _read_folders(path: Path, root: Path) -> _Listing:
    rows = _class_folders(root)
    if not rows:
        raise DataError(
            f"no folders of photos in {root}. Found: {_contents(root)}. Known layouts:\n{LAYOUTS}"
        )
    return _listed(path.resolve().name, "folders", "folders", rows)


def _read_csv(path: Path) -> _Listing:
    columns = ("path", "label", "split")
    rows: list[_Row] = []
    missing: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            absent = [column for column in columns if column not in header]
            if absent:
                raise DataError(
                    f"{path} lacks the column {_few(absent)}: its first line should name path, "
                    f"label and split, but is {','.join(header)!r}."
                )
            for row in reader:
                photo, label, split = ((row[column] or "").strip() for column in columns)
                if not photo or not label or split not in ("train", "test"):
                    raise DataError(
                        f"{path}, line {reader.line_num}: path {photo!r}, label {label!r}, split "
                        f"{split!r}; path and label must be given, split must be train or test."
                    )
                rows.append(_Row(label, path.parent / photo, split == "train"))
                if not rows[-1].path.is_file():
                    missing.append(photo)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}.") from error
    if missing:
        raise DataError(
            f"{path} lists {_plural(len(missing), 'file')} not found from {path.parent}: "
            f"{_few(missing)}. Correct the paths or remove the lines."
        )
    if not rows:
        raise DataError(f"{path} lists no photo: it has a header and no rows.")
    return _listed(path.stem, "csv", "csv", rows)


def _listed(
    name: str, kind: str, layout: str, rows: Sequence[_Row], notes: tuple[str, ...] = ()
) -> _Listing:
    """Rows in the order of class and file name."""
    classes = sorted({row.label for row in rows}, key=_natural)
    label = {name: i for i, name in enumerate(classes)}
    ordered = sorted(rows, key=lambda row: (label[row.label], row.path))
    photos = Photos(
        paths=tuple(row.path for row in ordered),
        labels=np.array([label[row.label] for row in ordered], dtype=np.int64),
        classes=tuple(classes),
    )
    sides = [row.trains for row in ordered]
    trains = None if None in sides else np.array(sides, dtype=np.bool_)
    return _Listing(name=name, kind=kind, layout=layout, photos=photos, trains=trains, notes=notes)


# Cars196 with its annotations


@dataclass(frozen=True, eq=False)
class _Annotations:
    """What a Cars196 .mat file says of m photos: path, class id from 1 (m,), box (m, 4)."""

    paths: list[Path]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]


def _read_car_ims(root: Path) -> _Listing:
    """``car_ims/`` with one annotation file for all photos, the class names in it."""
    file = root / "cars_annos.mat"
    annotations = _read_annotations(file, root, "relative_im_path")
    return _cars196("cars196", "car_ims", root, annotations, _class_names(file), CARS196_PHOTOS)


def _read_devkit(root: Path, train_file: Path) -> _Listing:
    """``cars_train/`` and ``cars_test/``, annotated by the devkit and a later file of test labels.

    The labels of the test half were published apart from the devkit, so many copies lack them: the
    training half alone is then split by class, under a name of its own.
    """
    meta_file, train_folder = _find(root, "cars_meta.mat"), _image_folder(root, "cars_train")
    if meta_file is None or train_folder is None:
        lacking = "cars_meta.mat" if meta_file is None else "cars_train/ with photos"
        raise DataError(
            f"{root} has Cars196's {train_file.name} but not {lacking}. Found: {_contents(root)}."
        )
    names = _class_names(meta_file)
    train = _read_annotations(train_file, train_folder, "fname")

    test_file = _find(root, "cars_test_annos_withlabels.mat")
    test_folder = _image_folder(root, "cars_test")
    if test_file is None or test_folder is None:
        lacking = "cars_test_annos_withlabels.mat" if test_file is None else "cars_test/"
        note = f"{lacking} not found: only the devkit's training half is used"
        return _cars196(
            "cars196-devkit", "devkit", root, train, names, CARS196_DEVKIT_PHOTOS, (note,)
        )
    test = _read_annotations(test_file, test_folder, "fname")
    both = _Annotations(
        paths=train.paths + test.paths,
        ids=np.concatenate([train.ids, test.ids]),
        boxes=np.concatenate([train.boxes, test.boxes]),
    )
    return _cars196("cars196", "devkit", root, both, names, CARS196_PHOTOS)


def _cars196(
    name: str,
    layout: str,
    root: Path,
    annotations: _Annotations,
    class_names: Sequence[str],
    complete: int,
    notes: tuple[str, ...] = (),
) -> _Listing:
    """Photos in the order of their class ids; absent files are left out and noted."""
    paths, ids = annotations.paths, annotations.ids
    if ids.min() < 1 or ids.max() > len(class_names):
        raise DataError(
            f"the annotations in {root} use classes {ids.min()} to {ids.max()} of "
            f"{len(class_names)} named ones: the .mat files do not belong together."
        )
    folders = {path.parent for path in paths}
    present = {file for folder in folders if folder.is_dir() for file in folder.iterdir()}
    found = [i for i, path in enumerate(paths) if path in present]
    if not found:
        raise DataError(
            f"none of the {len(paths)} annotated photos is there, such as {paths[0]}. "
            f"Found in {root}: {_contents(root)}."
        )
    if len(found) != complete:
        notes = (f"found {len(found):,} of {complete:,} photos", *notes)

    order = sorted(found, key=lambda i: (ids[i], paths[i]))
    photos = Photos(
        paths=tuple(paths[i] for i in order),
        labels=ids[order] - 1,
        classes=tuple(class_names),
        boxes=annotations.boxes[order],
    )
    return _Listing(
        name=name,
        kind=name,
        layout=layout,
        photos=photos.subset(np.ones(len(order), dtype=np.bool_)),  # drops classes without photos
        trains=photos.labels < CARS196_TRAIN_CLASSES,
        notes=notes,
    )


def _read_annotations(file: Path, folder: Path, path_field: str) -> _Annotations:
    """The struct array ``annotations`` of a .mat file; its paths are relative to ``folder``."""
    table = _load_mat(file, "annotations")
    fields = (path_field, "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    names = table.dtype.names or ()
    absent = [name for name in fields if name not in names]
    if absent:
        raise DataError(f"the annotations in {file} lack {_few(absent)}; they have {_few(names)}.")
    corners = np.stack([table[name].astype(np.float64) for name in fields[2:]], axis=1)
    return _Annotations(
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
        raise DataError(f"{file} has no variable {variable!r}, only {_few(found) or 'none'}.")
    return np.atleast_1d(content[variable])


def _find(root: Path, name: str) -> Path | None:
    return next((file for place in DEVKIT_PLACES if (file := root / place / name).is_file()), None)


def _image_folder(root: Path, name: str) -> Path | None:
    """``name/``, or ``name/name/`` as Kaggle's copies have it; None if neither holds photos."""
    for folder in (root / name / name, root / name):
        if folder.is_dir() and any(
            file.suffix.lower() in IMAGE_SUFFIXES for file in _visible(folder)
        ):
            return folder
    return None


# Splits


def _choose_train(listing: _Listing, train_classes: str | None) -> NDArray[np.bool_]:
    """Mask (n,) of the photos that train; no class is on both sides."""
    photos = listing.photos
    half = (len(photos.classes) + 1) // 2
    if train_classes is not None:
        return np.isin(photos.labels, _parse_classes(train_classes, photos.classes))
    if listing.trains is None:
        return np.asarray(photos.labels < half)
    shared = np.intersect1d(photos.labels[listing.trains], photos.labels[~listing.trains])
    if len(shared):
        raise DataError(
            f"{_plural(len(shared), 'class is', 'classes are')} in both train and test: "
            f"{_few([photos.classes[label] for label in shared])}. Retrieval is judged on classes "
            "that training has not seen: move each class to one side, or split all photos by class "
            f"with --train-classes, such as --train-classes {half}."
        )
    return listing.trains


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
                f"{classes[0]}-{classes[-1]}. The {c} classes: {_few(classes)}."
            )
    return chosen


def _range_ends(text: str, label: dict[str, int]) -> tuple[int, int] | None:
    """Labels of the two class names around a dash; names may have dashes of their own."""
    for dash in re.finditer("-", text):
        first, last = label.get(text[: dash.start()].strip()), label.get(text[dash.end() :].strip())
        if first is not None and last is not None and first <= last:
            return first, last
    return None


def _refuse_repeated_photos(photos: Photos) -> None:
    """A photo listed twice would be its own nearest neighbour."""
    first: dict[str, int] = {}
    for i, path in enumerate(photos.paths):
        j = first.setdefault(os.path.realpath(path), i)
        if j != i:
            raise DataError(
                f"{photos.paths[j]} (class {photos.classes[photos.labels[j]]}) and {path} (class "
                f"{photos.classes[photos.labels[i]]}) are one and the same file: list it once."
            )


# Files and names


def _class_folders(root: Path, *, trains: bool | None = None) -> list[_Row]:
    """The photos in the folders below ``root``; a folder's path below it is the class."""
    found = [(file.parent.relative_to(root).as_posix(), file) for file in image_files(root)]
    return [_Row(label, file, trains) for label, file in found if label != "."]


def _unwrap(path: Path) -> Path:
    """The folder inside the folders of folders that archives unpack to."""
    entries = _visible(path)
    inner = entries[0] if len(entries) == 1 and entries[0].is_dir() else None
    if inner is None or inner.name == "train" or not any(e.is_dir() for e in _visible(inner)):
        return path
    return _unwrap(inner)


def _visible(path: Path) -> list[Path]:
    """Sorted entries of a folder, less what systems and archivers leave behind."""
    return sorted(
        entry
        for entry in path.iterdir()
        if not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


def _contents_list(path: Path) -> list[str]:
    return [entry.name + "/" * entry.is_dir() for entry in _visible(path)]


def _contents(path: Path) -> str:
    """What is in a folder, for error messages."""
    return _few(_contents_list(path)) or "nothing"


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key in which class 2 comes before class 10."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _few(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
