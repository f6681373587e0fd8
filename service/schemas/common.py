"""What answers of several kinds share: problems, the model a score belongs to, durations."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

__all__ = ["FieldProblem", "ModelReference", "Problem", "TookMs"]

TookMs = Annotated[
    float, Field(description="Milliseconds that the service worked on it.", examples=[18.4])
]


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
