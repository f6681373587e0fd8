"""What wraps every request: its id, the limit on its body, and the last resort for errors.

Plain ASGI, because Starlette's ``BaseHTTPMiddleware`` costs a task a request.
"""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_response

__all__ = ["BodyLimit", "RequestScope"]

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"

#: Ids that a caller may choose: nothing that could forge a line in the log.
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestScope:
    """Gives each request an id, and answers an unforeseen error with it and nothing more.

    The id is the caller's ``X-Request-ID`` or a new one; the response carries it in the same
    header, an error also in its body, the log beside the stack trace.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if ACCEPTED_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            response = problem_response(
                Request(scope),
                500,
                "internal_error",
                "the service failed on this request. Its log says why: look for the request id.",
            )
            await response(scope, receive, send_with_id)


class BodyLimit:
    """Stops reading a request whose body is larger than ``max_bytes``: status 413.

    FastAPI's own ``max_body_size`` answers with plain text that no handler can change.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("Content-Length", "")
        size = 0

        async def receive_within_limit() -> Message:
            nonlocal size
            if declared.isdecimal() and int(declared) > self.max_bytes:
                raise self._too_large()
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, receive_within_limit, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"the request is larger than the limit of {self.max_bytes:,} bytes: scale the photo "
            "down, or raise DSCL_MAX_UPLOAD_BYTES.",
        )
