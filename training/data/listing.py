"""What every reader of a layout returns: all photos found, before train and test are told apart.

Knows no layout; ``training.data.layouts`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.names import natural
from training.data.photos import Photos

__all__ = ["Listing", "Row", "listed"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """All n photos of a data set, with the split that its files suggest.

    Attributes:
        name: of the data set.
        kind: first word of the protocol.
        layout: how the files were laid out.
        photos: all of them.
        trains: bool (n,), the photos that train; None if the files have no split.
        queries: bool (n,), the test photos that are queries, the other ones being their gallery;
            None if each test photo is a query to all others.
        notes: what a careful reader of the figures should know.
        leave_out_single: whether training classes of one photo are left out, not refused.
    """

    name: str
    kind: str
    layout: str
    photos: Photos
    trains: NDArray[np.bool_] | None
    queries: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    leave_out_single: bool = False


@dataclass(frozen=True)
class Row:
    """One photo found.

    Attributes:
        label: its class.
        path: its file.
        trains: the side that its place suggests; None if it suggests none.
        query: for a test photo, whether it is a query or belongs to the gallery; None if both.
    """

    label: str
    path: Path
    trains: bool | None = None
    query: bool | None = None


def listed(
    name: str, kind: str, layout: str, rows: Sequence[Row], notes: tuple[str, ...] = ()
) -> Listing:
    """Rows in the order of class and file name."""
    classes = sorted({row.label for row in rows}, key=natural)
    label = {name: i for i, name in enumerate(classes)}
    ordered = sorted(rows, key=lambda row: (label[row.label], row.path))
    photos = Photos(
        paths=tuple(row.path for row in ordered),
        labels=np.array([label[row.label] for row in ordered], dtype=np.int64),
        classes=tuple(classes),
    )
    sides = [row.trains for row in ordered]
    trains = None if None in sides else np.array(sides, dtype=np.bool_)
    queries = None
    if any(row.query is not None for row in rows):
        queries = np.array([row.query is True for row in ordered], dtype=np.bool_)
    return Listing(
        name=name,
        kind=kind,
        layout=layout,
        photos=photos,
        trains=trains,
        queries=queries,
        notes=notes,
    )
