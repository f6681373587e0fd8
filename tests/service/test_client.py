from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from index import Gallery, Item, build, list_photos
from index.errors import InvalidArgumentError
from service.client import (
    AsyncClient,
    Client,
    JobError,
    Retries,
    ServiceError,
    UnreachableError,
)
from service.schemas import EvaluationRequest, ItemChange, Job
from tests.service.running import Server, run_dscl, serving

#: In no time, and no more than twice.
HASTY = Retries(attempts=3, first_s=0.001, longest_s=0.01)


@pytest.fixture(scope="module")
def writable(
    model_folder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A service with a gallery of its own, which tests may change."""
    folder = tmp_path_factory.mktemp("client")
    with Gallery.create(folder / "gallery", model_folder) as gallery:
        build(gallery, list_photos(photos))
    with serving(folder / "gallery", folder) as server:
        yield server


def address(server: Server) -> str:
    return str(server.client.base_url)


@pytest.fixture
def service(writable: Server) -> Iterator[Client]:
    with Client(address(writable)) as client:
        yield client


# Against the real service


def test_searches_are_those_of_plain_http(
    service: Client, writable: Server, items: list[Item]
) -> None:
    photo = items[3].image
    plain = writable.client.post(
        "/search",
        params={"k": 4, "where": '{"label": {"ne": "audi"}}', "include": "vector"},
        files={"file": photo.read_bytes()},
    ).json()
    assert len(plain["results"]) == 4
    for given in (photo, str(photo), photo.read_bytes()):
        found = service.search(given, k=4, where={"label": {"ne": "audi"}}, include=["vector"])
        assert [hit.model_dump(exclude_unset=True) for hit in found.results] == plain["results"]
    assert plain["results"][0].keys() == {"id", "score", "sku", "label", "vector"}


def test_every_kind_of_search_finds_the_same_neighbours(service: Client, items: list[Item]) -> None:
    item = items[5]
    [itself, *others] = service.search(item.image, k=6, include=["vector"]).results
    assert (itself.id, itself.vector is not None) == (item.id, True)

    def ids(hits: Any) -> list[int]:
        return [hit.id for hit in hits]

    assert ids(service.similar_items(item.id, k=5).results) == ids(others)
    assert ids(service.search_vector(itself.vector or [], k=6).results) == [item.id, *ids(others)]
    batch = service.search_batch([item.image, b"no photo", item.image], k=6).answers
    assert [ids(answer.results or []) for answer in batch] == [
        [item.id, *ids(others)],
        [],
        [item.id, *ids(others)],
    ]
    assert batch[1].problem is not None and batch[1].problem.code == "image_unreadable"


def test_an_item_can_be_added_changed_found_and_removed(
    service: Client, items: list[Item], tmp_path: Path
) -> None:
    photo = items[0].image.read_bytes()
    added = service.add_item(photo, label="new", attributes={"year": 2020}, sku="a/b c?")
    assert service.get_item(added.id) == added
    assert service.get_item_by_sku("a/b c?") == added
    assert service.item_image(added.id) == photo
    assert service.item_thumbnail(added.id, size=32).startswith(b"\xff\xd8")
    assert added.id in [hit.id for hit in service.search(photo, k=2).results]
    assert [item.id for item in service.list_items(where={"year": 2020}).items] == [added.id]
    assert "year" in [field.name for field in service.list_fields().fields]

    changed = service.change_item(added.id, ItemChange(attributes={"year": None}))
    assert (changed.label, changed.attributes) == ("new", {})
    assert service.change_item(added.id, ItemChange(label=None)).label is None

    again = service.put_item_by_sku("a/b c?", items[1].image, label="other")
    assert service.item_image(again.id) == items[1].image.read_bytes()

    service.remove_item(again.id)
    with pytest.raises(ServiceError) as refused:
        service.get_item(again.id)
    assert (refused.value.status, refused.value.code) == (404, "item_not_found")
    assert refused.value.request_id and str(again.id) in str(refused.value)


def test_a_zip_is_added_as_a_job_that_can_be_waited_for(
    service: Client, items: list[Item], tmp_path: Path
) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for item in items[:3]:
            file.write(item.image, f"zipped/{item.id}.jpg")
    before = service.list_items().total
    looks: list[Job] = []
    job = service.wait(service.add_items(archive), every_s=0.01, told=looks.append)
    assert job.state == "done" and looks[-1] == job
    assert job.id in [each.id for each in service.list_jobs().jobs]
    zipped = service.list_items(where={"label": "zipped"})
    assert zipped.total == 3 and service.list_items().total == before + 3
    for added in zipped.items:
        service.remove_item(added.id)


def test_an_evaluation_is_the_same_at_once_and_as_a_job(
    service: Client, writable: Server, items: list[Item], tmp_path: Path
) -> None:
    plain = writable.client.post("/evaluate", json={"ks": [1, 3]}).json()
    for wanted in (EvaluationRequest(ks=[1, 3]), EvaluationRequest(ks=[1, 3], background=True)):
        assert service.evaluate(wanted).recall == plain["recall"]

    archive = tmp_path / "queries.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(items[1].image, f"{items[1].label}/1.jpg")
    for background in (False, True):
        uploaded = service.evaluate_upload(
            archive, EvaluationRequest(ks=[1], background=background)
        )
        assert (uploaded.recall, uploaded.queries) == ({"1": 1.0}, 1)
    with pytest.raises(InvalidArgumentError, match="query_where"):
        service.evaluate_upload(archive, EvaluationRequest(query_where={"label": "audi"}))


def test_a_job_that_does_not_come_to_its_end_is_an_error(service: Client, tmp_path: Path) -> None:
    archive = tmp_path / "unlabelled.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.jpg", b"no photo")
    with pytest.raises(JobError) as failed:
        service.evaluate_upload(archive, EvaluationRequest(background=True))
    assert failed.value.job.problem is not None
    assert failed.value.code == failed.value.job.problem.code


def test_model_and_readiness_are_told(service: Client, writable: Server) -> None:
    assert service.model().sha256 == writable.client.get("/model").json()["sha256"]
    assert service.ready().status == "ok"


def test_a_mistake_has_the_words_and_the_code_of_the_service(
    service: Client, items: list[Item]
) -> None:
    with pytest.raises(ServiceError, match="0 bytes") as refused:
        service.search(b"")
    assert (refused.value.code, refused.value.status) == ("image_empty", 422)
    with pytest.raises(ServiceError, match="k is 0") as refused:
        service.search(items[0].image, k=0)
    assert refused.value.code == "invalid_argument"


def test_a_missing_photo_is_noticed_before_anything_is_sent(tmp_path: Path) -> None:
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(InvalidArgumentError, match=r"gone\.jpg"),
    ):
        client.search(tmp_path / "gone.jpg")


def test_the_async_client_has_the_same_methods_and_answers(
    service: Client, writable: Server, items: list[Item]
) -> None:
    def methods(of: type) -> dict[str, inspect.Signature]:
        public = inspect.getmembers(of, inspect.isfunction)
        found = {name: inspect.signature(each) for name, each in public if name[0] != "_"}
        return {name.removeprefix("a"): found[name] for name in found if "close" in name} | {
            name: found[name] for name in found if "close" not in name
        }

    assert methods(AsyncClient) == methods(Client)

    async def ask() -> list[int]:
        async with AsyncClient(address(writable)) as client:
            answers = await asyncio.gather(*(client.search(item.image, k=1) for item in items))
            await client.ready()
        return [answer.results[0].id for answer in answers]

    assert asyncio.run(ask()) == [service.search(item.image, k=1).results[0].id for item in items]


# Against a service that fails on command


class Script:
    """Answers, one for each request: (status, headers), or None to break the connection."""

    def __init__(self, *answers: tuple[int, dict[str, str]] | None) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []


PROBLEM = {"title": "t", "status": 503, "detail": "no", "code": "overloaded", "request_id": "1"}
BUSY = (503, {"Retry-After": "0"})
LIMITED = (429, {"Retry-After": "0"})
FINE: tuple[int, dict[str, str]] = (200, {})


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            script.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            answer = script.answers.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, headers = answer
            fine = {"model": {"name": "m", "sha256": "0"}, "results": [], "took_ms": 1}
            body = json.dumps(fine if status == 200 else PROBLEM).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET = do_PUT = do  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_busy_service_is_asked_again_with_the_whole_photo(kind: str, photos: Path) -> None:
    script = Script(BUSY, LIMITED, FINE)
    photo = photos / "audi" / "0.jpg"
    with scripted(script) as url:
        if kind == "sync":
            with Client(url, retries=HASTY) as client:
                assert client.search(photo).results == []
        else:

            async def ask() -> None:
                async with AsyncClient(url, retries=HASTY) as client:
                    assert (await client.search(photo)).results == []

            asyncio.run(ask())
    assert len(script.bodies) == 3
    assert all(photo.read_bytes() in body for body in script.bodies)


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([BUSY] * 3, "overloaded"),  # in the end it is told
        ([(503, {})], "overloaded"),  # does not pass by itself
        ([(503, {"Retry-After": "3600"})], "overloaded"),  # longer than one waits
        ([(422, {"Retry-After": "0"})], "overloaded"),
    ],
    ids=["thrice", "for_good", "in_an_hour", "refused"],
)
def test_what_does_not_pass_is_told(answers: list[tuple[int, dict[str, str]]], code: str) -> None:
    script = Script(*answers)
    with (
        scripted(script) as url,
        Client(url, retries=HASTY) as client,
        pytest.raises(ServiceError) as refused,
    ):
        client.search(b"photo")
    assert (refused.value.status, refused.value.code) == (answers[0][0], code)
    assert script.answers == []


def test_a_broken_connection_repeats_only_what_may_be_done_twice() -> None:
    script = Script(None, FINE, None)
    with scripted(script) as url, Client(url, retries=HASTY) as client:
        assert client.search(b"photo").results == []
        with pytest.raises(UnreachableError, match=url):
            client.add_item(b"photo")
    assert script.answers == [] and len(script.bodies) == 3


def test_an_answer_in_other_words_says_that_this_is_no_such_service() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with (
                Client(f"http://127.0.0.1:{server.server_port}") as client,
                pytest.raises(ServiceError, match="dscl serve") as refused,
            ):
                client.model()
        finally:
            server.shutdown()
    assert (refused.value.status, refused.value.code) == (404, "http_error")


def test_nobody_at_the_address_is_told_with_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with (
        Client(url, retries=HASTY) as client,
        pytest.raises(UnreachableError, match=rf"{url} after 3 attempts"),
    ):
        client.model()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://"])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_that_is_none_is_refused(
    client: type[Client] | type[AsyncClient], url: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="http://127"):
        client(url)


def test_pauses_grow_and_never_undercut_what_is_asked_for() -> None:
    retries = Retries(attempts=10, first_s=1, longest_s=8)
    broken = httpx.ConnectError("refused")
    for made, most in enumerate([1, 2, 4, 8, 8, 8, 8, 8, 8], start=1):
        pauses = [retries.pause(made, broken, repeatable=False) for _ in range(100)]
        assert all(pause is not None and most / 2 <= pause <= most for pause in pauses)
        assert len(set(pauses)) > 90
    assert retries.pause(10, broken, repeatable=True) is None
    busy = httpx.Response(503, headers={"Retry-After": "7"})
    assert retries.pause(1, busy, repeatable=False) == 7


def test_a_change_that_may_have_been_made_is_not_made_again() -> None:
    late = httpx.Response(
        503, headers={"Retry-After": "1"}, json={**PROBLEM, "code": "request_timeout"}
    )
    assert Retries().pause(1, late, repeatable=True) is not None
    assert Retries().pause(1, late, repeatable=False) is None


# The command line


def test_dscl_search_finds_the_same_by_url_and_in_the_folder(
    writable: Server, gallery_folder: Path, items: list[Item]
) -> None:
    query: list[str | Path] = [
        "--k",
        "4",
        "--where",
        '{"label": {"ne": "fiat"}}',
        "--json",
        items[2].image,
    ]
    found = []
    places: list[list[str | Path]] = [["--url", address(writable)], ["--gallery", gallery_folder]]
    for place in places:
        result = run_dscl("search", *place, *query)
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout))
    ours, theirs = found
    assert len(theirs["results"]) == 4
    for hit, other in zip(ours["results"], theirs["results"], strict=True):
        assert hit["score"] == pytest.approx(other["score"], abs=1e-5)
        assert {**hit, "image": 0, "score": 0} == {**other, "image": 0, "score": 0}
        assert (
            httpx.get(hit["image"], trust_env=False).content
            == items[hit["id"] - 1].image.read_bytes()
        )


def test_dscl_search_wants_one_place_and_says_when_nobody_is_there(items: list[Item]) -> None:
    for place in ([], ["--url", "http://127.0.0.1:9", "--gallery", "g"]):
        result = run_dscl("search", *place, items[0].image)
        assert result.returncode == 2 and "--gallery or --url" in result.stderr
    began = time.monotonic()
    result = run_dscl("search", "--url", "http://127.0.0.1:9", items[0].image)
    assert result.returncode == 1
    assert "no answer from http://127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - began < 30
