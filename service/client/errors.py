"""What can go wrong between client and service."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from index.errors import DsclError
from service.schemas import Job, Problem

__all__ = ["JobError", "ServiceError", "UnreachableError", "problem_code"]


class ServiceError(DsclError):
    """The service refused the call; ``code`` and the message are the service's own."""

    def __init__(self, message: str, *, code: str, status: int, request_id: str | None) -> None:
        super().__init__(message)
        self.code = code
        #: The HTTP status.
        self.status = status
        #: The service's log has it, too; None from a proxy that knows of none.
        self.request_id = request_id

    @classmethod
    def of(cls, response: httpx.Response) -> ServiceError:
        """The error that a response tells; also one that a proxy in front made."""
        problem = _problem(response)
        if problem is not None:
            return cls(
                problem.detail,
                code=problem.code,
                status=response.status_code,
                request_id=problem.request_id,
            )
        return cls(
            f"{response.request.method} {response.url} answered {response.status_code} "
            f"{response.reason_phrase}, not in the words of this service. Is the address that of "
            "`dscl serve`, and is it up behind its proxy?",
            code="http_error",
            status=response.status_code,
            request_id=response.headers.get("X-Request-ID"),
        )


class UnreachableError(DsclError):
    """No answer came: nobody listens there, the connection broke, or the time was up."""

    code = "service_unreachable"


class JobError(DsclError):
    """A job that did not come to its end; ``job`` tells how far it was."""

    def __init__(self, job: Job) -> None:
        if job.problem is not None:
            super().__init__(f"job {job.id} ({job.kind}) {job.state}: {job.problem.detail}")
            self.code = job.problem.code
        else:
            super().__init__(f"job {job.id} ({job.kind}) was {job.state}.")
            self.code = f"job_{job.state}"
        self.job = job


def problem_code(response: httpx.Response) -> str | None:
    """The ``code`` of a refusal; None if it is not in the words of this service."""
    problem = _problem(response)
    return None if problem is None else problem.code


def _problem(response: httpx.Response) -> Problem | None:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None
