"""Services on a real Milvus server: it is killed under load, and two of them share one gallery."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from index import Gallery
from index.address import parse_address
from index.copying import copy_gallery
from scripts.milvus_server import START_S, MilvusServer
from tests.index.gallery_kinds import NEEDS_SERVER, SERVER, drop
from tests.service.api import nearest, send
from tests.service.problem import check_problem
from tests.service.running import eventually, serving
from tests.service.zips import photo_bytes

pytestmark = NEEDS_SERVER


@pytest.fixture
def gallery(gallery_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a copy of the tests' gallery."""
    monkeypatch.setenv("DSCL_CACHE", str(tmp_path / "cache"))
    url = f"milvus://{SERVER}/test_{secrets.token_hex(6)}?store={tmp_path / 'store'}"
    try:
        copy_gallery(gallery_folder, parse_address(url))
        yield url
    finally:
        drop(url)


@dataclass
class Load:
    """Clients that add and search until they are told to stop, and what they were told."""

    url: httpx.URL
    added: dict[int, int] = field(default_factory=dict)  #: ids, by the photos' seeds
    refused: list[int] = field(default_factory=list)  #: seeds
    searched: int = 0
    problems: list[str] = field(default_factory=list)  #: answers that there should not be
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        works: list[Callable[[httpx.Client], object]] = [
            lambda client: self.add(client, 0),
            lambda client: self.add(client, 1),
            self.search,
            self.search,
        ]
        for work in works:
            self.threads.append(threading.Thread(target=self.run, args=[work]))
            self.threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, work: Callable[[httpx.Client], object]) -> None:
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            try:
                work(client)
            except Exception as error:  # a thread's own end would go unseen
                self.problems.append(repr(error))

    def add(self, client: httpx.Client, lane: int) -> None:
        seed = 1000 + lane
        while not self.stop.is_set():
            answer = send(client, photo_bytes(seed))
            with self.lock:
                if answer.status_code == 201:
                    self.added[seed] = answer.json()["id"]
                else:
                    self.refused.append(seed)
                    self.check_refusal(answer)
            seed += 2

    def search(self, client: httpx.Client) -> None:
        photo = photo_bytes(1000)
        while not self.stop.is_set():
            answer = client.post("/search?k=3", files={"file": photo})
            with self.lock:
                if answer.status_code == 200:
                    self.searched += 1
                else:
                    self.check_refusal(answer)

    def check_refusal(self, answer: httpx.Response) -> None:
        try:
            # On a busy machine a request may wait too long for those before it.
            late = "request_timeout" in answer.text
            check_problem(answer, 503, "request_timeout" if late else "gallery_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        except (AssertionError, KeyError, ValueError) as error:
            self.problems.append(f"{answer.status_code} {answer.text} {error}")
        self.stop.wait(0.05)  # a client that is told to wait does not hammer

    def more(self, *, added: int, searched: int) -> None:
        """Wait until so many more adds and searches have been answered well."""
        adds, searches = len(self.added), self.searched

        def look() -> bool | None:
            done = len(self.added) >= adds + added and self.searched >= searches + searched
            return done or bool(self.problems) or None

        eventually(look, deadline_s=START_S)
        assert not self.problems


def unavailable(client: httpx.Client) -> bool | None:
    answer = client.get("/health/ready")
    if answer.status_code == 200:
        return None
    check_problem(answer, 503, "gallery_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    return True


def test_nothing_acknowledged_is_lost_when_milvus_is_killed_and_the_service_recovers_by_itself(
    gallery: str, tmp_path: Path
) -> None:
    milvus = MilvusServer.of_environment()
    if milvus is None:
        pytest.skip("needs a Milvus server that may be killed: `make test-milvus`")
    with serving(gallery, tmp_path) as service, Load(service.client.base_url) as load:
        before = service.client.get("/items?limit=100").json()
        load.more(added=20, searched=20)
        milvus.kill()
        eventually(lambda: unavailable(service.client))
        refused = len(load.refused)
        eventually(lambda: len(load.refused) > refused + 1 or None)
        assert service.client.get("/health/live").status_code == 200
        milvus.start()
        load.more(added=20, searched=20)
        assert service.client.get("/health/ready").status_code == 200
        load.__exit__()
        assert not load.problems
        for seed, item_id in load.added.items():
            assert service.client.get(f"/items/{item_id}").status_code == 200
            assert service.client.get(f"/items/{item_id}/image").content == photo_bytes(seed)
            assert nearest(service.client, photo_bytes(seed))["id"] == item_id
        for item in before["items"]:
            assert service.client.get(f"/items/{item['id']}").json() == item
    with Gallery.open(gallery) as again:
        held = again.items(limit=10_000)
        assert {item.id for item in held} >= set(load.added.values())
        # Those that nobody was told of are whole, too.
        assert [item for item in held if not item.image.is_file()] == []
