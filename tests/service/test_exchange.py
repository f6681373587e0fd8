from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.service.guarded import Guarded, guarded
from tests.service.problem import check_problem
from tests.service.running import eventually

BODY_TIMEOUT_S, REQUEST_TIMEOUT_S = 2.0, 1.0


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(
        tmp_path_factory.mktemp("limited"),
        DSCL_MAX_UPLOAD_BYTES="3000000",
        DSCL_MAX_JSON_BYTES="20000",
        DSCL_MAX_BULK_BYTES="9000000",
    ) as server:
        yield server


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(
        tmp_path_factory.mktemp("hurried"),
        DSCL_BODY_TIMEOUT_S=str(BODY_TIMEOUT_S),
        DSCL_REQUEST_TIMEOUT_S=str(REQUEST_TIMEOUT_S),
    ) as server:
        yield server


@contextmanager
def connection(server: Guarded) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as opened:
        yield opened


def head(path: str, length: int, media_type: str = "multipart/form-data; boundary=x") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'


def answer_on(opened: socket.socket) -> HTTPResponse:
    """The next answer, its body still to be read."""
    answer = HTTPResponse(opened)
    answer.begin()
    return answer


def all_of(opened: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    answer = b""
    while part := opened.recv(65536):
        answer += part
    return answer


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/search", 3_000_000), ("/items", 3_000_000), ("/items/bulk", 9_000_000)],
)
def test_each_kind_of_upload_has_its_limit(limited: Guarded, path: str, limit: int) -> None:
    room = limit - 1000  # for what a form adds
    inside = limited.client.post(path, files={"file": bytes(room)})
    assert inside.json() == {"size": room}
    problem = check_problem(
        limited.client.post(path, files={"file": bytes(limit)}), 413, "body_too_large"
    )
    assert f"{limit:,} bytes" in problem["detail"] and path in problem["detail"]


def test_a_body_of_json_has_a_smaller_limit(limited: Guarded) -> None:
    assert limited.client.post("/search/vector", json=[0.5] * 3000).json() == {"size": 3000}
    problem = check_problem(
        limited.client.post("/search/vector", json=[0.5] * 5000), 413, "body_too_large"
    )
    assert "20,000 bytes" in problem["detail"]


def test_a_body_of_unannounced_length_ends_at_the_limit(limited: Guarded) -> None:
    def body() -> Iterator[bytes]:
        yield PART
        for _ in range(60):
            yield bytes(100_000)

    response = limited.client.post(
        "/search",
        content=body(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    check_problem(response, 413, "body_too_large")


def test_an_announced_body_is_refused_before_it_comes(limited: Guarded) -> None:
    with connection(limited) as opened:
        opened.sendall(head("/search", 10**12))
        answer = all_of(opened)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"body_too_large" in answer


def test_who_sends_on_after_a_refusal_gets_the_answer_all_the_same(limited: Guarded) -> None:
    """Hanging up at once would reset the connection, and take the answer with it."""
    with connection(limited) as opened:
        opened.sendall(head("/search", 8_000_000) + PART)
        for _ in range(79):
            opened.sendall(bytes(100_000))
        answer = all_of(opened)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_body_that_stops_coming_is_given_up(hurried: Guarded) -> None:
    with connection(hurried) as opened:
        began = time.monotonic()
        opened.sendall(head("/search", 1000) + PART)
        answer = all_of(opened)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"body_timeout" in answer
    assert BODY_TIMEOUT_S - 0.1 < time.monotonic() - began < 30


@pytest.mark.parametrize("path", ["/search", "/items/bulk"])
def test_a_body_that_drips_is_given_up(hurried: Guarded, path: str) -> None:
    """Bytes come all the time, and still it ends: of a large upload too."""
    with connection(hurried) as opened:
        opened.sendall(head(path, 1_000_000) + PART)
        answered = threading.Event()

        def drip() -> None:
            while not answered.wait(0.2):
                try:
                    opened.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer = answer_on(opened)
            assert (answer.status, json.load(answer)["code"]) == (408, "body_timeout")
        finally:
            answered.set()
            dripping.join()


def test_a_large_upload_that_moves_may_take_longer(hurried: Guarded) -> None:
    size = 2_500_000
    body = PART + bytes(size) + b"\r\n--x--\r\n"
    with connection(hurried) as opened:
        began = time.monotonic()
        opened.sendall(head("/items/bulk", len(body)))
        pieces = [body[at : at + 250_000] for at in range(0, len(body), 250_000)]
        for piece in pieces:
            opened.sendall(piece)
            time.sleep(0.3)  # a slow line
        answer = answer_on(opened)
        assert (answer.status, json.load(answer)) == (200, {"size": size})
    assert time.monotonic() - began > BODY_TIMEOUT_S


@pytest.mark.parametrize(("method", "path"), [("GET", "/search/wait"), ("POST", "/items/wait")])
def test_a_request_that_takes_too_long_is_stopped(hurried: Guarded, method: str, path: str) -> None:
    before = hurried.calls()
    response = hurried.client.request(method, path)
    problem = check_problem(response, 503, "request_timeout")
    assert path in problem["detail"] and "1 seconds" in problem["detail"]
    assert response.headers["Retry-After"] == "1"
    after = hurried.calls()
    assert after["cancelled"] == before["cancelled"] + 1 and after["waiting"] == 0


def test_an_answer_that_has_begun_may_take_as_long_as_it_likes(hurried: Guarded) -> None:
    response = hurried.client.get("/jobs/events")
    assert response.text == "tick\n" * 5
    assert response.elapsed.total_seconds() > REQUEST_TIMEOUT_S


def ask(path: str, method: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_search_ends_when_its_client_goes_away(tmp_path: Path) -> None:
    with guarded(tmp_path, DSCL_ACCESS_LOG="1") as server:
        with connection(server) as opened:
            opened.sendall(ask("/search/wait", "GET"))
            eventually(lambda: server.calls()["waiting"] == 1 or None)
        eventually(lambda: server.calls()["waiting"] == 0 or None, deadline_s=10)
        assert server.calls()["cancelled"] == 1
        assert "/search/wait 499" in eventually(
            lambda: server.output.read_text() if "499" in server.output.read_text() else None
        )


def test_a_change_goes_on_when_its_client_goes_away(tmp_path: Path) -> None:
    with guarded(tmp_path) as server:
        with connection(server) as opened:
            opened.sendall(ask("/items/wait", "POST"))
            eventually(lambda: server.calls()["waiting"] == 1 or None)
        with connection(server) as opened:  # one that is stopped, to know when to look
            opened.sendall(ask("/search/wait", "GET"))
            eventually(lambda: server.calls()["waiting"] == 2 or None)
        eventually(lambda: server.calls()["cancelled"] == 1 or None, deadline_s=10)
        assert server.calls()["waiting"] == 1


def test_a_connection_goes_on_after_an_answer(limited: Guarded) -> None:
    with connection(limited) as opened:
        for _ in range(3):
            body = b"[1, 2]"
            opened.sendall(head("/search/vector", len(body), "application/json") + body)
            answer = answer_on(opened)
            assert (answer.status, json.load(answer)) == (200, {"size": 2})
            assert not answer.will_close
