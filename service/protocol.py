"""HTTP on a connection, as uvicorn speaks it, with bounds on the head of a request.

uvicorn itself waits for ever for the rest of a head, and keeps all that has come of it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedProtocol", "bounded_protocol"]

#: Bytes of a request's line and headers: twice what most servers and proxies let pass.
MAX_HEAD_BYTES = 65_536


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections whose next head is late or too long; errors are problem details."""

    #: Seconds from the first byte of a head, or from the connection's start, to its end.
    header_timeout_s: float = 10.0

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, unless the head has become too long."""
        super().data_received(data)
        if self._deadline is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                431,
                "head_too_large",
                f"the request's line and headers are longer than {MAX_HEAD_BYTES:,} bytes: send "
                "long values in the body.",
            )

    def on_message_begin(self) -> None:
        """A head begins: on a connection that is kept, a new one."""
        super().on_message_begin()
        if self._deadline is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head has come."""
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every other error, with a problem."""
        self._refuse(400, "bad_request", f"{msg} Send HTTP/1.1.")

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._deadline = self.loop.call_later(self.header_timeout_s, self._late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._head_bytes == 0:  # nothing was asked, so there is nothing to answer
            self.transport.close()
            return
        self._refuse(
            408,
            "header_timeout",
            f"the request's headers did not come within {self.header_timeout_s:g} seconds: send "
            "them at once.",
        )

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._stop_waiting()
        request_id = secrets.token_hex(16)
        phrase = HTTPStatus(status).phrase
        problem: dict[str, Any] = {
            "type": "about:blank",
            "title": phrase,
            "status": status,
            "code": code,
            "detail": detail,
            "request_id": request_id,
        }
        body = json.dumps(problem).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\n"
            "content-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\n"
            "cache-control: no-store\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def bounded_protocol(header_timeout_s: float) -> type[BoundedProtocol]:
    """The protocol with this time limit: uvicorn takes a class, not an object."""
    return type("Protocol", (BoundedProtocol,), {"header_timeout_s": header_timeout_s})
