"""Heads of requests: slow ones, endless ones, what is no HTTP, and many idle connections."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from index import Item
from tests.service.running import Server, serving

HEADER_TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def server(gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = {"DSCL_HEADER_TIMEOUT_S": str(HEADER_TIMEOUT_S), "DSCL_READ_ONLY": "1"}
    with serving(gallery_folder, tmp_path_factory.mktemp("protocol"), **options) as server:
        yield server


def connected(server: Server) -> socket.socket:
    url = server.client.base_url
    assert url.port is not None
    connection = socket.create_connection((url.host, url.port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def check_refusal(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {
        name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
    }
    problem: dict[str, Any] = json.loads(body)
    assert lines[0].startswith(f"HTTP/1.1 {status} ")
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["content-length"]) == len(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == headers["x-request-id"]


def test_a_head_that_comes_too_slowly_is_refused_however_alive_it_looks(server: Server) -> None:
    with connected(server) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n")
        connection.settimeout(HEADER_TIMEOUT_S / 5)
        answer = b""
        while not answer:
            connection.sendall(b"X-Drip: 1\r\n")
            try:
                answer = connection.recv(65_536)
            except TimeoutError:
                assert time.monotonic() - began < 60
        connection.settimeout(60)
        assert time.monotonic() - began >= 0.9 * HEADER_TIMEOUT_S
        check_refusal(answer + rest(connection), 408, "header_timeout")


def test_a_second_head_has_its_time_too(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he")
        first, _, second = rest(connection).partition(b'{"status":"ok"}')
        assert first.startswith(b"HTTP/1.1 200 ")
        check_refusal(second, 408, "header_timeout")


def test_a_connection_that_says_nothing_is_closed_without_a_word(server: Server) -> None:
    with connected(server) as connection:
        assert rest(connection) == b""


def test_a_slow_body_is_not_held_to_the_time_of_heads(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(
            b"POST /search/vector HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{"
        )
        connection.settimeout(2 * HEADER_TIMEOUT_S)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(60)
        connection.sendall(b"}")
        assert rest(connection).startswith(b"HTTP/1.1 422 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 400_000,
        b"GET /" + b"a" * 400_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(60_000)),
    ],
    ids=["value", "address", "many"],
)
def test_an_endless_head_is_refused(server: Server, head: bytes) -> None:
    with connected(server) as connection:
        try:
            for start in range(0, len(head), 20_000):
                connection.sendall(head[start : start + 20_000])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has hung up in the middle
        answer = rest(connection)
    # Hanging up on what is still being sent may destroy the answer on its way.
    if answer:
        check_refusal(answer, 431, "head_too_large")
    assert server.client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nbroken header\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["tls", "header", "address", "lengths", "negative"],
)
def test_what_is_no_http_is_answered_by_a_problem(server: Server, said: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(said)
        check_refusal(rest(connection), 400, "bad_request")


def test_a_thousand_idle_connections_leave_working_ones_alone(
    server: Server, items: list[Item]
) -> None:
    photo = {"file": items[0].image.read_bytes()}
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connected(server))
        for _ in range(10):
            found = server.client.post("/search", files=photo)
            assert found.json()["results"][0]["id"] == items[0].id
