"""The map of a gallery."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from index.photos import AttributeValue
from service.schemas.common import ModelReference

__all__ = ["LegendEntry", "MapColours", "MapResponse"]


class LegendEntry(BaseModel):
    """A colour: a value of the field, a range of numbers, or all other items together."""

    value: AttributeValue = Field(
        description="Null for a range, and for the entry of items without a value or with a rarer "
        "one, which comes last.",
        examples=["audi-a4-2011"],
    )
    low: float | None = Field(
        default=None, description="Of numbers, the lowest that it stands for.", examples=[None]
    )
    high: float | None = Field(
        default=None, description="Of numbers, the highest that it stands for.", examples=[None]
    )
    count: int = Field(description="Items on the map that have it.", examples=[41])


class MapColours(BaseModel):
    """A field of the items on the map."""

    field: str = Field(examples=["label"])
    ordered: bool = Field(
        description="Whether the legend goes from low to high, as numbers do.", examples=[False]
    )
    legend: list[LegendEntry] = Field(
        description="The 100 most frequent values, most frequent first. Numbers from low to high; "
        "more than 12 of them as 8 ranges of about as many items each."
    )
    codes: list[int] = Field(
        description="For each item its place in the legend, from 0.", examples=[[0, 0, 1]]
    )


class MapResponse(BaseModel):
    """Where items are on the map. Neighbours on it are neighbours in search."""

    model: ModelReference
    created: datetime = Field(description="When it was drawn or extended last.")
    items: int = Field(description="Items in the gallery now.", examples=[8131])
    missing: int = Field(
        description="Items that came since the map was drawn: draw it again to see them.",
        examples=[0],
    )
    ids: list[int] = Field(description="Of the items on the map, ascending.", examples=[[1, 2, 5]])
    x: list[int] = Field(description="From 0 to 65,535, rightwards.", examples=[[0, 412, 65535]])
    y: list[int] = Field(description="From 0 to 65,535, downwards.", examples=[[93, 40, 7121]])
    colours: MapColours | None = Field(
        description="Null unless asked for.", json_schema_extra={"examples": [None]}
    )
