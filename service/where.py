"""The query parameter ``where``: a filter as JSON text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic_core import from_json

from index.errors import FilterError

__all__ = ["WhereDep", "where_parameter"]


async def where_parameter(
    where: Annotated[
        str | None,
        Query(
            max_length=20_000,
            description="Only the items that this filter matches: a JSON object of fields and "
            "values, with the operators `eq`, `ne`, `gt`, `gte`, `lt`, `lte`, `in`, `not_in` and "
            "`exists`, and `any` and `not` around filters.",
            examples=['{"make": "BMW", "year": {"gte": 2010}}'],
        ),
    ] = None,
) -> Mapping[str, Any] | None:
    """``where`` as a filter; what its fields and values may be is the gallery's to say."""
    if where is None:
        return None
    try:
        # Unlike Python's own it refuses deep nesting by a ValueError, and NaN.
        parsed = from_json(where, allow_inf_nan=False)
    except ValueError as error:
        raise FilterError(
            f"where is not JSON ({error}): expected an object such as "
            '{"make": "BMW", "year": {"gte": 2010}}, URL-encoded.'
        ) from error
    if not isinstance(parsed, dict):
        raise FilterError(
            f'where is {where[:100]}: expected an object such as {{"make": "BMW"}}, URL-encoded.'
        )
    return parsed


WhereDep = Annotated[Mapping[str, Any] | None, Depends(where_parameter)]
