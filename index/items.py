"""``Item`` and ``NewItem``: what a gallery holds, wherever it holds it, and what may be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.attributes import check_text
from index.errors import DuplicateExternalIdError, InvalidArgumentError, ItemNotFoundError
from index.photos import AttributeValue
from index.stores import PhotoPath

__all__ = [
    "KEEP",
    "MAX_ID",
    "UNIT_TOLERANCE",
    "Item",
    "Keep",
    "NewItem",
    "check_item",
    "check_texts",
    "expect_all",
    "storable",
    "taken",
    "without_taken_away",
]

#: How far from 1 the length of a vector may be.
UNIT_TOLERANCE = 1e-3

#: SQLite's largest integer: no item has an id beyond.
MAX_ID = 2**63 - 1


class Keep(Enum):
    """The type of ``KEEP``."""

    KEEP = "keep"


#: In ``Catalog.update``: leave this as it is. None stands for none.
KEEP: Final = Keep.KEEP


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """A photo with its vector, ready to be stored.

    ``path`` is relative to ``root``; ``size`` and ``mtime_ns`` are the file's when it was read;
    ``vector`` is float32 [d] of unit length (other floats are stored as float32). ``external_id``
    is the user's own name for the item; no two items share one.
    """

    root: PhotoPath
    path: str
    sha256: str
    size: int
    mtime_ns: int
    label: str | None
    attributes: dict[str, AttributeValue]
    vector: NDArray[np.float32]
    external_id: str | None = None

    @property
    def image(self) -> PhotoPath:
        """Where the photo lies: absolute."""
        return self.root / self.path


@dataclass(frozen=True, kw_only=True)
class Item:
    """A stored item. ``path`` is relative to ``root``; the file may since have moved."""

    id: int
    external_id: str | None
    label: str | None
    attributes: dict[str, AttributeValue]
    root: PhotoPath
    path: str
    size: int
    mtime_ns: int
    sha256: str

    @property
    def image(self) -> PhotoPath:
        """Where the photo lies: absolute."""
        return self.root / self.path


def storable(text: str) -> bool:
    """Whether a text can be stored; one that cannot is in no gallery."""
    try:
        check_text("the text", text)
    except InvalidArgumentError:
        return False
    return True


def check_texts(
    what: str,
    *,
    label: str | Keep | None,
    external_id: str | Keep | None,
    root: str = "",
    path: str = "",
) -> None:
    """Refuse texts that cannot be stored, and an empty sku.

    Raises:
        InvalidArgumentError: names which one of ``what``.
    """
    for name, text in (("root", root), ("path", path), ("label", label), ("sku", external_id)):
        if text is not None and text is not KEEP:
            check_text(f"the {name} of {what}", text)
    if external_id == "":
        raise InvalidArgumentError(f"the sku of {what} is empty: give one, or none.")


def check_item(item: NewItem, dim: int) -> None:
    """Refuse an item that no gallery of vectors of ``dim`` values can hold.

    Raises:
        InvalidArgumentError: text that cannot be stored, or a vector of another length.
    """
    name = str(item.image)
    check_texts(
        name, root=str(item.root), path=item.path, label=item.label, external_id=item.external_id
    )
    if item.vector.shape != (dim,):
        raise InvalidArgumentError(
            f"the vector of {name} has shape {list(item.vector.shape)}; this gallery holds {dim} "
            "values a vector."
        )


def without_taken_away(
    merged: Mapping[str, AttributeValue], changes: Mapping[str, AttributeValue]
) -> dict[str, AttributeValue]:
    """Attributes after ``changes`` were merged into them: None as a change takes one away."""
    return {
        name: value for name, value in merged.items() if value is not None or name not in changes
    }


def expect_all(ids: Sequence[int], found: Mapping[int, object]) -> None:
    """Raises ItemNotFoundError unless all ids were found; it names those that were not."""
    missing = [item_id for item_id in ids if item_id not in found]
    if missing:
        shown = ", ".join(str(each) for each in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ItemNotFoundError(f"no item with id {shown} in the gallery.")


def taken(external_id: str, by: str) -> DuplicateExternalIdError:
    """The error of an external id that something else has already."""
    return DuplicateExternalIdError(
        f"the sku {external_id!r} belongs to {by} already: give another, or none."
    )
