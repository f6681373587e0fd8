"""How a gallery's items lie in a Milvus collection, and what the collection says of itself.

Scalar fields of Milvus 2.3 cannot be null, so a flag says whether there is a label and a sku.
Attributes without a value are kept apart: releases differ in what they make of null in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from index.approximate import RequestedKind
from index.errors import GalleryError, InvalidArgumentError
from index.items import Item, NewItem
from index.milvus_client import MilvusConnection, Row
from index.runtimes import Precision
from index.stores import PhotoPath

__all__ = [
    "ALL_FIELDS",
    "ITEM_FIELDS",
    "Described",
    "add_fields",
    "attributes_of",
    "check_sizes",
    "described_row",
    "foreign",
    "index_of",
    "item_of",
    "row_bytes",
    "row_of",
    "vectors_of",
]

FORMAT_VERSION = 1

#: What an item is read from.
ITEM_FIELDS = (
    "id", "root", "path", "sha256", "size", "mtime_ns", "label", "has_label", "sku", "has_sku",
    "attributes", "nulls",
)  # fmt: skip

#: All that a row is made of.
ALL_FIELDS = (*ITEM_FIELDS, "vector", "file", "version")

#: Bytes that Milvus allows a text, and JSON.
MAX_TEXT = 65_535

#: Bytes of a row without its vector, about.
OTHER_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a gallery's collection is; kept as JSON in the gallery's notes."""

    format_version: int
    model_sha256: str
    precision: Precision
    dim: int
    index_kind: RequestedKind
    target_recall: float

    @classmethod
    def new(
        cls,
        *,
        model_sha256: str,
        precision: Precision,
        dim: int,
        index_kind: RequestedKind,
        target_recall: float,
    ) -> Described:
        """Of the format that this release writes."""
        return cls(
            format_version=FORMAT_VERSION,
            model_sha256=model_sha256,
            precision=precision,
            dim=dim,
            index_kind=index_kind,
            target_recall=target_recall,
        )

    @classmethod
    def parse(cls, address: object, description: str) -> Described:
        """Read a description.

        Raises:
            GalleryError: the collection was not made by this program, or by another release.
        """
        try:
            values = json.loads(description)["dscl_gallery"]
            version = values["format_version"]
            if version == FORMAT_VERSION:
                return cls(**values)
        except (ValueError, KeyError, TypeError):
            raise foreign(address) from None
        raise GalleryError(
            f"{address} has gallery format {version}; this release reads {FORMAT_VERSION}. Use the "
            "release that made it, or a later one."
        )

    def text(self) -> str:
        """What ``parse`` reads."""
        return json.dumps({"dscl_gallery": asdict(self)})


def foreign(address: object) -> GalleryError:
    """The error of a collection that this program has not made."""
    return GalleryError(
        f"{address} is a collection that something else has made: choose another name, or remove "
        "it yourself."
    )


def add_fields(connection: MilvusConnection, schema: Any, dim: int) -> None:
    """The fields of an item, to an empty schema."""
    types = connection.types
    schema.add_field("id", types.INT64, is_primary=True)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=dim)
    for name in ("root", "path", "file", "sha256", "label", "sku"):
        schema.add_field(name, types.VARCHAR, max_length=MAX_TEXT)
    for name in ("size", "mtime_ns", "version"):
        schema.add_field(name, types.INT64)
    for name in ("has_label", "has_sku"):
        schema.add_field(name, types.BOOL)
    for name in ("attributes", "nulls"):
        schema.add_field(name, types.JSON)


def index_of(kind: RequestedKind) -> dict[str, Any]:
    """The index of Milvus that stands for a kind. It compares all vectors of small segments."""
    if kind == "flat":
        return {"index_type": "FLAT", "params": {}}
    if kind == "ivf":
        return {"index_type": "IVF_FLAT", "params": {"nlist": 1024}}
    return {"index_type": "HNSW", "params": {"M": 24, "efConstruction": 200}}


def row_bytes(dim: int) -> int:
    """Bytes of a row, about."""
    return 4 * dim + OTHER_BYTES


def check_sizes(
    item: str, label: str | None, sku: str | None, attributes: Mapping[str, Any]
) -> None:
    """Refuse what Milvus cannot hold.

    Raises:
        InvalidArgumentError: a text or attributes of more than 64 KiB.
    """
    for name, text in (
        ("label", label or ""),
        ("sku", sku or ""),
        ("attributes", json.dumps(attributes, ensure_ascii=False)),
    ):
        if (size := len(text.encode())) > MAX_TEXT:
            raise InvalidArgumentError(
                f"{item}: its {name} has {size} bytes; a gallery on Milvus holds up to {MAX_TEXT}."
            )


def row_of(item: NewItem, item_id: int, *, root: str, file: str, version: int) -> Row:
    """An item as it is stored.

    Args:
        item: which one.
        item_id: its id.
        root: the root as it is stored.
        file: what the photo is looked up by.
        version: a number that differs after each change of the item.
    """
    return {
        "id": item_id,
        "vector": np.asarray(item.vector, np.float32),
        "root": root,
        "path": item.path,
        "file": file,
        "sha256": item.sha256,
        "size": item.size,
        "mtime_ns": item.mtime_ns,
        "version": version,
        **described_row(item.label, item.external_id, item.attributes),
    }


def described_row(label: str | None, sku: str | None, attributes: Mapping[str, Any]) -> Row:
    """The fields of a row that say what is known about an item."""
    return {
        "label": label or "",
        "has_label": label is not None,
        "sku": sku or "",
        "has_sku": sku is not None,
        "attributes": {name: value for name, value in attributes.items() if value is not None},
        "nulls": {name: True for name, value in attributes.items() if value is None},
    }


def item_of(row: Row, root: PhotoPath) -> Item:
    """An item from its row; ``root`` is where its root lies now."""
    return Item(
        id=int(row["id"]),
        external_id=row["sku"] if row["has_sku"] else None,
        label=row["label"] if row["has_label"] else None,
        attributes=attributes_of(row),
        root=root,
        path=row["path"],
        size=int(row["size"]),
        mtime_ns=int(row["mtime_ns"]),
        sha256=row["sha256"],
    )


def attributes_of(row: Row) -> dict[str, Any]:
    """The attributes of a row, those without a value included."""
    attributes = cast("dict[str, Any]", dict(row["attributes"] or {}))
    return attributes | dict.fromkeys(cast("dict[str, bool]", row["nulls"] or {}))


def vectors_of(rows: Sequence[Row], dim: int) -> NDArray[np.float32]:
    """The vectors float32 (n, dim) of rows."""
    if not rows:
        return np.empty((0, dim), np.float32)
    return np.array([row["vector"] for row in rows], np.float32)
