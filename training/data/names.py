"""Names: how classes are ordered and compared, and how messages list and count them.

Knows strings only; what lies on disk is the business of ``training.data.files``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["few", "folded", "natural", "plural"]


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key in which class 2 comes before class 10."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def folded(name: str) -> str:
    """A class name less what people write differently: case, spaces and underscores.

    >>> folded(" BMW_X5") == folded("bmw x5")
    True
    """
    return " ".join(name.replace("_", " ").split()).casefold()


def few(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def plural(count: int, one: str, many: str | None = None) -> str:
    """``count`` with its noun: 1 class, 2 classes."""
    return f"{count} {one if count == 1 else many or one + 's'}"
