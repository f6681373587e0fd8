from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from service.keys import AccessKey, new_key
from tests.service.guarded import Guarded, guarded
from tests.service.problem import check_problem
from tests.service.running import eventually

KEYS: dict[str, tuple[str, AccessKey]] = {
    scope: new_key(f"{scope}er", scope) for scope in ("read", "write", "admin")
}
ORIGIN = "https://shop.example"


def bearer(scope: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[scope][0]}"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """With a key of each scope."""
    keys = ";".join(kept.line() for _, kept in KEYS.values())
    folder = tmp_path_factory.mktemp("locked")
    origins = f'["{ORIGIN}"]'
    with guarded(folder, DSCL_KEYS=keys, DSCL_CORS_ORIGINS=origins) as server:
        yield server


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    origins = f'["{ORIGIN}"]'
    with guarded(tmp_path_factory.mktemp("keyless"), DSCL_CORS_ORIGINS=origins) as server:
        yield server


def file_of(size: int) -> dict[str, bytes]:
    return {"file": bytes(size)}


def test_what_everybody_may_ask_needs_no_key(locked: Guarded) -> None:
    assert locked.client.get("/health/live").status_code == 200
    assert locked.client.get("/openapi.json").status_code == 200
    assert locked.client.get("/docs").status_code == 200


@pytest.mark.parametrize("path", ["/items/1", "/metrics", "/nowhere", "/docs/", "/web"])
def test_all_else_needs_a_key(locked: Guarded, path: str) -> None:
    response = locked.client.get(path, headers={"Authorization": "Basic c2hvcDpwYXNz"})
    check_problem(response, 401, "key_missing")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "key",
    ["dscl_wrong", KEYS["admin"][0][:-1], KEYS["admin"][0] + "A", "é"],
    ids=["another", "shorter", "longer", "not ASCII"],  # keys differ each time
)
def test_an_unknown_key_is_refused(locked: Guarded, key: str) -> None:
    for headers in ({"Authorization": f"Bearer {key}".encode()}, {"X-API-Key": key.encode()}):
        response = locked.client.get("/items/1", headers=headers)
        problem = check_problem(response, 401, "key_unknown")
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        assert key not in problem["detail"]


@pytest.mark.parametrize("scope", KEYS)
def test_a_key_is_taken_from_either_header(locked: Guarded, scope: str) -> None:
    key = KEYS[scope][0]
    for headers in ({"Authorization": f"bearer  {key}"}, {"X-API-Key": key}):
        answer = locked.client.get("/items/1", headers=headers).json()
        assert answer == {"client": f"{scope}er", "number": 1}


@pytest.mark.parametrize("scope", KEYS)
def test_a_scope_allows_its_own_and_no_more(locked: Guarded, scope: str) -> None:
    response = locked.client.post("/items", files=file_of(10), headers=bearer(scope))
    if scope == "read":
        problem = check_problem(response, 403, "scope_missing")
        assert "write" in problem["detail"] and "reader" in problem["detail"]
        assert "insufficient_scope" in response.headers["WWW-Authenticate"]
    else:
        assert response.json() == {"size": 10}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [({}, 401, "key_missing"), (bearer("read"), 403, "scope_missing")],
)
def test_whoever_may_not_upload_is_told_before_the_upload(
    locked: Guarded, headers: dict[str, str], status: int, code: str
) -> None:
    # A body of which almost nothing is ever sent: only an answer without it can come.
    request = (
        f"POST /items/bulk HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**9}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        + "\r\n--x\r\n"
    )
    with socket.create_connection(("127.0.0.1", locked.port), timeout=20) as connection:
        connection.sendall(request.encode())
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.load(answer)["code"]) == (status, code)
    assert answer.headers["Connection"] == "close"


def test_a_changed_file_of_keys_counts_without_a_restart(tmp_path: Path) -> None:
    (old, kept_old), (new, kept_new) = new_key("shop", "read"), new_key("shop", "read")
    file = tmp_path / "keys.txt"
    file.write_text(kept_old.line())
    with guarded(tmp_path, DSCL_KEYS_FILE=str(file)) as server:

        def status(key: str) -> int:
            return server.client.get("/items/1", headers={"X-API-Key": key}).status_code

        assert (status(old), status(new)) == (200, 401)
        beside = tmp_path / "beside"
        beside.write_text(kept_new.line())
        beside.replace(file)
        eventually(lambda: status(new) == 200 or None, deadline_s=10)
        assert status(old) == 401
        file.write_text("broken")

        def complained() -> bool | None:
            assert status(new) == 200
            return "stay good" in server.output.read_text() or None

        eventually(complained)
        assert status(new) == 200


def test_a_broken_file_of_keys_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("shop root abc")
    with (
        pytest.raises(AssertionError, match="scope 'root'"),
        guarded(tmp_path, DSCL_KEYS_FILE=str(file)),
    ):
        pass


def test_the_interface_says_that_it_needs_a_key(locked: Guarded) -> None:
    document = locked.client.get("/openapi.json").json()
    [(name, scheme)] = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "X-API-Key" in scheme["description"]
    assert document["paths"]["/items/{number}"]["get"]["security"] == [{name: []}]
    assert "security" not in document["paths"]["/health/live"]["get"]
    # The keys' headers are no parameters beside.
    names = [each["name"] for each in document["paths"]["/items/{number}"]["get"]["parameters"]]
    assert names == ["number"]


def test_a_browser_of_an_allowed_origin_may_ask_first_and_read_refusals(locked: Guarded) -> None:
    asked = locked.client.options(
        "/items",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == ORIGIN
    refused = locked.client.get("/items/1", headers={"Origin": ORIGIN})
    check_problem(refused, 401, "key_missing")
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    stranger = locked.client.get("/items/1", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in stranger.headers


def test_a_client_may_ask_so_often_a_minute_and_no_more(tmp_path: Path) -> None:
    keys = ";".join(kept.line() for _, kept in KEYS.values())
    with guarded(tmp_path, DSCL_KEYS=keys, DSCL_RATE_LIMIT="6") as server:

        def ask(scope: str) -> httpx.Response:
            return server.client.get("/items/1", headers=bearer(scope))

        remaining = []
        while (response := ask("read")).status_code == 200:
            assert response.headers["RateLimit-Limit"] == "6"
            remaining.append(int(response.headers["RateLimit-Remaining"]))
        assert remaining[:6] == [5, 4, 3, 2, 1, 0]
        problem = check_problem(response, 429, "rate_limited")
        assert "reader" in problem["detail"]
        assert 1 <= int(response.headers["Retry-After"]) <= 10
        assert response.headers["RateLimit-Remaining"] == "0"
        assert ask("write").status_code == 200  # another's bucket
        assert server.client.get("/health/live").status_code == 200  # monitors are not counted


def test_without_keys_addresses_are_counted(tmp_path: Path) -> None:
    with guarded(tmp_path, DSCL_RATE_LIMIT="2") as server:
        answers = [server.client.get("/items/1") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[0].json()["client"] == "127.0.0.1"
        assert "127.0.0.1" in answers[2].json()["detail"]
        assert server.client.post("/admin/reload").status_code == 429  # counted before it waits


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example:8000"},
        {"Host": "evil.example:8000"},
        {"Host": "localhost@evil.example"},
        {"Host": "[::1"},
    ],
)
def test_without_keys_web_pages_from_elsewhere_are_refused(
    keyless: Guarded, headers: dict[str, str]
) -> None:
    answer = keyless.client.post("/items", files=file_of(10), headers=headers)
    problem = check_problem(answer, 403, "origin_refused")
    assert "DSCL_CORS_ORIGINS" in problem["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": ORIGIN},
        {"Host": "LOCALHOST"},
        {"Host": "[::1]:8000"},
        {},
    ],
)
def test_without_keys_this_machine_may_do_everything(
    keyless: Guarded, headers: dict[str, str]
) -> None:
    answer = keyless.client.post("/items", files=file_of(10), headers=headers)
    assert answer.json() == {"size": 10}


def test_a_service_for_all_of_a_network_asks_no_page_where_it_comes_from(tmp_path: Path) -> None:
    with guarded(tmp_path, DSCL_HOST="0.0.0.0", DSCL_INSECURE="1") as server:
        headers = {"Origin": "https://shop.example", "Host": "shop.example"}
        assert server.client.get("/items/1", headers=headers).status_code == 200
