"""What wraps every request: its id, its place in log and figures, headers, and the last resort.

``install_middleware`` puts all of it around an application, in the one order that is right. Plain
ASGI throughout, because Starlette's ``BaseHTTPMiddleware`` costs a task a request.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import Access
from service.errors import problem_response
from service.exchange import ExchangeLimits, Limits
from service.keys import KeyRing
from service.logs import AccessLine, access_logger, current_request, log_access
from service.metrics import in_flight, observe_request
from service.rate_limit import RateLimiter
from service.settings import Settings, is_loopback

__all__ = ["RequestScope", "install_middleware"]

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"

#: Ids that a caller may choose: nothing that could forge a line in the log.
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: Begins the ids that this process gives, and numbers them. They are unique, not secret.
PROCESS_ID = secrets.token_hex(10)
COUNTER = itertools.count()

#: On every answer that does not say otherwise itself.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}

#: What scripts of other origins may read of an answer, where they may read it at all.
EXPOSED_HEADERS = (
    REQUEST_ID,
    "ETag",
    "Location",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
)

#: The interface's page is the framework's: it runs a script of its own and loads the rest.
DOCS_CSP = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src "
    "'unsafe-inline' https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com; "
    "connect-src 'self'; frame-ancestors 'none'"
)

#: In the log and in figures: no answer, because the client went away. nginx calls it so, too.
CLIENT_GONE = 499

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: Uploads of many photos at once; the photos of one batch search may fill this many bodies.
BULK_PATHS = ("/items/bulk", "/evaluate/upload")


def install_middleware(app: FastAPI, settings: Settings) -> None:
    """Put access control, limits, headers, log and figures around ``app``.

    Raises:
        KeysInvalidError: the keys in the settings, or their file, cannot be used.
    """
    given = settings.keys.get_secret_value() if settings.keys else None
    shared = settings.state_folder / "rate_limit" if settings.state_folder else None
    limiter = RateLimiter(settings.rate_limit, shared) if settings.rate_limit else None
    limits = Limits(
        max_bytes=settings.max_upload_bytes,
        max_json_bytes=settings.max_json_bytes,
        body_timeout_s=settings.body_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        long_uploads={
            "/search/batch": settings.max_files * settings.max_upload_bytes,
            **dict.fromkeys(BULK_PATHS, settings.max_bulk_bytes),
        },
        untimed=frozenset({"/admin/reload"}),
    )
    # What is added last is outermost.
    app.add_middleware(
        Access,
        keys=KeyRing(given, settings.keys_file),
        limiter=limiter,
        local_only=is_loopback(settings.host) and not settings.insecure,
        origins=settings.cors_origins,
    )
    app.add_middleware(ExchangeLimits, limits=limits)
    if settings.cors_origins:
        # Outside access control: a browser's preflight request has no key, and needs none.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", REQUEST_ID],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestScope, shared_with_origins=bool(settings.cors_origins))


class RequestScope:
    """Gives each request an id, and answers an unforeseen error with it and nothing more.

    The id is the caller's ``X-Request-ID`` or a new one; the response carries it in the same
    header, an error also in its body, the log beside the stack trace.
    """

    def __init__(self, app: ASGIApp, *, shared_with_origins: bool) -> None:
        """Wrap ``app``; ``shared_with_origins``: pages from elsewhere may use its answers."""
        self.app = app
        headers = dict(SECURITY_HEADERS)
        if shared_with_origins:
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        self._headers = _raw(headers)
        self._docs_headers = _raw({**headers, "Content-Security-Policy": DOCS_CSP})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if ACCEPTED_ID.fullmatch(given) else f"{PROCESS_ID}{next(COUNTER):012x}"
        scope.setdefault("state", {})["request_id"] = request_id
        added = self._docs_headers if scope["path"] == "/docs" else self._headers
        own_id = (REQUEST_ID.lower().encode(), request_id.encode())
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(each for each in added if each[0] not in present),
                    own_id,
                ]
            await send(message)

        token = current_request.set(request_id)
        in_flight().inc()
        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s: %s %s", request_id, scope["method"], scope["path"])
            if status:
                raise
            response = problem_response(
                Request(scope),
                500,
                "internal_error",
                "the service failed on this request. Its log says why: look for the request id.",
            )
            await response(scope, receive, send_with_headers)
        finally:
            in_flight().dec()
            _record(scope, status, time.perf_counter() - began)
            current_request.reset(token)


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _record(scope: Scope, status: int, seconds: float) -> None:
    """Put a request that is over into figures and log."""
    if not status or scope["state"].get("abandoned"):
        status = CLIENT_GONE
    method = scope["method"] if scope["method"] in METHODS else "other"
    # A template: paths are without number, and each would be a series of its own.
    route = getattr(scope.get("route"), "path", None) or "unmatched"
    observe_request(route, method, status, seconds)
    if access_logger.isEnabledFor(logging.INFO):
        path = scope.get("raw_path") or scope["path"].encode()
        log_access(
            AccessLine(
                client=scope["state"].get("client", "unknown"),
                method=method,
                path=path.decode("ascii", "backslashreplace"),
                route=route,
                status=status,
                ms=round(seconds * 1000, 2),
            )
        )
