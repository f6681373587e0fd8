"""Searches and what they found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.common import ModelReference, TookMs
from service.schemas.items import Attributes

__all__ = [
    "MAX_DIM",
    "BatchAnswer",
    "BatchResponse",
    "Hit",
    "Include",
    "PhotoProblem",
    "SearchResponse",
    "UrlQuery",
    "VectorQuery",
]

#: Values of a vector that a request may hold: more than any model has.
MAX_DIM = 16_384

#: The longest URL that is fetched.
MAX_URL = 2048

#: What a result may tell beside id, label and score.
Include = Literal["attributes", "image", "vector"]


class Hit(BaseModel):
    """An item near the query. What `include` does not name is left out."""

    id: int = Field(description="Never given to another photo.", examples=[17])
    score: float = Field(
        ge=-1,
        le=1,
        description="Cosine similarity of query and item in [−1, 1]; higher is nearer. Scores of "
        "different models do not compare.",
        examples=[0.934],
    )
    sku: str | None = Field(description="Your own name for it, unique.", examples=["A4-2011-0042"])
    label: str | None = Field(description="Its class, where known.", examples=["audi-a4-2011"])
    attributes: Attributes | None = Field(
        default=None,
        description="With `include=attributes`.",
        examples=[{"year": 2011, "colour": "red"}],
    )
    image_url: str | None = Field(
        default=None, description="With `include=image`.", examples=["/items/17/image"]
    )
    thumbnail_url: str | None = Field(
        default=None, description="With `include=image`.", examples=["/items/17/thumbnail"]
    )
    vector: list[float] | None = Field(
        default=None, description="With `include=vector`: its embedding, of unit length."
    )


class SearchResponse(BaseModel):
    """The nearest items, nearest first, ties by ascending id."""

    model: ModelReference
    results: list[Hit]
    took_ms: TookMs


class PhotoProblem(BaseModel):
    """Why a photo could not be used."""

    status: int = Field(description="The status that it alone would have got.", examples=[422])
    code: str = Field(description="Stable, as in problem details.", examples=["image_truncated"])
    detail: str = Field(
        description="What went wrong with what, and the way out; for people.",
        examples=["the file is damaged or cut off (image file is truncated): export it again."],
    )


class BatchAnswer(BaseModel):
    """The answer to one photo: `results`, or the `problem` with it."""

    file: str | None = Field(description="Its name, as it was sent.", examples=["photo.jpg"])
    results: list[Hit] | None = None
    problem: PhotoProblem | None = None


class BatchResponse(BaseModel):
    """An answer for each photo, in the order they were sent."""

    model: ModelReference
    answers: list[BatchAnswer]
    took_ms: TookMs


class VectorQuery(BaseModel):
    """An embedding to search by."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"vector": [0.6, 0.0, -0.8]}]}
    )

    vector: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(
        min_length=1,
        max_length=MAX_DIM,
        description="As many values as the model's `dim`, of unit length, made by the same model.",
    )


class UrlQuery(BaseModel):
    """Where a photo is."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"url": "https://example.com/cars/photo.jpg"}]},
    )

    url: str = Field(
        min_length=1,
        max_length=MAX_URL,
        description="An http or https address on the public internet, on port 80 or 443.",
        examples=["https://example.com/cars/photo.jpg"],
    )
