"""The floor in benchmarks/service.py: take a photo in over HTTP and answer, and nothing else.

    python benchmarks/service_echo.py

uvloop without a framework, one regular expression in place of an HTTP parser: what is spent here
goes to sockets and to waking up, and no service in Python on this machine can spend less.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import cast

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

#: Bytes of an answer: ten results.
ANSWER = 1500

#: Seconds that a search takes where 8 clients ask: so both sides wake up as often. A server that
#: never rests takes in many requests at a time, for less.
ANSWERED_AFTER_S = 0.05


class Echo(asyncio.Protocol):
    """Reads a request to its end, and answers when a search would."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.received = b""
        self.missing: int | None = None

    def data_received(self, data: bytes) -> None:
        if self.missing is None:
            self.received += data
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = LENGTH.search(self.received, 0, end + 2)
            self.missing = (int(length[1]) if length else 0) - (len(self.received) - end - 4)
        else:
            self.missing -= len(data)
        if self.missing <= 0:
            self.received, self.missing = b"", None
            asyncio.get_running_loop().call_later(ANSWERED_AFTER_S, self.answer)

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(HEAD % ANSWER + b" " * ANSWER)


async def serve() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(Echo, sock=listener)
    await server.start_serving()
    print(f"port {listener.getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
