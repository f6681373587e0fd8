"""Services on a real Milvus server: it is killed under load, and two of them share one gallery."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from index import Gallery
from index.address import parse_address
from index.copying import copy_gallery
from scripts.milvus_server import START_S, MilvusServer
from service.job_states import GONE_S
from service.keys import new_key
from tests.deploy.programs import proxying
from tests.index.gallery_kinds import NEEDS_SERVER, SERVER, drop
from tests.service.api import nearest, send
from tests.service.problem import check_problem
from tests.service.running import Server, eventually, serving
from tests.service.zips import photo_bytes, slow_photos, zip_of

pytestmark = NEEDS_SERVER


@contextmanager
def copied(gallery: Path, folder: Path) -> Iterator[str]:
    """The address of a copy of a gallery, whose photos go to a folder."""
    url = f"milvus://{SERVER}/test_{secrets.token_hex(6)}?store={folder / 'store'}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DSCL_CACHE", str(folder / "cache"))
            copy_gallery(gallery, parse_address(url))
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
    gallery_folder: Path, tmp_path: Path
) -> None:
    milvus = MilvusServer.of_environment()
    if milvus is None:
        pytest.skip("needs a Milvus server that may be killed: `make test-milvus`")
    with (
        copied(gallery_folder, tmp_path) as gallery,
        serving(gallery, tmp_path, DSCL_CACHE=str(tmp_path / "cache")) as service,
        Load(service.client.base_url) as load,
    ):
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


# Two replicas behind nginx


@dataclass
class Replicas:
    """Two services on one gallery, and nginx before them."""

    servers: list[Server]
    proxy: httpx.Client
    gallery: str
    read_key: str

    @property
    def all(self) -> list[httpx.Client]:
        """nginx, and each replica by itself."""
        return [self.proxy, *(server.client for server in self.servers)]

    def owner(self) -> int:
        """Which of them runs a job."""
        [place] = [
            place
            for place, server in enumerate(self.servers)
            if 'dscl_jobs{state="running"} 1.0' in server.client.get("/metrics").text
        ]
        return place


@pytest.fixture(scope="module")
def replicas(gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    (reading, read), (writing, write) = (new_key(scope, scope) for scope in ("read", "write"))
    keys = folder / "keys.txt"
    keys.write_text(f"{read.line()}\n{write.line()}\n", encoding="utf-8")
    environment = {
        "DSCL_KEYS_FILE": str(keys),
        "FORWARDED_ALLOW_IPS": "*",
        "DSCL_CACHE": str(folder / "cache"),
    }
    with ExitStack() as stack:
        gallery = stack.enter_context(copied(gallery_folder, folder))
        servers = []
        for name in ("one", "other"):
            (folder / name).mkdir()
            servers.append(
                stack.enter_context(serving(gallery, folder / name, "--threads=1", **environment))
            )
        ports = [server.client.base_url.port or 0 for server in servers]
        proxy = stack.enter_context(proxying(ports))
        replicas = Replicas(servers, proxy, gallery, reading)
        for client in replicas.all:
            client.headers["Authorization"] = f"Bearer {writing}"
        yield replicas


def slow_archive() -> bytes:
    """A zip of labelled photos that takes a core most of a minute."""
    return zip_of({f"audi/{name}": data for name, data in slow_photos(100).items()})


def start_slow_job(replicas: Replicas) -> str:
    """An evaluation that somebody runs by now; its path."""
    started = replicas.proxy.post(
        "/evaluate/upload?background=true", files={"file": slow_archive()}
    )
    assert started.status_code == 202, started.text
    path = started.headers["Location"]
    eventually(lambda: replicas.proxy.get(path).json()["state"] == "running" or None)
    return path


def test_what_is_changed_through_the_proxy_is_found_through_every_replica(
    replicas: Replicas,
) -> None:
    photo = photo_bytes(7000)
    added = send(replicas.proxy, photo, label="new", attributes={"year": 1999}).json()
    for client in replicas.all:
        # The other process finds it soon rather than at once.
        eventually(lambda client=client: nearest(client, photo)["id"] == added["id"] or None)
        assert client.get(f"/items/{added['id']}").json() == added
        assert client.get(f"/items/{added['id']}/image").content == photo
        found = client.post("/search", params={"where": '{"year": 1999}'}, files={"file": photo})
        assert [result["id"] for result in found.json()["results"]] == [added["id"]]
    [_, one, other] = replicas.all
    assert other.patch(f"/items/{added['id']}", json={"label": "newer"}).status_code == 200

    def relabelled() -> bool | None:
        return one.get(f"/items/{added['id']}").json()["label"] == "newer" or None

    eventually(relabelled)
    assert one.delete(f"/items/{added['id']}").status_code == 204

    def gone() -> bool | None:
        return other.get(f"/items/{added['id']}").status_code == 404 or None

    eventually(gone)
    eventually(lambda: nearest(other, photo)["id"] != added["id"] or None)


def test_keys_work_at_every_replica(replicas: Replicas) -> None:
    for client in replicas.all:
        for _ in range(2):  # of the proxy: at each
            anonymous = client.get("/items", headers={"Authorization": ""})
            check_problem(anonymous, 401, "key_missing")
            reading = {"Authorization": f"Bearer {replicas.read_key}"}
            assert client.get("/items", headers=reading).status_code == 200
            refused = client.delete("/items/1", headers=reading)
            check_problem(refused, 403, "scope_missing")
            check_problem(client.delete("/items/999999"), 404, "item_not_found")


def test_a_job_is_seen_and_cancelled_at_the_replica_that_does_not_run_it(
    replicas: Replicas,
) -> None:
    path = start_slow_job(replicas)
    other = replicas.servers[1 - replicas.owner()].client
    for client in replicas.all:
        assert client.get(path).json()["state"] == "running"
        assert path.endswith(client.get("/jobs").json()["jobs"][0]["id"])
    with other.stream("GET", f"{path}/events") as events:
        told = (json.loads(line[5:]) for line in events.iter_lines() if line.startswith("data:"))
        assert next(told)["state"] == "running"
        assert next(told)["progress"]["done"] > 0  # it goes on
        assert other.delete(path).status_code == 200
        last = list(told)[-1]
    assert last["state"] == "cancelled"
    for client in replicas.all:
        assert client.get(path).json() == last


def test_a_killed_replica_leaves_searches_to_the_other_and_its_job_reads_as_interrupted(
    replicas: Replicas,
) -> None:
    path = start_slow_job(replicas)
    place = replicas.owner()
    lost, left = replicas.servers[place], replicas.servers[1 - place]
    lost.process.kill()
    lost.process.wait()
    photo = photo_bytes(1)
    for _ in range(6):
        answer = replicas.proxy.post("/search", files={"file": photo})
        assert answer.status_code == 200, answer.text
    assert left.client.get(path).json()["state"] == "running"  # as far as anybody knows
    # Two minutes later, which the test does not wait for:
    with Gallery.open(replicas.gallery) as gallery:
        assert gallery.notes is not None
        key = path.strip("/")
        note = json.loads(gallery.notes.get(key) or "")
        heard = datetime.fromisoformat(note["beat"]) - timedelta(seconds=GONE_S)
        gallery.notes.put(key, json.dumps(note | {"beat": heard.isoformat()}))
    job = left.client.get(path).json()
    assert (job["state"], job["problem"]["code"]) == ("interrupted", "interrupted")
    assert job["finished"]
