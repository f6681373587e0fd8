"""Photos listed in a CSV file with the columns ``path``, ``label`` and ``split``."""

from __future__ import annotations

import csv
from pathlib import Path

from index.errors import DataError
from training.data.listing import Listing, Row, listed
from training.data.names import few, plural

__all__ = ["read_csv"]

COLUMNS = ("path", "label", "split")

#: What each value of ``split`` says: whether the photo trains, whether it is a query.
SPLITS: dict[str, tuple[bool, bool | None]] = {
    "train": (True, None),
    "test": (False, None),
    "query": (False, True),
    "gallery": (False, False),
}


def read_csv(path: Path) -> Listing:
    """Read a CSV file; its paths count from its own folder, further columns are ignored.

    Raises:
        DataError: if a column, a value or a file is missing, or if ``test`` stands beside ``query``
            or ``gallery``.
    """
    rows: list[Row] = []
    missing: list[str] = []
    first_line: dict[str, int] = {}  # of each value of split
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            absent = [column for column in COLUMNS if column not in header]
            if absent:
                raise DataError(
                    f"{path} lacks the column {few(absent)}: its first line should name path, "
                    f"label and split, but is {','.join(header)!r}."
                )
            for row in reader:
                photo, label, split = ((row[column] or "").strip() for column in COLUMNS)
                if not photo or not label or split not in SPLITS:
                    raise DataError(
                        f"{path}, line {reader.line_num}: path {photo!r}, label {label!r}, split "
                        f"{split!r}; path and label must be given, split must be train, test, "
                        "query or gallery."
                    )
                first_line.setdefault(split, reader.line_num)
                trains, query = SPLITS[split]
                rows.append(Row(label, path.parent / photo, trains, query))
                if not rows[-1].path.is_file():
                    missing.append(photo)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}.") from error
    if missing:
        raise DataError(
            f"{path} lists {plural(len(missing), 'file')} not found from {path.parent}: "
            f"{few(missing)}. Correct the paths or remove the lines."
        )
    if not rows:
        raise DataError(f"{path} lists no photo: it has a header and no rows.")
    own = [split for split in ("query", "gallery") if split in first_line]
    if own and "test" in first_line:
        raise DataError(
            f"{path} has the split test (line {first_line['test']}) and the split {own[0]} (line "
            f"{first_line[own[0]]}): either each test photo is a query to all others (test), or "
            "queries are looked up in a gallery (query, gallery)."
        )
    # Figures of the two kinds of test do not compare, so that their protocols differ in name.
    return listed(path.stem, "csv-query-gallery" if own else "csv", "csv", rows)
