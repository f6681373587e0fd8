"""Photos that are in both train and test under two names.

Shared names and files are refused when a data set is loaded; this looks into the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from index.files import sha256_file
from training.data.dataset import Dataset

__all__ = ["leaked_photos"]


def leaked_photos(dataset: Dataset) -> list[tuple[Path, Path]]:
    """Test photos whose file is byte for byte that of a training photo.

    A network that has learned from a photo finds it again with ease, so that such photos flatter
    the figures. Only files of a size that occurs on both sides are read.

    Returns:
        For each such test photo, in their order: the first training photo that is the same, and the
        test photo. Empty if there is no test set.
    """
    if dataset.test is None:
        return []
    train, test = _by_size(dataset.train.paths), _by_size(dataset.test.paths)
    first: dict[str, Path] = {}
    for path in (path for size in train.keys() & test.keys() for path in train[size]):
        first.setdefault(sha256_file(path), path)
    suspects = {path for size in train.keys() & test.keys() for path in test[size]}
    return [
        (first[digest], path)
        for path in dataset.test.paths
        if path in suspects and (digest := sha256_file(path)) in first
    ]


def _by_size(paths: Sequence[Path]) -> dict[int, list[Path]]:
    """Files by their size in bytes."""
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        sizes.setdefault(path.stat().st_size, []).append(path)
    return sizes
