"""What the HTTP interface takes and gives, as it appears in ``/docs``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from index import Item, ModelCard
from index.gallery import MAX_K
from index.photos import AttributeValue

__all__ = [
    "EvaluationRequest",
    "EvaluationResponse",
    "FieldProblem",
    "Health",
    "Hit",
    "ItemPage",
    "ItemResponse",
    "ModelReference",
    "ModelResponse",
    "Problem",
    "SearchResponse",
]

TOOK = Field(description="Milliseconds that the service worked on it.", examples=[18.4])


class FieldProblem(BaseModel):
    """A part of the request that was refused."""

    field: str = Field(examples=["query.k"])
    message: str = Field(examples=["Input should be greater than or equal to 1"])


class Problem(BaseModel):
    """Problem details (RFC 9457). ``code`` is stable: programs may branch on it."""

    type: str = Field(default="about:blank", description="Always `about:blank`: see `code`.")
    title: str = Field(description="The status in words.", examples=["Unprocessable Entity"])
    status: int = Field(description="The HTTP status.", examples=[422])
    code: str = Field(description="What went wrong; stable.", examples=["image_empty"])
    detail: str = Field(
        description="What went wrong with what, and the way out; for people.",
        examples=["the image is empty (0 bytes): send the photo's own bytes."],
    )
    request_id: str = Field(
        description="Also in the header `X-Request-ID` and in the service's log.",
        examples=["5f0c2c6d6d8f4b0f9c0b4f6f0a1d2e3c"],
    )
    errors: list[FieldProblem] | None = Field(
        default=None, description="Each refused part of the request."
    )


class ModelReference(BaseModel):
    """Which model made the vectors that a score compares."""

    name: str = Field(examples=["cars-resnet50"])
    sha256: str = Field(description="Of the ONNX graph: the model's identity.")


class ItemResponse(BaseModel):
    """An item of the gallery."""

    id: int = Field(description="Never given to another photo.", examples=[17])
    label: str | None = Field(description="Its class, where known.", examples=["audi-a4-2011"])
    attributes: dict[str, AttributeValue] = Field(examples=[{"year": 2011, "colour": "red"}])
    image_url: str = Field(examples=["/items/17/image"])

    @classmethod
    def of(cls, item: Item, image_url: str) -> Self:
        """The item as the interface shows it: without paths of this machine."""
        return cls(id=item.id, label=item.label, attributes=item.attributes, image_url=image_url)


class Hit(ItemResponse):
    """An item near the query."""

    score: float = Field(
        ge=-1,
        le=1,
        description="Cosine similarity of query and item in [−1, 1]; higher is nearer. Scores of "
        "different models do not compare.",
        examples=[0.934],
    )


class SearchResponse(BaseModel):
    """The nearest items, nearest first, ties by ascending id."""

    model: ModelReference
    results: list[Hit]
    took_ms: float = TOOK


class ItemPage(BaseModel):
    """A page of the gallery in the order of ids."""

    total: int = Field(description="Items in the whole gallery.", examples=[8131])
    offset: int = Field(examples=[0])
    items: list[ItemResponse]


class EvaluationRequest(BaseModel):
    """What to measure."""

    model_config = ConfigDict(extra="forbid")

    ks: list[Annotated[int, Field(ge=1, le=MAX_K)]] = Field(
        default=[1, 2, 4, 8],
        min_length=1,
        max_length=100,
        description="Values of K for recall@K.",
    )


class EvaluationResponse(BaseModel):
    """Retrieval metrics of the gallery against itself, each query left out of its own results."""

    recall: dict[str, float] = Field(
        description="K → share of queries with an item of their label among the K nearest.",
        examples=[{"1": 0.874, "2": 0.926, "4": 0.953, "8": 0.972}],
    )
    r_precision: float = Field(
        description="Mean share of a query's label among its R nearest, R the items that share it.",
        examples=[0.58],
    )
    map_at_r: float = Field(description="Mean average precision at R.", examples=[0.51])
    queries: int = Field(description="Items that were queries.", examples=[8131])
    skipped: int = Field(
        description="Labelled items left out as queries: no other item has their label.",
        examples=[0],
    )
    unlabelled: int = Field(
        description="Items without a label, left out of queries and results.", examples=[0]
    )
    protocol: str = Field(
        description="How it was measured; figures of different protocols do not compare.",
        examples=["gallery leave-one-out, exact search"],
    )
    took_ms: float = TOOK


class ModelResponse(BaseModel):
    """The model card, and how many items the gallery holds."""

    name: str
    sha256: str = Field(description="Of the ONNX graph: the model's identity.")
    backbone: str
    dim: int = Field(description="Length of an embedding.")
    height: int = Field(description="Input height in pixels.")
    width: int = Field(description="Input width in pixels.")
    resize: str = Field(description="How photos are fitted to the input size.")
    loss: str | None
    dataset: str | None
    protocol: str | None = Field(description="The protocol of `metrics`.")
    metrics: dict[str, Any]
    settings: dict[str, Any] = Field(description="Of the training run.")
    seed: int | None
    versions: dict[str, str] = Field(description="Packages that made the model.")
    created: str | None
    format_version: int
    items: int = Field(description="Items in the gallery.", examples=[8131])

    @classmethod
    def of(cls, card: ModelCard, items: int) -> Self:
        """The card of a gallery with ``items`` items."""
        return cls(**dataclasses.asdict(card), items=items)


class Health(BaseModel):
    """The service is well."""

    status: str = Field(default="ok", examples=["ok"])
