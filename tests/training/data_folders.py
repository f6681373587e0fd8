"""Folders of photos that are only listed, and what a data set made of them."""

from __future__ import annotations

from pathlib import Path

from training.data import Dataset, Photos


def touch(path: Path) -> Path:
    """A file that is only listed, never decoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def make_classes(root: Path, *classes: str, count: int = 2) -> None:
    for name in classes:
        for i in range(count):
            touch(root / name / f"{i}.jpg")


def shown(photos: Photos) -> list[tuple[str, str]]:
    """(class, folder and file) of each photo."""
    return [
        (photos.classes[label], "/".join(path.parts[-2:]))
        for label, path in zip(photos.labels, photos.paths, strict=True)
    ]


def judged(dataset: Dataset) -> Photos:
    assert dataset.test is not None
    return dataset.test
