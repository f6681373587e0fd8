"""Items of the gallery, and the fields that they have."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from index import Item
from index.attributes import FieldType
from index.photos import AttributeValue

__all__ = [
    "Attributes",
    "FieldSummary",
    "FieldsResponse",
    "ItemChange",
    "ItemPage",
    "ItemResponse",
    "ValueCount",
]

Attributes = dict[str, AttributeValue]

ATTRIBUTES = {"year": 2011, "colour": "red"}


class ItemResponse(BaseModel):
    """An item of the gallery."""

    id: int = Field(description="Never given to another photo.", examples=[17])
    sku: str | None = Field(
        default=None, description="Your own name for it, unique.", examples=["A4-2011-0042"]
    )
    label: str | None = Field(description="Its class, where known.", examples=["audi-a4-2011"])
    attributes: Attributes = Field(examples=[ATTRIBUTES])
    image_url: str = Field(description="The original photo.", examples=["/items/17/image"])
    thumbnail_url: str | None = Field(
        default=None,
        description="A small JPEG of it; `?size=` pixels.",
        examples=["/items/17/thumbnail"],
    )

    @classmethod
    def of(cls, item: Item, *, image_url: str, thumbnail_url: str) -> Self:
        """The item as the interface shows it: without paths of this machine."""
        return cls(
            id=item.id,
            sku=item.external_id,
            label=item.label,
            attributes=item.attributes,
            image_url=image_url,
            thumbnail_url=thumbnail_url,
        )


class ItemPage(BaseModel):
    """A page of the gallery in the order of ids."""

    total: int = Field(description="Items in the whole gallery, or that match.", examples=[8131])
    offset: int = Field(examples=[0])
    items: list[ItemResponse]


class ItemChange(BaseModel):
    """What to change about an item. What is left out stays; null takes it away."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"label": "audi-a4-2012", "attributes": {"year": 2012}}]},
    )

    label: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, examples=["audi-a4-2012"]
    )
    sku: Annotated[str, Field(min_length=1)] | None = Field(default=None, examples=["A4-2012-7"])
    attributes: Attributes = Field(
        default={},
        description="Merged into those it has; null as a value takes the attribute away.",
        examples=[{"year": 2012, "colour": None}],
    )


class ValueCount(BaseModel):
    """A value, and how many items have it."""

    value: AttributeValue = Field(examples=["red"])
    count: int = Field(examples=[412])


class FieldSummary(BaseModel):
    """A field that items have, and its most frequent values."""

    name: str = Field(description="As in `where` and `group_by`.", examples=["colour"])
    type: FieldType = Field(examples=["string"])
    values: list[ValueCount] = Field(description="The most frequent first.")
    more: bool = Field(description="Whether there are further values.", examples=[False])


class FieldsResponse(BaseModel):
    """`label` and the attributes of the gallery."""

    total: int = Field(description="Items that were counted.", examples=[8131])
    fields: list[FieldSummary]
