"""Every error as problem details (RFC 9457) with a stable ``code`` and the request's id.

The one place that knows which error has which HTTP status. What the messages say is decided where
the errors are raised.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from index.errors import DsclError
from service.schemas import FieldProblem, Problem

__all__ = [
    "NotReadyError",
    "OverloadedError",
    "RefusedBody",
    "UploadMissingError",
    "error_response",
    "install_error_handlers",
    "problem_response",
    "problems",
]

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

#: Error code → HTTP status. A code that is not here is a fault of ours: 500.
STATUS = {
    "archive_invalid": 422,
    "archive_too_large": 413,
    "archive_unsafe": 422,
    "attribute_type": 422,
    "body_timeout": 408,
    "body_too_large": 413,
    "data_invalid": 422,
    "duplicate_external_id": 409,
    "file_missing": 422,
    "filter_invalid": 422,
    "gallery_invalid": 503,
    "gallery_locked": 409,
    "gallery_read_only": 409,
    "gallery_unavailable": 503,
    "map_missing": 404,
    "regions_missing": 409,
    "reload_refused": 422,
    "writer_unavailable": 503,
    "image_animated": 422,
    "image_empty": 422,
    "image_missing": 410,
    "image_too_large": 413,
    "image_too_small": 422,
    "image_truncated": 422,
    "image_unreadable": 415,
    "image_unsupported": 415,
    "index_damaged": 503,
    "invalid_argument": 422,
    "item_not_found": 404,
    "job_not_found": 404,
    "key_missing": 401,
    "key_unknown": 401,
    "model_invalid": 503,
    "model_mismatch": 503,
    "not_ready": 503,
    "origin_refused": 403,
    "outcome_unknown": 502,
    "overloaded": 503,
    "rate_limited": 429,
    "request_timeout": 503,
    "scope_missing": 403,
    "store_unreachable": 503,
    "too_many_files": 413,
    "url_forbidden": 403,
    "url_invalid": 422,
    "url_media_type": 415,
    "url_search_off": 403,
    "url_status": 422,
    "url_timeout": 422,
    "url_too_large": 413,
    "url_unreachable": 422,
}

#: Codes after which the same request may succeed → seconds to wait.
RETRY_AFTER = {"gallery_unavailable": 5, "not_ready": 1, "overloaded": 1, "request_timeout": 1}

#: Codes whose answers say how to identify oneself, in the words of RFC 6750.
AUTHENTICATE = {
    "key_missing": "Bearer",
    "key_unknown": 'Bearer error="invalid_token"',
    "scope_missing": 'Bearer error="insufficient_scope"',
}

#: HTTP status → code, for the errors that the framework raises.
FRAMEWORK_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
}


METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


class NotReadyError(DsclError):
    """The gallery is not open yet."""

    code = "not_ready"


class OverloadedError(DsclError):
    """More requests are waiting than the service takes."""

    code = "overloaded"


class UploadMissingError(DsclError):
    """A form without the photo."""

    code = "file_missing"


class RefusedBody(HTTPException):
    """Carries an error out of the reading of a body.

    While it reads a body, the framework takes any other exception for a body that cannot be parsed.
    """

    def __init__(self, error: DsclError) -> None:
        super().__init__(STATUS[error.code], str(error))
        self.error = error


def problem_response(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[FieldProblem] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as ``application/problem+json``."""
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=_encodable(detail),
        request_id=request.state.request_id,
        errors=errors,
    )
    return JSONResponse(
        problem.model_dump(exclude_none=True),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` argument of a route that answers these statuses with a problem."""
    return {
        status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses
    }


def install_error_handlers(app: FastAPI) -> None:
    """Answer the errors of ``app`` with problems; ``service.middleware`` has the unforeseen."""
    app.add_exception_handler(DsclError, _dscl_error)
    app.add_exception_handler(RefusedBody, _refused_body)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _framework_error)


def error_response(
    request: Request, error: DsclError, *, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as its problem, with the headers that belong to its code."""
    status = STATUS.get(error.code, 500)
    wait = RETRY_AFTER.get(error.code)
    if status >= 500 and wait is None:  # what passes by itself would only flood the log
        logger.error("request %s: %s: %s", request.state.request_id, error.code, error)
    own = {"Retry-After": str(wait)} if wait is not None else {}
    if error.code in AUTHENTICATE:
        own["WWW-Authenticate"] = AUTHENTICATE[error.code]
    return problem_response(
        request, status, error.code, str(error), headers={**own, **(headers or {})}
    )


async def _dscl_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DsclError)
    return error_response(request, error)


async def _refused_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedBody)
    return error_response(request, error.error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The rejected input stays out: it may be huge, private, or NaN, which JSON cannot hold.
    fields = [
        FieldProblem(
            field=_encodable(".".join(map(str, each["loc"]))),
            message=_encodable(_sentence(each["msg"])),
        )
        for each in error.errors()
    ]
    if any(field.field == "body.file" for field in fields):
        missing = UploadMissingError(
            "the form has no photo in its field `file`. Send it as multipart/form-data: "
            f"curl -F file=@photo.jpg {request.url}"
        )
        return await _dscl_error(request, missing)
    detail = "; ".join(f"{field.field}: {field.message}" for field in fields)
    return problem_response(request, 422, "invalid_argument", detail, errors=fields)


async def _framework_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status, detail = error.status_code, error.detail
    if detail == HTTPStatus(status).phrase:  # nothing said yet: name the request and the way out
        detail = f"{request.method} {request.url.path}: {detail}. See {_docs(request)}."
    headers = dict(error.headers or {})
    if status == 405:  # the framework names the methods of one route of several on this path
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return problem_response(
        request, status, FRAMEWORK_CODES.get(status, "http_error"), detail, headers=headers
    )


def _allowed_methods(request: Request) -> list[str]:
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _docs(request: Request) -> str:
    return str(request.app.url_path_for("swagger_ui_html"))


def _encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can bring in and UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")
