"""How much of a request is taken in, and how long it may take: limits on bodies and on time.

Slow, endless and abandoned requests end here, so that none holds a place that others wait for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.errors import DsclError
from service.errors import RefusedBody, error_response

__all__ = ["BodyTimeoutError", "BodyTooLargeError", "ExchangeLimits", "Limits", "TooSlowError"]

#: Slower than this on average, an upload that may take long is given up.
SLOWEST_BYTES_PER_S = 50_000

#: Seconds that go on reading what a client still sends when its answer is out already. To hang up
#: on it would destroy the answer on its way.
LINGER_S = 2.0


class BodyTooLargeError(DsclError):
    """A body beyond its limit."""

    code = "body_too_large"


class BodyTimeoutError(DsclError):
    """A body that comes too slowly."""

    code = "body_timeout"


class TooSlowError(DsclError):
    """A request that the service could not answer in time."""

    code = "request_timeout"


@dataclass(frozen=True)
class Limits:
    """What requests may cost."""

    max_bytes: int  #: of a body, if nothing below says otherwise
    max_json_bytes: int  #: of a body of type application/json
    #: Seconds for a body to arrive; a long one may take longer, as long as it moves.
    body_timeout_s: float
    request_timeout_s: float  #: seconds from the end of the body to the start of the answer
    #: Path → bytes: uploads that may be larger and take longer.
    long_uploads: Mapping[str, int] = field(default_factory=dict)
    untimed: frozenset[str] = frozenset()  #: paths whose answer takes as long as it takes

    def of_body(self, path: str, media_type: str) -> int:
        """The most bytes of a body."""
        if path in self.long_uploads:
            return self.long_uploads[path]
        if media_type.partition(";")[0].strip().lower() == "application/json":
            return min(self.max_bytes, self.max_json_bytes)
        return self.max_bytes


class ExchangeLimits:
    """Holds each request to the limits.

    A body beyond its limit, or too slow, raises ``RefusedBody`` where it is read. An answer that
    has not begun in time is 503 ``request_timeout``. A search or evaluation whose client has gone
    is cancelled; a change is not, once it has come in.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self.limits, scope, receive, send)
        try:
            async with asyncio.timeout(None) as exchange.patience:
                exchange.begin()
                await self.app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not exchange.patience.expired():
                raise
            if exchange.abandoned:
                scope["state"]["abandoned"] = True
                return
            error = TooSlowError(
                f"{scope['method']} {scope['path']} was not answered within "
                f"{self.limits.request_timeout_s:g} seconds, and was stopped; what it was writing "
                "may have been done. Try again when there is less to do, or raise "
                "DSCL_REQUEST_TIMEOUT_S."
            )
            await error_response(Request(scope), error)(scope, receive, exchange.send)
        finally:
            exchange.end()


class _Exchange:
    """One request and its answer."""

    def __init__(self, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._limits = limits
        self._path: str = scope["path"]
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._declared = headers.get("Content-Length", "")
        self._max_bytes = limits.of_body(self._path, headers.get("Content-Type", ""))
        self._received = 0
        self._body_over = self._declared in ("", "0") and "Transfer-Encoding" not in headers
        self._first: Message | None = None  # what ends the body of a request that has none
        self._answering = False
        self._stopped_by_client = scope["method"] in ("GET", "HEAD") or self._path.startswith(
            ("/search", "/evaluate")
        )
        self._watch: asyncio.Task[None] | None = None
        self.patience: asyncio.Timeout
        self.abandoned = False

    def begin(self) -> None:
        """Start the clock of a request without a body."""
        if self._body_over:
            self._first = {"type": "http.request", "body": b"", "more_body": False}
            self._when_body_over()

    def end(self) -> None:
        """Stop what runs beside the request."""
        if self._watch is not None:
            self._watch.cancel()

    async def receive(self) -> Message:
        """The next part of the body, or that the client has gone."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._body_over:
            if self._watch is None:
                return await self._receive()
            await asyncio.shield(self._watch)
            return {"type": "http.disconnect"}
        if self._declared.isdecimal() and int(self._declared) > self._max_bytes:
            raise RefusedBody(self._too_large())
        try:
            async with asyncio.timeout_at(self._body_deadline()):
                message = await self._receive()
        except TimeoutError:
            raise RefusedBody(
                BodyTimeoutError(
                    f"of the request's body, {self._received:,} bytes came in "
                    f"{self._loop.time() - self._started:.0f} seconds: send it faster, or raise "
                    "DSCL_BODY_TIMEOUT_S."
                )
            ) from None
        self._received += len(message.get("body", b""))
        if self._received > self._max_bytes:
            raise RefusedBody(self._too_large())
        if not message.get("more_body", False):
            self._body_over = True
            if message["type"] == "http.request":
                self._when_body_over()
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on, and take leave of a client that is still sending."""
        if message["type"] == "http.response.start":
            self._answering = True
            if not self.patience.expired():
                self.patience.reschedule(None)
            if not self._body_over:
                MutableHeaders(scope=message)["Connection"] = "close"
        elif not self._body_over and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _body_deadline(self) -> float:
        allowed = self._limits.body_timeout_s
        if self._path not in self._limits.long_uploads:
            return self._started + allowed
        return min(
            self._loop.time() + allowed,
            self._started + allowed + self._received / SLOWEST_BYTES_PER_S,
        )

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"the request is larger than the limit of {self._max_bytes:,} bytes for "
            f"{self._path}: scale the photo down or send less at a time, or raise the limit "
            "(DSCL_MAX_UPLOAD_BYTES, DSCL_MAX_JSON_BYTES, DSCL_MAX_BULK_BYTES)."
        )

    def _when_body_over(self) -> None:
        if not self._answering and self._path not in self._limits.untimed:
            self.patience.reschedule(self._loop.time() + self._limits.request_timeout_s)
        if self._stopped_by_client:
            self._watch = self._loop.create_task(self._watch_client())

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._answering and not self.patience.expired():
            self.abandoned = True
            self.patience.reschedule(-math.inf)

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass
