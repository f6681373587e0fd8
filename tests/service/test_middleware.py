from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.keys import new_key
from tests.service.guarded import Guarded, guarded
from tests.service.problem import check_problem
from tests.service.running import eventually

KEY, KEPT = new_key("shop-frontend", "read")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(tmp_path_factory.mktemp("plain"), DSCL_ACCESS_LOG="1") as server:
        yield server


@pytest.fixture(scope="module")
def structured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(
        tmp_path_factory.mktemp("structured"),
        DSCL_ACCESS_LOG="1",
        DSCL_LOG_FORMAT="json",
        DSCL_KEYS=KEPT.line(),
    ) as server:
        server.client.headers["X-API-Key"] = KEY
        yield server


def json_lines(server: Guarded, request_id: str) -> list[dict[str, Any]]:
    """What the log has of a request."""
    lines = [line for line in server.output.read_text().splitlines() if line.startswith("{")]
    return [each for each in map(json.loads, lines) if each.get("request_id") == request_id]


@pytest.mark.parametrize("path", ["/items/1", "/nowhere", "/health/live", "/items/x", "/boom"])
def test_every_answer_has_the_security_headers(plain: Guarded, path: str) -> None:
    headers = plain.client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert len(headers.get_list("Cache-Control")) == 1


def test_no_origin_may_read_answers_unless_allowed(plain: Guarded) -> None:
    answer = plain.client.get("/items/1", headers={"Origin": "https://shop.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_page_of_the_interface_may_load_what_it_needs(plain: Guarded) -> None:
    page = plain.client.get("/docs")
    allowed = page.headers["Content-Security-Policy"]
    for source in re.findall(r'(?:src|href)="(https://[^/"]+)', page.text):
        assert source in allowed, source


def test_an_unforeseen_error_is_in_the_log_and_not_in_the_answer(structured: Guarded) -> None:
    response = structured.client.get("/boom")
    problem = check_problem(response, 500, "internal_error")
    assert "secret" not in response.text and "Traceback" not in response.text

    def both() -> list[dict[str, Any]] | None:
        lines = json_lines(structured, problem["request_id"])
        return lines if len(lines) == 2 else None

    failure, access = eventually(both)
    assert failure["level"] == "ERROR"
    assert "RuntimeError: a secret of the inside" in failure["exception"]
    assert access["status"] == 500


def test_a_request_is_a_line_of_json(structured: Guarded) -> None:
    structured.client.get("/items/17?k=secret", headers={"X-Request-ID": "trace-17"})
    [line] = eventually(lambda: json_lines(structured, "trace-17") or None)
    assert line.pop("ms") > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert re.fullmatch(r"shop-frontend GET /items/17 200 [0-9.]+ ms", line.pop("message"))
    assert line == {
        "level": "INFO",
        "logger": "service.access_log",
        "request_id": "trace-17",
        "client": "shop-frontend",
        "method": "GET",
        "path": "/items/17",
        "route": "/items/{number}",
        "status": 200,
    }


def test_a_request_is_a_line_of_text(plain: Guarded) -> None:
    plain.client.get("/items/18", headers={"X-Request-ID": "trace-18"})
    line = r"^\S+ INFO service\.access_log \[trace-18\] 127\.0\.0\.1 GET /items/18 200 [0-9.]+ ms$"
    eventually(lambda: re.search(line, plain.output.read_text(), re.MULTILINE))


def test_a_path_cannot_begin_a_line_of_the_log(plain: Guarded) -> None:
    forged = "2030-01-01 ERROR forged"
    response = plain.client.get(f"/boom%0A{forged.replace(' ', '%20')}")
    check_problem(response, 404, "not_found")
    request_id = response.headers["X-Request-ID"]
    text = eventually(lambda: text if request_id in (text := plain.output.read_text()) else None)
    assert not [line for line in text.splitlines() if line.startswith(forged)]


def test_requests_are_not_logged_unless_asked_for(tmp_path: Path) -> None:
    with guarded(tmp_path) as server:
        server.client.get("/items/1")
        server.client.get("/boom")
        eventually(lambda: "a secret" in server.output.read_text() or None)
        assert "/items/1" not in server.output.read_text()


def test_a_wrong_method_is_told_all_that_its_path_has(plain: Guarded) -> None:
    response = plain.client.delete("/things")
    check_problem(response, 405, "method_not_allowed")
    assert {each.strip() for each in response.headers["Allow"].split(",")} == {"GET", "PUT"}


def test_half_a_surrogate_pair_in_a_request_can_be_complained_of(plain: Guarded) -> None:
    response = plain.client.put("/things", content=b'"\\ud800"')
    problem = check_problem(response, 422, "invalid_argument")
    assert problem["detail"] == "\\ud800 is no thing"
