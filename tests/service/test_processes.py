"""Several worker processes: what one loses, the others serve."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from index import Gallery
from tests.service.api import send
from tests.service.problem import check_problem
from tests.service.running import DEADLINE_S, Server, eventually, serving
from tests.service.zips import photo_bytes


@pytest.fixture(scope="module")
def several(
    gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("several")
    gallery = folder / "gallery"
    shutil.copytree(gallery_folder, gallery)
    with serving(gallery, folder, "--workers", "2") as server:
        eventually(lambda: "Ready at" in server.output.read_text() or None)
        yield server, gallery


def children(server: Server) -> dict[int, str]:
    """The processes of a service, by pid: their names as the supervisor gave them."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            command = (status.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if int(fields[1]) == server.process.pid and b"spawn_main" in command:
            found[int(status.parent.name)] = command.decode()
    return found


def writer_of(gallery: Path) -> int:
    """The process that holds the gallery for changes, or did so last."""
    [pid] = re.findall(r"process (\d+)", (gallery / "writer.lock").read_text())
    return int(pid)


def test_a_change_made_through_one_process_is_found_through_all(
    several: tuple[Server, Path],
) -> None:
    server, _ = several
    added = send(server.client, photo_bytes(500), label="new").json()
    for _ in range(8):  # each on a connection of its own, to whichever process takes it
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            assert client.get(f"/items/{added['id']}").json() == added
            hits = client.post("/search?k=1", files={"file": photo_bytes(500)}).json()["results"]
            assert hits[0]["id"] == added["id"]
    assert server.client.delete(f"/items/{added['id']}").status_code == 204
    check_problem(server.client.get(f"/items/{added['id']}"), 404, "item_not_found")


def test_jobs_and_figures_are_those_of_all_processes(several: tuple[Server, Path]) -> None:
    server, _ = several
    started = server.client.post("/evaluate", json={"background": True})
    assert started.status_code == 202

    def done() -> bool | None:
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            return client.get(started.headers["Location"]).json()["state"] == "done" or None

    eventually(done)
    for _ in range(4):
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            client.get("/model")
    text = server.client.get("/metrics").text
    [count] = re.findall(r'dscl_http_requests_total{.*route="/model".*} ([\d.]+)', text)
    assert float(count) >= 4


def test_when_one_is_killed_the_others_serve_and_it_returns(
    several: tuple[Server, Path],
) -> None:
    server, gallery = several
    kept = send(server.client, photo_bytes(501)).json()  # so that the lock names the writer
    before = children(server)
    assert len(before) == 3
    searcher = next(pid for pid in before if pid != writer_of(gallery))
    failures: list[str] = []
    stop = threading.Event()
    answered = 0

    def search_all_the_time() -> None:
        nonlocal answered
        while not stop.is_set():
            with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
                try:
                    response = client.post("/search?k=1", files={"file": photo_bytes(501)})
                except httpx.TransportError:
                    continue  # it was in the process that was killed
                if response.status_code != 200:
                    failures.append(response.text)
                answered += 1

    threads = [threading.Thread(target=search_all_the_time) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for victim in (searcher, writer_of(gallery)):
            at_kill = answered
            os.kill(victim, signal.SIGKILL)
            eventually(lambda at=at_kill: answered > at + 10 or None)  # the others go on …

            def returned(victim: int = victim) -> bool | None:
                now = children(server)
                return (len(now) == 3 and victim not in now) or None

            eventually(returned)  # … and it comes back
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert server.client.get(f"/items/{kept['id']}").json() == kept
    eventually(lambda: send(server.client, photo_bytes(502)).status_code == 201 or None)


def test_all_end_with_the_service_and_what_is_acknowledged_stays(
    gallery_folder: Path, tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    shutil.copytree(gallery_folder, gallery)
    with serving(gallery, tmp_path, "--workers", "2") as server:
        added = send(server.client, photo_bytes(7)).json()
        processes = children(server)
        server.process.terminate()
        assert server.process.wait(DEADLINE_S) == 0
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    with Gallery.open(gallery) as again:
        assert [item.id for item in again.get([added["id"]])] == [added["id"]]


def test_without_their_supervisor_they_end(gallery_folder: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    shutil.copytree(gallery_folder, gallery)
    with serving(gallery, tmp_path, "--workers", "2") as server:
        processes = children(server)
        server.process.kill()
        server.process.wait(DEADLINE_S)

        def gone() -> bool | None:
            return not [pid for pid in processes if Path(f"/proc/{pid}").exists()] or None

        eventually(gone)


def test_what_cannot_be_served_is_said_once_and_ends_the_service(tmp_path: Path) -> None:
    from tests.service.running import run_dscl

    (tmp_path / "nothing").mkdir()
    ended = run_dscl("serve", "--gallery", tmp_path / "nothing", "--port", "0", "--workers", "2")
    assert ended.returncode == 1
    assert ended.stderr.count("is not a gallery") == 1
    assert "Traceback" not in ended.stderr
