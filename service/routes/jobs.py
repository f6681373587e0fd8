"""``/jobs``: long work, its progress and its results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi import Path as PathParameter
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.dependencies import EngineDep
from service.errors import problems
from service.schemas import Job, JobList
from service.security import require

__all__ = ["router"]

router = APIRouter(prefix="/jobs", tags=["jobs"])

READ = [Depends(require("read"))]
WRITE = [Depends(require("write"))]


async def known_job(
    engine: EngineDep, job_id: Annotated[str, PathParameter(description="The job's id.")]
) -> Job:
    """The job of a path. Raises JobNotFoundError."""
    return await engine.read(lambda _: engine.jobs.get(job_id))


JobDep = Annotated[Job, Depends(known_job)]


@router.get("", operation_id="list_jobs", dependencies=READ, responses=problems(503))
async def list_jobs(engine: EngineDep) -> JobList:
    """Jobs that run or wait, and the last 100 that have ended; the newest first.

    Of a gallery on Milvus they are those of all replicas of the service.
    """
    return JobList(jobs=await engine.read(lambda _: engine.jobs.list()))


@router.get("/{job_id}", operation_id="get_job", dependencies=READ, responses=problems(404, 503))
async def get_job(job: JobDep) -> Job:
    """A job as it is now, with its result once it is `done`."""
    return job


@router.get(
    "/{job_id}/events",
    operation_id="job_events",
    dependencies=READ,
    response_class=EventSourceResponse,
    responses=problems(404, 503),
)
async def job_events(engine: EngineDep, job: JobDep) -> AsyncIterator[ServerSentEvent]:
    """A job's progress as server-sent events: `progress` after each change, `done` at the end.

    The data of each is the job, as `GET /jobs/{job_id}` gives it; `done` comes whatever the end
    was: look at its `state`. `curl -N …/jobs/{job_id}/events`
    """
    async for now in engine.jobs.watch(job.id):
        yield ServerSentEvent(event="done" if now.ended else "progress", data=now)


@router.delete(
    "/{job_id}", operation_id="cancel_job", dependencies=WRITE, responses=problems(404, 503)
)
async def cancel_job(engine: EngineDep, job: JobDep) -> Job:
    """Stop a job. What it has done stays; one that has ended already stays as it is.

    A running job stops at its next step, and one that another replica runs some seconds later, so
    it may still be `running` in the answer.
    """
    return await engine.read(lambda _: engine.jobs.cancel(job.id))
