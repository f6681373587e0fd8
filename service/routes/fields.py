"""``/fields``: what items can be filtered and grouped by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from index import Gallery
from index.attributes import FieldType
from service.dependencies import EngineDep
from service.errors import problems
from service.schemas import FieldsResponse, FieldSummary, ValueCount
from service.security import require
from service.where import WhereDep

__all__ = ["router"]

router = APIRouter(tags=["items"], dependencies=[Depends(require("read"))])


@router.get("/fields", operation_id="list_fields", responses=problems(422, 503))
async def list_fields(
    engine: EngineDep,
    where: WhereDep,
    values: Annotated[
        int, Query(ge=0, le=1000, description="Values to return of each field.")
    ] = 20,
) -> FieldsResponse:
    """`label` and the attributes that items have: types, frequent values and their counts."""
    return await engine.read(_fields, where, values)


def _fields(gallery: Gallery, where: Mapping[str, Any] | None, values: int) -> FieldsResponse:
    fields: dict[str, FieldType] = {"label": "string", **gallery.fields()}
    return FieldsResponse(
        total=gallery.count(where),
        fields=[_summary(gallery, name, kind, where, values) for name, kind in fields.items()],
    )


def _summary(
    gallery: Gallery, name: str, kind: FieldType, where: Mapping[str, Any] | None, values: int
) -> FieldSummary:
    found = gallery.values(name, where=where, limit=values + 1)
    return FieldSummary(
        name=name,
        type=kind,
        values=[ValueCount(value=value, count=count) for value, count in found[:values]],
        more=len(found) > values,
    )
