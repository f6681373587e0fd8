"""Lists of photos to index: a folder, class folders or a CSV with attributes.

Nothing is decoded here; see ``index.ingest`` for turning photos into items.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from index.errors import DataError
from index.images import IMAGE_SUFFIXES
from index.stores import PhotoPath

__all__ = ["AttributeValue", "Photo", "image_files", "list_photos"]

AttributeValue = str | int | float | bool | None

#: Folder names that say which part of a data set a photo belongs to, not what it shows.
SPLITS = ("train", "test")


#: CSV columns that are no attributes. ``id`` is the gallery's to give.
OWN_COLUMNS = ("path", "label", "sku")


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo to index. ``path`` is relative to ``root``, with forward slashes.

    ``stated`` names what somebody wrote down about it, in a CSV or on the command line: ``label``,
    ``sku`` and attributes. That overrides what a gallery holds; a label read off a folder does not,
    as it may have been corrected since.
    """

    root: PhotoPath
    path: str
    label: str | None = None
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    external_id: str | None = None  #: the user's own name for the item: ``sku``
    stated: frozenset[str] = frozenset()

    @property
    def file(self) -> PhotoPath:
        """Where the photo lies."""
        return self.root / self.path


def list_photos(source: Path) -> list[Photo]:
    """The photos of a folder, a CSV file or a single image file, in a stable order.

    Folder: every image below it. A photo in a subfolder gets the subfolder's path as its label
    (``audi-a4/1.jpg`` → ``audi-a4``); photos at the top get none. Where the top level holds only
    ``train`` and ``test``, these become the attribute ``split`` and the label starts below them.

    CSV: a header with ``path`` (relative to the CSV's folder), optionally ``label`` and ``sku``
    (the item's external id, unique); every other column becomes an attribute, as numbers where all
    its values are numbers.

    Raises:
        DataError: nothing there, no image in it, or a CSV without ``path``, with paths that lead
            out of its folder, with a photo or a ``sku`` on two lines, or with a column ``id``.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist: name a folder of photos, a CSV or an image.")
    if source.is_dir():
        return _from_folder(source.resolve())
    if source.suffix.lower() == ".csv":
        return _from_csv(source.resolve())
    resolved = source.resolve()
    return [Photo(root=resolved.parent, path=resolved.name)]


def image_files(folder: Path) -> Iterator[Path]:
    """Every file below ``folder`` that is named like an image, sorted; hidden ones left out."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in relative.parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            yield path


def _from_folder(root: Path) -> list[Photo]:
    paths = [path.relative_to(root).as_posix() for path in image_files(root)]
    if not paths:
        some = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{root} holds no image: looked for {', '.join(sorted(IMAGE_SUFFIXES))} below it, "
            f"found {some}."
        )
    splits = {PurePosixPath(path).parts[0] for path in paths} <= set(SPLITS)
    return [_from_class_folder(root, path, splits) for path in paths]


def _from_class_folder(root: Path, path: str, splits: bool) -> Photo:
    folders = PurePosixPath(path).parts[:-1]
    attributes: dict[str, AttributeValue] = {}
    if splits:
        attributes["split"], folders = folders[0], folders[1:]
    return Photo(root=root, path=path, label="/".join(folders) or None, attributes=attributes)


def _from_csv(file: Path) -> list[Photo]:
    root = file.parent
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8: {error}.") from error
    if "path" not in columns:
        raise DataError(
            f"{file} has no column `path`; its header is: {', '.join(columns) or 'empty'}. "
            "Expected: path, optionally label and sku, and any attributes."
        )
    if "id" in columns:
        raise DataError(
            f"{file} has a column `id`, which is the gallery's to give: name it `sku` to find "
            "items by it, or anything else to keep it as an attribute."
        )
    if not rows:
        raise DataError(f"{file} lists no photo: it has a header and no rows.")
    extra = [column for column in columns if column not in OWN_COLUMNS]
    stated = frozenset(columns) - {"path"}
    converters = {column: _converter([row[column] or "" for _, row in rows]) for column in extra}
    photos = []
    lines: dict[tuple[str, str], int] = {}
    for number, row in rows:
        if None in row or not row["path"] or "\0" in row["path"]:
            raise DataError(f"{file}, line {number}: expected {len(columns)} values with a path.")
        target = (root / row["path"]).resolve()
        if not target.is_relative_to(root):
            raise DataError(
                f"{file}, line {number}: {row['path']} lies outside {root}. Put the CSV at the top "
                "of the folder that holds the photos."
            )
        photo = Photo(
            root=root,
            path=target.relative_to(root).as_posix(),
            label=row.get("label") or None,
            attributes={column: converters[column](row[column] or "") for column in extra},
            external_id=row.get("sku") or None,
            stated=stated,
        )
        for key in (("path", photo.path), ("sku", photo.external_id or "")):
            if key[1] and lines.setdefault(key, number) != number:
                raise DataError(
                    f"{file}, line {number}: {key[0]} {key[1]} is on line {lines[key]} already. "
                    "Leave one of the two."
                )
        photos.append(photo)
    return photos


def _converter(values: list[str]) -> Callable[[str], AttributeValue]:
    """The narrowest of int, float and str that takes every value; an empty cell is None."""
    for kind in (int, _finite):
        try:
            for value in values:
                if value:
                    kind(value)
        except ValueError:
            continue
        return lambda value, kind=kind: kind(value) if value else None  # type: ignore[misc]
    return lambda value: value or None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # JSON has no word for it
        raise ValueError(text)
    return value
