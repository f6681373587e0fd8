"""The model and the health of the service."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from index import ModelCard

__all__ = ["Health", "ModelResponse", "ReloadRequest", "ReloadResponse"]


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
    regions: bool = Field(description="Whether `POST /explain` can show similar regions.")
    items: int = Field(description="Items in the gallery.", examples=[8131])
    mapped: bool = Field(description="Whether the gallery's map has been drawn.")

    @classmethod
    def of(cls, card: ModelCard, *, items: int, mapped: bool) -> Self:
        """The card of a gallery with ``items`` items."""
        told = dataclasses.asdict(card) | {"regions": card.regions is not None}
        return cls(**told, items=items, mapped=mapped)


class Health(BaseModel):
    """The service is well."""

    status: str = Field(default="ok", examples=["ok"])


class ReloadRequest(BaseModel):
    """Which gallery to serve from now on."""

    model_config = ConfigDict(extra="forbid")

    gallery: str | None = Field(
        default=None,
        description="A gallery's folder on the service's machine, or its address on Milvus. "
        "Without it, the gallery that is now in the place of the one that is served.",
        examples=["galleries/cars-2"],
    )


class ReloadResponse(BaseModel):
    """What is served now. With several processes, the others follow within a second."""

    changed: bool = Field(description="False if that gallery was served already.")
    items: int = Field(examples=[8131])
    model_name: str = Field(examples=["cars-resnet50"])
    model_sha256: str
    previous_model_sha256: str = Field(description="Of the model that embedded before.")
    seconds: float = Field(description="That opening it took.", examples=[0.41])
