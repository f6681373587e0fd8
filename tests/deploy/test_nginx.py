"""nginx as it is deployed, in front of real services and of ones that break on purpose."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.deploy.programs import free_port, proxying
from tests.service.running import Server, serving

MIB = 2**20


@pytest.fixture(scope="module")
def service(gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(gallery_folder, tmp_path_factory.mktemp("serving")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(service: Server) -> Iterator[httpx.Client]:
    """Two replicas, one of which is gone."""
    with proxying([free_port(), service.client.base_url.port or 0]) as client:
        yield client


@pytest.fixture
def photo(photos: Path) -> bytes:
    return (photos / "audi" / "0.jpg").read_bytes()


class Breaking(BaseHTTPRequestHandler):
    """Reads a request and hangs up, as a process does that is killed while it works."""

    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(self.path)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_search_gets_the_answer_of_a_replica_though_another_is_gone(
    service: Server, proxy: httpx.Client, photo: bytes
) -> None:
    direct = service.client.post("/search", files={"file": photo}).json()["results"]
    for _ in range(8):  # replicas take turns
        answer = proxy.post("/search", files={"file": photo})
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"] == direct


@pytest.mark.parametrize(
    ("path", "times", "status", "code"),
    [
        ("/search", 2, 503, "not_ready"),
        ("/search/vector", 2, 503, "not_ready"),
        ("/search/batch", 2, 503, "not_ready"),
        ("/items", 1, 502, "answer_lost"),
        ("/items/bulk", 1, 502, "answer_lost"),
    ],
)
def test_only_what_changes_nothing_is_sent_twice_by_the_proxy_or_by_clients(
    path: str, times: int, status: int, code: str
) -> None:
    seen: list[str] = []
    handler = type("Handler", (Breaking,), {"seen": seen})
    with (
        answering(handler) as one,
        answering(handler) as other,
        proxying([one, other]) as proxy,
    ):
        answer = proxy.post(path, content=b"photo")
    assert seen == [path] * times
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    # Our clients repeat whatever they are told to.
    assert ("Retry-After" in answer.headers) == (status == 503)


@pytest.mark.parametrize(("method", "path"), [("POST", "/search"), ("GET", "/items/1")])
def test_without_any_replica_clients_are_told_so_in_the_services_words(
    method: str, path: str
) -> None:
    with proxying([free_port(), free_port()]) as proxy:
        answer = proxy.request(method, path, content=b"photo")
    assert answer.status_code == 503
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) >= 1
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (503, "not_ready")
    assert problem["request_id"]


def test_a_photo_of_the_largest_size_passes_and_a_larger_one_is_refused(
    proxy: httpx.Client,
) -> None:
    limit = Settings.model_fields["max_upload_bytes"].default
    assert limit <= 20 * MIB
    fits = proxy.post("/search", content=b"x" * (limit - MIB))
    assert fits.json()["code"] != "body_too_large"
    answer = proxy.post("/search", content=b"x" * (20 * MIB + 1))
    assert answer.status_code == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "body_too_large"


@pytest.mark.parametrize("path", ["/search/batch", "/items/bulk", "/evaluate/upload"])
def test_many_photos_may_be_larger_than_one(proxy: httpx.Client, path: str) -> None:
    answer = proxy.post(path, files={"other": b"x" * (21 * MIB)})
    # From the service, which misses the part that it is to read.
    assert answer.status_code == 422
    assert "X-Request-ID" in answer.headers


@pytest.mark.parametrize(("method", "path"), [("GET", "/metrics"), ("POST", "/admin/reload")])
def test_figures_and_administration_cannot_be_reached(
    service: Server, proxy: httpx.Client, method: str, path: str
) -> None:
    assert service.client.request(method, path).status_code == 200
    assert proxy.request(method, path).status_code == 404


def test_the_page_behind_the_proxy_may_change_the_gallery_and_other_sites_may_not(
    proxy: httpx.Client,
) -> None:
    own = f"http://127.0.0.1:{proxy.base_url.port}"
    for origin, expected in [(own, 404), ("http://elsewhere.example", 403)]:
        answer = proxy.delete("/items/999999", headers={"Origin": origin})
        assert answer.status_code == expected, answer.text


def test_rate_limits_go_by_the_clients_address_whatever_it_claims(
    gallery_folder: Path, tmp_path: Path
) -> None:
    limit = {"DSCL_RATE_LIMIT": "3", "FORWARDED_ALLOW_IPS": "*"}
    with (
        serving(gallery_folder, tmp_path, **limit) as server,
        proxying([server.client.base_url.port or 0]) as proxy,
    ):
        statuses = [
            proxy.get("/model", headers={"X-Forwarded-For": f"10.9.8.{number}"}).status_code
            for number in range(4)
        ]
        assert statuses == [200, 200, 200, 429]
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=elsewhere, base_url=proxy.base_url) as other:
            assert other.get("/model").status_code == 200


@pytest.fixture
def limited(service: Server) -> Iterator[httpx.Client]:
    """Two addresses of the service, and three requests a minute."""
    port = service.client.base_url.port or 0
    with proxying([port, port], per_minute=3) as client:
        yield client


def statuses(client: httpx.Client, count: int, **headers: str) -> list[int]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return [client.get("/model", headers=sent).status_code for _ in range(count)]


def test_a_limit_of_the_proxy_counts_each_key_and_each_address_over_all_replicas(
    limited: httpx.Client,
) -> None:
    assert statuses(limited, 4, authorization="Bearer dscl_one") == [200, 200, 200, 429]
    assert statuses(limited, 4, x_api_key="dscl_other") == [200, 200, 200, 429]
    assert statuses(limited, 4) == [200, 200, 200, 429]
    refused = limited.post("/search", content=b"photo")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert int(refused.headers["Retry-After"]) >= 1


def test_a_key_is_one_client_however_it_is_written(limited: httpx.Client) -> None:
    ways = [
        {"authorization": "Bearer dscl_key"},
        {"authorization": "bearer   dscl_key"},
        {"authorization": "Bearer \xa0\t dscl_key"},
        # The service passes over what is no bearer token, and takes the first key of several.
        {"authorization": "Basic junk", "x-api-key": "dscl_key"},
        {"x-api-key": "dscl_key"},
    ]
    found = []
    for headers in ways:
        sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        found.append(limited.get("/model", headers=sent).status_code)
    assert found == [200, 200, 200, 429, 429]
    twice = [("X-API-Key", "dscl_key"), ("X-API-Key", "junk")]
    assert limited.get("/model", headers=twice).status_code == 429


def test_events_of_jobs_come_as_they_happen() -> None:
    go_on = threading.Event()

    class Events(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: first\n\n")
            self.wfile.flush()
            assert go_on.wait(60)
            self.wfile.write(b"data: last\n\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with (
        answering(Events) as port,
        proxying([port]) as proxy,
        proxy.stream("GET", "/jobs/1/events") as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == "data: first"
        go_on.set()
        assert list(lines) == ["", "data: last", ""]
