"""The load of benchmarks/service.py, in a process of its own: photos over HTTP, in closed loop.

    python benchmarks/service_load.py --port 8000 --photos photos/ --clients 8 --seconds 10

Each client is a connection that sends its next photo when it has the last answer. The requests are
made beforehand and answers are looked at no further than status and length, so that next to nothing
of the machine goes to the one that measures. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
BOUNDARY = "benchmark-of-the-service"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="folder of encoded photos")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--path", default="/search?k=10")
    arguments = parser.parse_args()
    requests = [
        multipart(arguments.path, photo.read_bytes())
        for photo in sorted(arguments.photos.glob("*.jpg"))
    ]
    began = time.process_time()
    run = Run(arguments.port, requests, arguments.seconds)
    uvloop.run(run.go(arguments.clients))
    print(
        json.dumps(
            {
                "seconds": run.ended - run.began,
                "statuses": run.statuses,
                "broken": run.broken,
                "cpu_s": time.process_time() - began,
                "latencies_ms": [round(1000 * latency, 3) for latency in run.latencies],
            }
        )
    )


def multipart(path: str, photo: bytes) -> bytes:
    """A whole request as bytes."""
    body = (
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    body += photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Run:
    """All clients of a run and what they counted."""

    def __init__(self, port: int, requests: list[bytes], seconds: float) -> None:
        self.port = port
        self.requests = requests
        self.seconds = seconds
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.broken = 0

    async def go(self, clients: int) -> None:
        self.began = time.perf_counter()
        self.deadline = self.began + self.seconds
        step = max(1, len(self.requests) // clients)
        await asyncio.gather(
            *(
                self.client(itertools.islice(itertools.cycle(self.requests), n * step, None))
                for n in range(clients)
            )
        )
        self.ended = time.perf_counter()

    async def client(self, requests: Iterator[bytes]) -> None:
        """One connection after another, until the time is up."""
        while time.perf_counter() < self.deadline:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self, requests), "127.0.0.1", self.port
                )
                await connection.done
            except OSError:
                self.broken += 1
                await asyncio.sleep(0.1)  # nobody listens; do not spin


class Connection(asyncio.Protocol):
    """Sends a request, waits for the answer, sends the next."""

    def __init__(self, run: Run, requests: Iterator[bytes]) -> None:
        self.run = run
        self.requests = requests
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answer = b""
        self.missing: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.send()

    def send(self) -> None:
        self.answer, self.missing = b"", None
        self.sent = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        if self.missing is None:
            self.answer += data
            end = self.answer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = LENGTH.search(self.answer, 0, end + 2)
            if length is None:  # not an answer that this service gives
                self.transport.abort()
                return
            self.missing = int(length[1]) - (len(self.answer) - end - 4)
        else:
            self.missing -= len(data)
        if self.missing > 0:
            return
        now = time.perf_counter()
        self.run.latencies.append(now - self.sent)
        self.run.statuses[self.answer[9:12].decode()] += 1
        if now < self.run.deadline:
            self.send()
        else:
            self.missing = None
            self.answer = b""
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():  # in the middle of a request
            self.run.broken += 1
            self.done.set_result(None)


if __name__ == "__main__":
    main()
