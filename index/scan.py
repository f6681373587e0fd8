"""All items of a catalog, page by page, while others may change it."""

from __future__ import annotations

from collections.abc import Iterator

from index.contents import Contents
from index.items import Item

__all__ = ["scan"]

#: Items in memory at a time.
PAGE = 1000


def scan(catalog: Contents, *, page: int = PAGE, after: int = 0) -> Iterator[list[Item]]:
    """Pages of items in the order of their ids, those above ``after``.

    Each page is as the catalog is when it is read; an item that was removed before is left out.
    """
    last = after
    # Past the last id, not by an offset: that would count through the catalog again for each page.
    while items := catalog.page(offset=0, limit=page, where=catalog.compile({"id": {"gt": last}})):
        yield items
        last = items[-1].id
