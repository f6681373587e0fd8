"""Why two photos are similar."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from service.schemas.common import ModelReference, TookMs

__all__ = ["ExplainResponse", "PhotoArea", "PhotoRegions", "RegionPair"]

Row = list[float]


class PhotoArea(BaseModel):
    """The part of a photo that the model sees, as fractions of its width and height.

    Below 0 and above 1 where it reaches beyond the photo.
    """

    left: float = Field(examples=[0.125])
    top: float = Field(examples=[0.0])
    right: float = Field(examples=[0.875])
    bottom: float = Field(examples=[1.0])


class PhotoRegions(BaseModel):
    """What the parts of one photo add to the score, on a grid over `area`."""

    area: PhotoArea
    contributions: list[Row] = Field(
        description="Rows from top to bottom; all values together are the score.",
        examples=[[[0.02, 0.31], [0.11, 0.45]]],
    )
    heat: list[list[Annotated[float, Field(ge=0, le=1)]]] = Field(
        description="The same to be painted: 1 where most is added, 0 where nothing or less is.",
        examples=[[[0.04, 0.69], [0.24, 1.0]]],
    )


class RegionPair(BaseModel):
    """A cell of each grid, as `[row, column]`, and what both add to the score together."""

    query: tuple[int, int] = Field(examples=[[1, 1]])
    result: tuple[int, int] = Field(examples=[[1, 0]])
    contribution: float = Field(examples=[0.2])


class ExplainResponse(BaseModel):
    """A score as a sum over the parts of either photo."""

    model: ModelReference
    score: float = Field(
        description="Cosine similarity in [−1, 1], computed in fp32.", examples=[0.934]
    )
    query: PhotoRegions
    result: PhotoRegions
    pairs: list[RegionPair] = Field(description="Those that add most, the largest first.")
    took_ms: TookMs
