"""``Forward``: what a process that searches leaves to the one that writes.

Stands outside everything else, so that a forwarded request is checked, counted and logged once, by
the process that answers it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Forward", "is_forwarded"]

#: Long work and its results are the writer's: one process knows all jobs, and the map that they
#: drew where it is not to be kept.
FORWARDED = ("/jobs", "/evaluate", "/map", "/admin")

READING = frozenset({"GET", "HEAD", "OPTIONS"})

#: Headers about this connection alone (RFC 9110, 7.6.1), and those that are set anew.
HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
        b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
FORWARDED_FOR = b"x-forwarded-for"

#: Seconds to reach the writer, which is on this machine.
CONNECT_S = 5.0

logger = logging.getLogger(__name__)


def is_forwarded(method: str, path: str) -> bool:
    """Whether a request is the writer's to answer."""
    if path.startswith("/items"):
        return method not in READING
    return path.startswith(FORWARDED)


class DisconnectedError(Exception):
    """The client went away before its request was whole."""


class Forward:
    """Passes some requests on to the writer's socket, and the rest to ``app``."""

    def __init__(self, app: ASGIApp, socket: Path) -> None:
        """Stand around ``app``; ``socket`` is the writer's."""
        self._app = app
        # Times are the writer's to limit: it answers late requests itself.
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket), limits=httpx.Limits(max_connections=None)
            ),
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            trust_env=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                await self._client.aclose()
        elif scope["type"] == "http" and is_forwarded(scope["method"], scope["path"]):
            await self._forward(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            while not whole.is_set():
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                if message.get("body"):
                    yield message["body"]
                if not message.get("more_body", False):
                    whole.set()

        async def gone() -> None:
            await whole.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        relaying = asyncio.create_task(self._relay(scope, body(), whole, send))
        watching = asyncio.create_task(gone())
        try:
            await asyncio.wait({relaying, watching}, return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                relaying.result()
        finally:
            for task in (relaying, watching):
                task.cancel()
            await asyncio.gather(relaying, watching, return_exceptions=True)

    async def _relay(
        self, scope: Scope, body: AsyncIterator[bytes], whole: asyncio.Event, send: Send
    ) -> None:
        query = f"?{scope['query_string'].decode('ascii')}" if scope["query_string"] else ""
        request = self._client.build_request(
            scope["method"],
            f"http://writer{scope['raw_path'].decode('ascii')}{query}",
            headers=_headers(scope),
            content=body,
        )
        started = False
        try:
            response = await self._client.send(request, stream=True)
            try:
                # A refusal can come before the body is whole; from then on only the end matters.
                whole.set()
                headers = [
                    each for each in response.headers.raw if each[0].lower() not in HOP_BY_HOP
                ]
                await send(
                    {
                        "type": "http.response.start",
                        "status": response.status_code,
                        "headers": headers,
                    }
                )
                started = True
                async for piece in response.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await response.aclose()
        except DisconnectedError:
            return
        except httpx.TransportError as error:
            logger.warning("%s %s: the writer: %r", scope["method"], scope["path"], error)
            if started:
                raise
            await _unavailable(send)


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if name not in HOP_BY_HOP and name != FORWARDED_FOR
    ]
    if scope["client"] is not None:
        kept.append((FORWARDED_FOR, scope["client"][0].encode("ascii")))
    return kept


async def _unavailable(send: Send) -> None:
    request_id = secrets.token_hex(16)
    body = json.dumps(
        {
            "type": "about:blank",
            "title": "Service Unavailable",
            "status": 503,
            "code": "writer_unavailable",
            "detail": "the process that changes the gallery is being started again: try again in a "
            "second. Whether this request was carried out is not known; searches go on.",
            "request_id": request_id,
        }
    ).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"retry-after", b"1"),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
