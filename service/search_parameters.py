"""The query parameters that every search takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from fastapi import Depends, Query

from index.errors import InvalidArgumentError
from index.gallery import MAX_K
from service.dependencies import EngineDep
from service.schemas.search import Include
from service.where import WhereDep

__all__ = ["SearchOptions", "SearchOptionsDep", "search_options"]

INCLUDES: tuple[Include, ...] = get_args(Include)
DEFAULT_INCLUDE: frozenset[Include] = frozenset({"attributes", "image"})


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a search is to find, and to tell about it."""

    k: int = 10
    where: Mapping[str, Any] | None = None
    threshold: float | None = None
    group_by: str | None = None
    offset: int = 0
    include: frozenset[Include] = DEFAULT_INCLUDE


async def search_options(
    engine: EngineDep,
    where: WhereDep,
    k: Annotated[
        int,
        Query(
            json_schema_extra={"minimum": 1},
            description="How many items to return, up to the service's `max_results` (1,000 unless "
            "set otherwise). A smaller gallery returns all it has.",
            examples=[10],
        ),
    ] = 10,
    threshold: Annotated[
        float | None,
        Query(ge=-1, le=1, description="Leave out items with a lower score.", examples=[0.8]),
    ] = None,
    group_by: Annotated[
        str | None,
        Query(
            min_length=1,
            description="Of items with the same value of this field only the nearest: `label`, "
            "`sku` or an attribute. Items without a value are left out.",
            examples=["label"],
        ),
    ] = None,
    offset: Annotated[
        int,
        Query(
            ge=0,
            le=MAX_K,
            description=f"Leave out the nearest so many; with `k` up to {MAX_K:,}.",
            examples=[0],
        ),
    ] = 0,
    include: Annotated[
        list[str] | None,
        Query(
            json_schema_extra={"items": {"type": "string", "enum": list(INCLUDES)}},
            description="What results tell beside id, score, sku and label: `attributes`, `image` "
            "(where it is), `vector`. Repeated or by commas; `attributes,image` unless given.",
            examples=[["attributes", "image"]],
        ),
    ] = None,
) -> SearchOptions:
    """The parameters after a check against the settings."""
    # One check for both ends, so that one message names the value and the range.
    limit = engine.settings.max_results
    if not 1 <= k <= limit:
        raise InvalidArgumentError(f"k is {k}: this service returns 1 to {limit} results.")
    return SearchOptions(
        k=k,
        where=where,
        threshold=threshold,
        group_by=group_by,
        offset=offset,
        include=DEFAULT_INCLUDE if include is None else _included(include),
    )


def _included(given: list[str]) -> frozenset[Include]:
    names = {name for each in given for name in each.split(",") if name}
    if unknown := sorted(names.difference(INCLUDES)):
        raise InvalidArgumentError(
            f"include is {unknown[0][:100]!r}: expected some of {', '.join(INCLUDES)}."
        )
    return frozenset(name for name in INCLUDES if name in names)


SearchOptionsDep = Annotated[SearchOptions, Depends(search_options)]
