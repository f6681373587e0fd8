"""What the readers of published data sets share: lists in text files, and photos that may lack.

Knows no data set by name; each has a module of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import DataError
from training.data.files import contents, existing
from training.data.listing import Listing
from training.data.photos import Photos

__all__ = ["Annotations", "integers", "list_published", "read_columns"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """What the files of a published data set say of its m photos.

    Attributes:
        paths: m files, be they there or not.
        labels: int64 (m,), in 0 … c−1.
        trains: bool (m,).
        queries: bool (m,), see ``Listing``.
        boxes: float64 (m, 4), see ``Photos``.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    trains: NDArray[np.bool_]
    queries: NDArray[np.bool_] | None = None
    boxes: NDArray[np.float64] | None = None


def list_published(
    annotations: Annotations,
    *,
    name: str,
    layout: str,
    root: Path,
    classes: Sequence[str],
    complete: int,
    notes: tuple[str, ...] = (),
    leave_out_single: bool = False,
) -> Listing:
    """Photos in the order of class and path; absent files are left out and noted.

    Args:
        annotations: of m photos.
        name: of the data set and its protocol.
        layout: how its files are laid out.
        root: its folder, for messages.
        classes: c names.
        complete: how many photos the data set has as published.
        notes: to add to.
        leave_out_single: see ``Listing``.

    Raises:
        DataError: if no photo is there.
    """
    paths, labels = annotations.paths, annotations.labels
    found = existing(paths)
    if not found:
        raise DataError(
            f"none of the {len(paths)} annotated photos is there, such as {paths[0]}. "
            f"Found in {root}: {contents(root)}."
        )
    if len(found) != complete:
        notes = (f"found {len(found):,} of {complete:,} photos", *notes)

    order = sorted(found, key=lambda i: (labels[i], paths[i]))
    boxes, queries = annotations.boxes, annotations.queries
    photos = Photos(
        paths=tuple(paths[i] for i in order),
        labels=labels[order],
        classes=tuple(classes),
        boxes=None if boxes is None else boxes[order],
    )
    return Listing(
        name=name,
        kind=name,
        layout=layout,
        photos=photos.subset(np.ones(len(order), dtype=np.bool_)),  # drops classes without photos
        trains=annotations.trains[order],
        queries=None if queries is None else queries[order],
        notes=notes,
        leave_out_single=leave_out_single,
    )


def read_columns(
    file: Path, columns: Sequence[str], *, header_line: int = 0
) -> dict[str, list[str]]:
    """The columns of a text file of values with spaces between them, by name.

    Args:
        file: in UTF-8; empty lines are skipped.
        columns: their names.
        header_line: the line, counted from 1, that names the columns; the values start below it.
            0: values from the first line on.

    Raises:
        DataError: if there is no value, the header is another or a line has other than one value
            for each column.
    """
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text in UTF-8: {error}.") from error
    expected = " ".join(columns)
    header = lines[header_line - 1 : header_line]  # no line at all for 0
    if header_line and header != [list(columns)]:
        found = " ".join(header[0]) if header else ""
        raise DataError(
            f"{file}, line {header_line}: expected the columns {expected!r}, found {found!r}."
        )
    rows = []
    for number, values in enumerate(lines[header_line:], header_line + 1):
        if values and len(values) != len(columns):
            raise DataError(
                f"{file}, line {number}: expected {expected!r}, found {' '.join(values)!r}."
            )
        if values:
            rows.append(values)
    if not rows:
        raise DataError(f"{file} is empty: expected lines of {expected!r}.")
    return {name: [row[i] for row in rows] for i, name in enumerate(columns)}


def integers(values: Sequence[str], file: Path, column: str) -> NDArray[np.int64]:
    """A column of a text file as int64.

    Raises:
        DataError: if a value is no integer.
    """
    try:
        return np.array(values).astype(np.int64)
    except ValueError as error:
        raise DataError(f"{file} has a {column} that is no integer: {error}.") from error
