from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import httpx
import pytest

from index import Gallery
from index.errors import DsclError
from service.errors import STATUS
from service.settings import Settings
from tests.service.problem import check_problem
from tests.service.running import in_process


def test_an_unknown_path_is_not_found(client: httpx.Client) -> None:
    problem = check_problem(client.get("/nowhere"), 404, "not_found")
    assert "GET /nowhere" in problem["detail"] and "/docs" in problem["detail"]


@pytest.mark.parametrize(("method", "path"), [("PUT", "/search"), ("DELETE", "/model")])
def test_a_wrong_method_is_not_allowed(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    problem = check_problem(response, 405, "method_not_allowed")
    assert f"{method} {path}" in problem["detail"]
    assert response.headers["Allow"]


def test_a_callers_request_id_is_kept(client: httpx.Client) -> None:
    response = client.get("/nowhere", headers={"X-Request-ID": "trace-17"})
    assert check_problem(response, 404, "not_found")["request_id"] == "trace-17"


@pytest.mark.parametrize("bad", ["", "two words", "x" * 65, "a\tb", "<b>"])
def test_a_request_id_that_could_forge_the_log_is_replaced(client: httpx.Client, bad: str) -> None:
    response = client.get("/health/live", headers={"X-Request-ID": bad})
    assert response.headers["X-Request-ID"] not in ("", bad)


def test_requests_get_ids_of_their_own(client: httpx.Client) -> None:
    ids = {client.get("/health/live").headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5


def test_every_code_of_the_library_has_a_status() -> None:
    def kinds(kind: type[DsclError]) -> list[type[DsclError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in kinds(child))]

    # Raised with codes of their own, or while a gallery is built.
    elsewhere = {"error", "data_invalid", "shards_invalid"}
    # Training raises errors too, where it is imported; the service never meets them.
    ours = {kind.code for kind in kinds(DsclError) if kind.__module__.startswith("index.")}
    assert ours - elsewhere <= STATUS.keys()


def test_an_unforeseen_error_is_logged_and_tells_the_caller_nothing_of_itself(
    gallery_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the inside")

    async def run() -> httpx.Response:
        async with in_process(Settings(gallery=gallery_folder)) as service:
            await asyncio.wrap_future(service.engine.opened)
            monkeypatch.setattr(Gallery, "get", fail)
            return await service.client.get("/items/1")

    with caplog.at_level(logging.ERROR):
        response = asyncio.run(run())
    problem = check_problem(response, 500, "internal_error")
    assert "secret" not in response.text and "Traceback" not in response.text
    assert problem["request_id"] in caplog.text
    assert "RuntimeError: a secret of the inside" in caplog.text
