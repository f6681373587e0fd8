"""Ids of items in paths, and the paths of their photos."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from starlette.convertors import Convertor, register_url_convertor

__all__ = ["MAX_INTEGER", "ItemId", "image_url", "thumbnail_url"]

#: Ids and offsets are SQLite integers.
MAX_INTEGER = 2**63 - 1

ItemId = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="The item's id.")]


class ItemNumber(Convertor[int]):
    """Digits in a path: ``/items/{item_id:item}``, so that other words are other paths.

    Starlette's own ``int`` takes any number of digits, on thousands of which Python raises.
    """

    regex = "[0-9]{1,19}"

    def convert(self, value: str) -> int:
        """The number."""
        return int(value)

    def to_string(self, value: int) -> str:
        """The digits."""
        return str(value)


register_url_convertor("item", ItemNumber())


# Written out: to have the router find them costs a search with many results milliseconds.


def image_url(item_id: int) -> str:
    """Where an item's photo is, as a path on this service."""
    return f"/items/{item_id}/image"


def thumbnail_url(item_id: int) -> str:
    """Where an item's thumbnail is, as a path on this service."""
    return f"/items/{item_id}/thumbnail"
