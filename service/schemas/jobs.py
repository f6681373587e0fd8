"""Jobs and their progress."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Job", "JobList", "JobProblem", "JobProgress", "JobState"]

JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]


class JobProgress(BaseModel):
    """How far a job is."""

    model_config = ConfigDict(frozen=True)

    done: int = Field(default=0, description="Parts of the work that are done.", examples=[640])
    total: int = Field(default=0, description="Parts in all; 0 if not known.", examples=[8131])
    stage: str = Field(default="", description="What is being done.", examples=["adding photos"])


class JobProblem(BaseModel):
    """Why a job did not come to its end."""

    model_config = ConfigDict(frozen=True)

    code: str = Field(description="Stable, as in problem details.", examples=["attribute_type"])
    detail: str = Field(
        description="What went wrong with what, and the way out; for people.",
        examples=["bmw/7.jpg, attribute 'year': 'old' is a string, …"],
    )


class Job(BaseModel):
    """Long work that the service does beside answering requests."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(examples=["0b6d4b7c5e0a4d1fa1f0c3c1f6f5a9d2"])
    kind: str = Field(description="What it does.", examples=["add_items"])
    state: JobState = Field(
        description="`interrupted`: the service stopped before the job was through; send the same "
        "request again, and it goes on with what is not done yet.",
        examples=["done"],
    )
    progress: JobProgress = JobProgress()
    result: dict[str, Any] | None = Field(
        default=None, description="What came out, once it is `done`.", examples=[{"added": 8131}]
    )
    problem: JobProblem | None = Field(
        default=None, description="What went wrong, if it `failed` or was `interrupted`."
    )
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in ("queued", "running")


class JobList(BaseModel):
    """The jobs that are kept, the newest first."""

    jobs: list[Job]
