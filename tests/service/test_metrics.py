from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.metrics import GalleryFacts, exposition
from tests.service.guarded import Guarded, guarded
from tests.service.running import clean_environment, eventually

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Series:
    """Name and labels → value, read by nothing but the format's description."""
    series: Series = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            assert found, line
            labels = frozenset(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
            assert (found[1], labels) not in series, line
            series[found[1], labels] = float(found[3])
    return series


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(tmp_path_factory.mktemp("counted")) as server:
        yield server


@contextmanager
def waiting(server: Guarded) -> Iterator[None]:
    """A request that is being answered all the while."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET /search/wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: server.calls()["waiting"] == 1 or None)
        yield


def figures(server: Guarded) -> Series:
    return parsed(server.client.get("/metrics").text)


def test_requests_are_counted_by_route_method_and_status(counted: Guarded) -> None:
    before = figures(counted)
    for number in range(5):
        counted.client.get(f"/items/{number}")
    counted.client.get("/items/none")
    counted.client.post("/items/1")
    counted.client.get("/nowhere")
    after = figures(counted)

    def more(**labels: str) -> float:
        name = "dscl_http_requests_total"
        return value(after, name, **labels) - value(before, name, **labels)

    assert more(route="/items/{number}", method="GET", status="200") == 5
    assert more(route="/items/{number}", method="GET", status="422") == 1
    assert more(route="/items/{number}", method="POST", status="405") == 1
    assert more(route="unmatched", method="GET", status="404") == 1
    assert more(route="/metrics", method="GET", status="200") == 1


def test_paths_make_no_series(counted: Guarded) -> None:
    """Or anyone could fill the memory of whoever keeps the figures."""
    counted.client.get("/items/1")
    counted.client.get("/nowhere/at/all")
    before = figures(counted).keys()
    for number in range(20):
        counted.client.get(f"/items/{number}")
        counted.client.get(f"/nowhere/{number}")
        counted.client.request("GET" if number % 2 else "REPORT", f"/{number}")
    added = figures(counted).keys() - before
    assert {dict(labels).get("method") for _, labels in added} <= {"other"}


def test_seconds_are_those_that_passed(counted: Guarded) -> None:
    name, before = "dscl_http_request_seconds", figures(counted)
    elapsed = counted.client.get("/jobs/events").elapsed.total_seconds()

    def spent() -> float | None:
        after = figures(counted)
        counts = [value(each, f"{name}_count", route="/jobs/events") for each in (after, before)]
        return value(after, f"{name}_sum", route="/jobs/events") if counts[0] > counts[1] else None

    seconds = eventually(spent) - value(before, f"{name}_sum", route="/jobs/events")
    assert 2 < seconds < elapsed + 1


def test_requests_in_flight_come_and_go(counted: Guarded) -> None:
    # The one that asks is in flight itself.
    assert value(figures(counted), "dscl_http_in_flight") == 1
    with waiting(counted):
        assert value(figures(counted), "dscl_http_in_flight") == 2
    eventually(lambda: value(figures(counted), "dscl_http_in_flight") == 1 or None)


def test_the_gallery_is_told_only_while_there_is_one() -> None:
    facts = GalleryFacts(items=12, recall=None, model_name='a "b"', model_sha256="ab")
    series = exposition(facts).decode()
    assert "dscl_gallery_items 12.0\n" in series
    assert 'dscl_model_info{name="a \\"b\\"",sha256="ab"} 1.0\n' in series
    assert "recall" not in series
    measured = exposition(GalleryFacts(1, 0.984, "m", "ab")).decode()
    assert "dscl_gallery_recall 0.984\n" in measured
    assert "dscl_gallery" not in exposition(None).decode()


def test_processes_count_together_and_the_dead_have_nothing_in_flight(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    folders = [tmp_path / name for name in ("shared", "one", "two")]
    for folder in folders:
        folder.mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(shared)}
    labels = {"route": "/items/{number}", "method": "GET", "status": "200"}
    with guarded(tmp_path / "one", **environment) as one:
        with guarded(tmp_path / "two", **environment) as two:
            for _ in range(3):
                one.client.get("/items/1")
            for _ in range(4):
                two.client.get("/items/1")
            # A request is counted, and in flight, until just after its answer has come.
            for server in (one, two):
                eventually(
                    lambda server=server: (
                        value(figures(server), "dscl_http_requests_total", **labels) == 7 or None
                    )
                )
            eventually(lambda: value(figures(one), "dscl_http_in_flight") == 1 or None)
            with waiting(two):
                assert value(figures(one), "dscl_http_in_flight") == 2
                two.process.kill()
                two.process.wait()
        script = f"from service.metrics import process_ended; process_ended({two.process.pid})"
        subprocess.run(
            [sys.executable, "-c", script], env=clean_environment(**environment), check=True
        )
        series = figures(one)
        assert value(series, "dscl_http_requests_total", **labels) == 7
        assert value(series, "dscl_http_in_flight") == 1
