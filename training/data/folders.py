"""Photos in class folders, with or without ``train/`` and ``test/`` above them."""

from __future__ import annotations

from pathlib import Path

from index.errors import DataError
from index.photos import image_files
from training.data.files import contents, visible
from training.data.listing import Listing, Row, listed
from training.data.names import few

__all__ = ["read_folders", "read_train_test"]


def read_train_test(root: Path, name: str) -> Listing | None:
    """``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``; None if there is no ``train/``.

    Raises:
        DataError: if ``train/`` holds no class folders.
    """
    if not (root / "train").is_dir():
        return None
    train = _class_folders(root / "train", trains=True)
    test = _class_folders(root / "test", trains=False) if (root / "test").is_dir() else []
    if not train:
        raise DataError(
            f"{root / 'train'} should hold a folder of photos for each class. "
            f"Found: {contents(root / 'train')}."
        )
    others = [e.name for e in visible(root) if e.is_dir() and e.name not in ("train", "test")]
    notes = (f"only train/ and test/ are used, not {few(others)}",) if others else ()
    return listed(name, "folders", "train-test", train + test, notes)


def read_folders(root: Path, name: str) -> Listing | None:
    """``CLASS/*.jpg``; None if there are no such folders."""
    rows = _class_folders(root)
    return listed(name, "folders", "folders", rows) if rows else None


def _class_folders(root: Path, *, trains: bool | None = None) -> list[Row]:
    """The photos in the folders below ``root``; a folder's path below it is the class."""
    found = [(file.parent.relative_to(root).as_posix(), file) for file in image_files(root)]
    return [Row(label, file, trains) for label, file in found if label != "."]
