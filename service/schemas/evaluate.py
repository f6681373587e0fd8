"""Evaluations and their figures."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from index.evaluation import MAX_CONFUSION, MAX_HARDEST
from index.gallery import MAX_K
from service.schemas.common import ModelReference, TookMs

__all__ = [
    "ClassFigures",
    "ConfusedLabels",
    "EvaluationRequest",
    "EvaluationResponse",
    "HardQuery",
    "IndexReference",
    "JudgedNeighbour",
    "Ks",
    "RefusedPhoto",
]

Ks = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_K)]],
    Field(
        min_length=1,
        max_length=100,
        description="Values of K for recall@K.",
        examples=[[1, 2, 4, 8]],
    ),
]

RECALL = {"1": 0.874, "2": 0.926, "4": 0.953, "8": 0.972}


class EvaluationRequest(BaseModel):
    """What to measure, and how."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "ks": [1, 2, 4, 8],
                    "query_where": {"year": {"gte": 2015}},
                    "per_class": True,
                    "hardest": 10,
                    "confusion": 5,
                }
            ]
        },
    )

    ks: Ks = [1, 2, 4, 8]
    query_where: dict[str, Any] | None = Field(
        default=None,
        description="Only items that this filter matches are queries.",
        examples=[{"make": "BMW"}],
    )
    gallery_where: dict[str, Any] | None = Field(
        default=None,
        description="Queries are looked up only among items that this filter matches. A query that "
        "is one of them is left out of its own results.",
        examples=[{"year": {"gte": 2010}}],
    )
    exact: bool = Field(
        default=True,
        description="Rank by exact search, which judges the model alone; `false` ranks as searches "
        "are answered, which judges the index too.",
    )
    per_class: bool = Field(default=False, description="Also the figures of each label.")
    hardest: int = Field(
        default=0,
        ge=0,
        le=MAX_HARDEST,
        description="Also so many of the queries with the lowest average precision, and what they "
        "found.",
    )
    confusion: int = Field(
        default=0,
        ge=0,
        le=MAX_CONFUSION,
        description="Also so many pairs of labels where queries of the one found the other first, "
        "the most frequent.",
    )
    clustering: bool = Field(
        default=False,
        description="Also the NMI of labels and a k-means clustering; costs much more. Only with "
        "exact search.",
    )
    background: bool = Field(
        default=False, description="Answer at once with a job (202), however small it is."
    )


class ClassFigures(BaseModel):
    """Means over the queries of one label."""

    label: str = Field(examples=["audi-a4-2011"])
    queries: int = Field(description="Queries with an answer in the gallery.", examples=[41])
    recall: dict[str, float] = Field(examples=[RECALL])
    r_precision: float = Field(examples=[0.58])
    map_at_r: float = Field(examples=[0.51])


class JudgedNeighbour(BaseModel):
    """An item that a query found."""

    id: int = Field(examples=[23])
    label: str = Field(examples=["audi-s4-2012"])
    right: bool = Field(description="Whether it has the query's label.", examples=[False])
    score: float = Field(ge=-1, le=1, description="Cosine similarity.", examples=[0.91])
    thumbnail_url: str = Field(examples=["/items/23/thumbnail"])


class HardQuery(BaseModel):
    """A query whose right answers lie far down its results."""

    id: int | None = Field(description="Null for an uploaded photo.", examples=[17])
    file: str | None = Field(
        description="Path of an uploaded photo in the zip, else null.", examples=[None]
    )
    label: str = Field(examples=["audi-a4-2011"])
    average_precision: float = Field(description="At R.", examples=[0.0])
    answers: int = Field(description="R: right answers in the gallery.", examples=[40])
    first_answer: int | None = Field(
        description="Rank of the first right answer; null if it is beyond what was looked at.",
        examples=[13],
    )
    thumbnail_url: str | None = Field(
        description="Null for an uploaded photo.", examples=["/items/17/thumbnail"]
    )
    neighbours: list[JudgedNeighbour] = Field(description="The 8 nearest, nearest first.")


class ConfusedLabels(BaseModel):
    """Queries of one label whose nearest item has another."""

    label: str = Field(description="Of the queries.", examples=["audi-a4-2011"])
    found: str = Field(description="Of what they found.", examples=["audi-s4-2012"])
    count: int = Field(description="How many queries.", examples=[7])
    share: float = Field(description="Of the queries of that label.", examples=[0.17])
    query: int | None = Field(
        description="The query of them that is nearest to what it found; null for an uploaded "
        "photo.",
        examples=[17],
    )
    file: str | None = Field(
        description="Path of that uploaded photo in the zip, else null.", examples=[None]
    )
    nearest: JudgedNeighbour = Field(description="What it found.")


class IndexReference(BaseModel):
    """The index that ranked."""

    kind: str = Field(examples=["hnsw"])
    recall_at_10: float = Field(
        description="Share of the 10 nearest items that it finds, measured now on 200 items: what "
        "its figures lose against exact search.",
        examples=[0.993],
    )


class RefusedPhoto(BaseModel):
    """An uploaded photo that took no part."""

    file: str = Field(description="Its path in the zip.", examples=["audi-a4-2011/7.jpg"])
    code: str = Field(
        description="`label_missing`, or why it cannot be read.", examples=["image_truncated"]
    )
    detail: str = Field(examples=["the file is damaged or cut off: export the photo again."])


class EvaluationResponse(BaseModel):
    """Retrieval metrics: how well queries find the items of their label."""

    model: ModelReference
    protocol: str = Field(
        description="How it was measured; figures of different protocols do not compare.",
        examples=["gallery leave-one-out, exact search"],
    )
    recall: dict[str, float] = Field(
        description="K → share of queries with an item of their label among the K nearest.",
        examples=[RECALL],
    )
    r_precision: float = Field(
        description="Mean share of a query's label among its R nearest, R the items that share it.",
        examples=[0.58],
    )
    map_at_r: float = Field(description="Mean average precision at R.", examples=[0.51])
    nmi: float | None = Field(
        description="Of labels and clusters in 0 … 1; null unless asked for.", examples=[None]
    )
    queries: int = Field(description="Queries with an answer in the gallery.", examples=[8131])
    skipped: int = Field(
        description="Labelled queries left out: no other item has their label.", examples=[0]
    )
    unlabelled: int = Field(
        description="Items without a label, left out of queries and results.", examples=[0]
    )
    gallery: int = Field(
        description="Labelled items that were looked among, queries included.", examples=[8131]
    )
    index: IndexReference | None = Field(
        description="Null for exact search.", json_schema_extra={"examples": [None]}
    )
    per_class: list[ClassFigures] | None = Field(
        description="By label; null unless asked for.", json_schema_extra={"examples": [None]}
    )
    hardest: list[HardQuery] | None = Field(
        description="Hardest first; null unless asked for.",
        json_schema_extra={"examples": [None]},
    )
    confusion: list[ConfusedLabels] | None = Field(
        description="Most frequent first; null unless asked for.",
        json_schema_extra={"examples": [None]},
    )
    refused: list[RefusedPhoto] | None = Field(
        description="Uploaded photos that took no part, up to 1,000 of them; null without upload.",
        json_schema_extra={"examples": [None]},
    )
    refused_total: int = Field(description="How many those are in all.", examples=[0])
    took_ms: TookMs
