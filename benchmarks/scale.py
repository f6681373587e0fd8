"""What scaling out costs and gives: a gallery on Milvus, copies, replicas, embedding by workers.

    python scripts/with_milvus.py python benchmarks/scale.py
    python scripts/with_milvus.py python benchmarks/scale.py --rows search,copy --work runs/scale

- search: one query through ``Gallery.search`` on Milvus against the same by pymilvus alone, at the
  same consistency and effort;
- copy: `dscl gallery copy` of a folder to Milvus, and of that to another folder: what differs then
  in ids, attributes, vectors and in the results of exact searches, and how long it takes;
- replicas: searches by photo through nginx, of two replicas of one thread against one of two, on
  one Milvus;
- embed: `dscl index build` with two workers against one, by threads and by processes.

What is compared takes turns. The server is that of DSCL_TEST_MILVUS or ``--milvus``; its load
shares the cores with everything else, as it does not where Milvus has machines of its own. Ratios
by CPU time are of the compared processes alone. The model has random weights, photos are drawn.
Writes scale.json beside the table that it prints; rows that are left out keep their figures there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import compare, in_turns, interleaved
from numpy.typing import NDArray
from service_setup import DIM, item, make_model, make_photos, make_vectors
from serving import DSCL, HERE, Process, dscl_serve, nginx_before

from index import Gallery
from index.address import MilvusAddress, parse_address
from index.approximate import RequestedKind
from index.milvus_client import MilvusConnection
from index.milvus_search import DEFAULT_EF

K = 10

#: Of items that lie nearer to each other than this, each engine may take either.
ROUNDING = 1e-6

#: Items stored at a time.
BLOCK = 5000

SEARCH = "search: p50, gallery / pymilvus alone"
DIFFERENCES = "copy: items that differ after folder, Milvus, folder"
NEIGHBOURS = "copy: exact searches that find other neighbours"
TO_MILVUS = "copy: items/s, folder to Milvus"
TO_FOLDER = "copy: items/s, Milvus to folder"
REPLICAS = "replicas: searches/s, two of one thread / one of two"
EMBED = "embed: photos/s, two {} / one"

GOALS: dict[str, tuple[str, Callable[[float], bool]]] = {
    SEARCH: ("<= 1.10", lambda value: value <= 1.10),
    DIFFERENCES: ("0", lambda value: value == 0),
    NEIGHBOURS: ("0", lambda value: value == 0),
    REPLICAS: (">= 0.95", lambda value: value >= 0.95),
    EMBED.format("threads"): (">= 1.8", lambda value: value >= 1.8),
    EMBED.format("processes"): (">= 1.8", lambda value: value >= 1.8),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    items: int
    queries: int  #: of a round of searches, and those whose neighbours are compared
    seconds: float  #: of each run of a load
    clients: int
    photos: int  #: that are embedded
    rounds: int


FULL = Sizes(items=100_000, queries=200, seconds=10, clients=8, photos=6000, rounds=5)

#: Enough to see that everything works; the figures mean nothing.
QUICK = Sizes(items=2000, queries=20, seconds=2, clients=4, photos=64, rounds=1)


@dataclass(frozen=True)
class Bench:
    """What the rows share."""

    sizes: Sizes
    milvus: str  #: host:port
    work: Path
    scratch: Path
    model: Path

    @property
    def vectors(self) -> NDArray[np.float32]:
        return make_vectors(self.work / f"vectors-{self.sizes.items}.npy", self.sizes.items)

    def queries(self) -> NDArray[np.float32]:
        """Vectors near those of some items, one for each of them."""
        rng = np.random.default_rng(1)
        chosen = rng.choice(self.sizes.items, self.sizes.queries, replace=False)
        noisy = self.vectors[chosen] + rng.normal(scale=0.02, size=(self.sizes.queries, DIM))
        lengths = np.linalg.norm(noisy, axis=1, keepdims=True)
        near: NDArray[np.float32] = (noisy / lengths).astype(np.float32)
        return near

    @contextmanager
    def address(self) -> Iterator[MilvusAddress]:
        """Of a gallery that does not exist yet, and is removed in the end."""
        address = parse_address(f"milvus://{self.milvus}/benchmark_{secrets.token_hex(4)}")
        assert isinstance(address, MilvusAddress)
        try:
            yield address
        finally:
            remove(address)

    def fill(self, where: Path | MilvusAddress, kind: RequestedKind) -> None:
        """Make a gallery of all vectors."""
        vectors = self.vectors
        with Gallery.create(where, self.model, index_kind=kind) as gallery:
            for first in range(0, len(vectors), BLOCK):
                part = vectors[first : first + BLOCK]
                gallery.add([item(self.work, first + n, vector) for n, vector in enumerate(part)])
            gallery.settle()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {','.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work at all?")
    parser.add_argument("--rounds", type=int, help=f"of what takes turns [{FULL.rounds}]")
    parser.add_argument("--milvus", default=os.environ.get("DSCL_TEST_MILVUS"), metavar="HOST:PORT")
    parser.add_argument("--work", type=Path, help="keep model, photos and vectors in this folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if unknown := set(names) - set(ROWS):
        raise SystemExit(f"no row is called {', '.join(sorted(unknown))}: take {','.join(ROWS)}.")
    if not arguments.milvus and set(names) - {"embed"}:
        raise SystemExit(
            "no Milvus server: run `python scripts/with_milvus.py python benchmarks/scale.py …`, "
            "or name one with --milvus HOST:PORT."
        )
    sizes = QUICK if arguments.quick else FULL
    if arguments.rounds:
        sizes = Sizes(**asdict(sizes) | {"rounds": arguments.rounds})
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        os.environ["DSCL_CACHE"] = str(work.absolute() / "cache")
        model = make_model(work.absolute() / "model", "none")
        bench = Bench(sizes, arguments.milvus or "", work.absolute(), Path(scratch), model)
        for name, row in ROWS.items():
            if name in names:
                tell(f"{name} …")
                figures |= row(bench)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    for figure in figures.values():
        figure |= {"date": datetime.date.today().isoformat(), "machine": machine}
    file = arguments.out / "scale.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["quick"] == arguments.quick:
            figures = before["figures"] | figures
    report = {"quick": arguments.quick, "sizes": asdict(sizes), "figures": figures}
    arguments.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))


def table(report: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    lines = ["| | measured | by CPU time | goal | met |", "|---|---|---|---|---|"]
    for name, figure in report["figures"].items():
        value = figure.get("ratio", figure.get("value"))
        by_cpu = f"{figure['by_cpu']:.3g}" if "by_cpu" in figure else ""
        goal, met = GOALS.get(name, ("", None))
        said = "" if met is None else "yes" if met(value) else "no"
        note = f" {figure['note']}" if "note" in figure else ""
        lines.append(f"| {name} | {value:.4g}{note} | {by_cpu} | {goal} | {said} |")
    if report["quick"]:
        lines.append("\n--quick: these figures mean nothing")
    return "\n".join(lines)


# What is measured


def search_row(bench: Bench) -> dict[str, Any]:
    """Single queries, by the gallery and by its client alone."""
    queries = bench.queries()
    with bench.address() as address:
        bench.fill(address, "hnsw")
        with Gallery.open(address) as gallery:
            connection = MilvusConnection(address)
            client = connection._client  # pymilvus.MilvusClient itself

            def bare(query: NDArray[np.float32]) -> object:
                return client.search(
                    address.name,
                    data=[query],
                    anns_field="vector",
                    limit=K,
                    output_fields=["id"],
                    search_params={"metric_type": "IP", "params": {"ef": DEFAULT_EF}},
                    consistency_level=address.consistency,
                )

            def through(query: NDArray[np.float32]) -> object:
                return gallery.search(query, K)

            times = interleaved({"gallery": through, "bare": bare}, queries, bench.sizes.rounds)
            connection.close()
    figure = compare(SEARCH, times["gallery"], times["bare"], "ms")
    added = statistics.median(times["gallery"]) - statistics.median(times["bare"])
    figure[SEARCH]["note"] = (
        f"({statistics.median(times['bare']):.2f} ms alone, {added:+.2f} ms; {bench.sizes.items:,} "
        f"items, HNSW, consistency {address.consistency})"
    )
    return figure


def copy_row(bench: Bench) -> dict[str, Any]:
    """Folder → Milvus → folder, and what came of it."""
    here, back = bench.scratch / "original", bench.scratch / "back"
    bench.fill(here, "flat")
    n = bench.sizes.items
    with bench.address() as address:
        seconds = []
        for source, target in ((str(here), address.url), (address.url, str(back))):
            began = time.perf_counter()
            dscl("gallery", "copy", source, target)
            seconds.append(time.perf_counter() - began)
        with ExitStack() as opened:
            galleries = [opened.enter_context(Gallery.open(at)) for at in (here, address, back)]
            differing = differences(galleries)
            queries = bench.queries()
            scores = [nearness(gallery, queries) for gallery in galleries]
    others = sum(np.ptp(each, axis=0).max() > ROUNDING for each in zip(*scores, strict=True))
    for folder in (here, back):
        shutil.rmtree(folder)
    return {
        DIFFERENCES: {"value": differing, "note": f"(of {n:,})"},
        NEIGHBOURS: {"value": int(others), "note": f"(of {len(queries)}, k = {K})"},
        TO_MILVUS: {"value": n / seconds[0]},
        TO_FOLDER: {"value": n / seconds[1]},
    }


def differences(galleries: Sequence[Gallery]) -> int:
    """How many items are not the same in all galleries, vectors included."""
    lost = 0
    first, *others = galleries
    known = first.ids()
    for other in others:
        lost = max(lost, len(np.setxor1d(known, other.ids())))
    differing = 0
    for start in range(0, len(known), BLOCK):
        ids = known[start : start + BLOCK].tolist()
        held = [list(zip(each.get(ids), each.vectors(ids), strict=True)) for each in galleries]
        for same in zip(*held, strict=True):
            (one, vector), *copies = same
            differing += any(
                copy != one or not np.array_equal(copied, vector) for copy, copied in copies
            )
    return lost + differing


def nearness(gallery: Gallery, queries: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """How near the K results of each query are, computed from their vectors."""
    found = [gallery.search(query, K).ids[0].tolist() for query in queries]
    return [
        np.sort(gallery.vectors(ids).astype(np.float64) @ query)
        for ids, query in zip(found, queries, strict=True)
    ]


def replicas_row(bench: Bench) -> dict[str, Any]:
    """The same load on one service with two threads, and on two with one each."""
    if not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        raise SystemExit("no nginx: apt-get install nginx, or leave out the row `replicas`.")
    photos = make_photos(bench.work / "photos")
    with bench.address() as address, ExitStack() as running:
        bench.fill(address, "hnsw")
        sides: dict[str, Side] = {}
        for name, threads in (("one", [2]), ("two", [1, 1])):
            servers = []
            for number, each in enumerate(threads):
                folder = bench.scratch / f"{name}-{number}"
                folder.mkdir()
                servers.append(
                    running.enter_context(
                        dscl_serve(
                            address.url,
                            folder,
                            ["--threads", str(each)],
                            DSCL_CACHE=os.environ["DSCL_CACHE"],
                            FORWARDED_ALLOW_IPS="*",
                        )
                    )
                )
            folder = bench.scratch / f"{name}-nginx"
            port = running.enter_context(nginx_before([s.port for s in servers], folder))
            sides[name] = Side(servers, port, photos, bench.sizes)
        rates = in_turns({name: side.rate for name, side in sides.items()}, bench.sizes.rounds)
    figure = compare(REPLICAS, rates["two"], rates["one"], "1/s")
    # Of the round that warms up nothing is kept.
    by_cpu = [side.by_cpu[1:] for side in (sides["two"], sides["one"])]
    figure[REPLICAS] |= {
        "by_cpu": statistics.median(by_cpu[0]) / statistics.median(by_cpu[1]),
        "searches_per_cpu_s": by_cpu,
        "note": f"({bench.sizes.clients} clients; nginx, Milvus and clients on the same cores)",
    }
    return figure


class Side:
    """Services behind one nginx, and how fast they are."""

    def __init__(self, servers: list[Process], port: int, photos: Path, sizes: Sizes) -> None:
        self._servers = servers
        self._command = [
            sys.executable,
            str(HERE / "service_load.py"),
            *("--port", str(port), "--photos", str(photos)),
            *("--clients", str(sizes.clients), "--seconds", str(sizes.seconds)),
        ]
        self.by_cpu: list[float] = []  #: searches of each run in a second of the services' CPU time

    def rate(self) -> float:
        """Searches per second of one run, all of which must be answered."""
        before = self._cpu_s()
        done = subprocess.run(self._command, capture_output=True, text=True, check=True)
        ran = json.loads(done.stdout)
        if ran["broken"] or set(ran["statuses"]) != {"200"}:
            raise SystemExit(f"some searches failed: {ran['statuses']}, {ran['broken']} broken.")
        count = len(ran["latencies_ms"])
        self.by_cpu.append(count / (self._cpu_s() - before))
        rate: float = count / ran["seconds"]
        return rate

    def _cpu_s(self) -> float:
        return sum(server.cpu_s() for server in self._servers)


def embed_row(bench: Bench) -> dict[str, Any]:
    """Photos from files to a gallery folder, by one worker and by two."""
    images = many_photos(bench)
    figures: dict[str, Any] = {}
    for engine in ("threads", "processes"):
        cpu: dict[int, list[float]] = {1: [], 2: []}

        def rate(workers: int, engine: str = engine, cpu: Any = cpu) -> float:
            with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
                began, used = time.perf_counter(), children_cpu_s()
                dscl(
                    *("index", "build", "--model", str(bench.model), "--images", str(images)),
                    *("--gallery", f"{folder}/gallery", "--engine", engine),
                    *("--workers", str(workers)),
                )
                seconds = time.perf_counter() - began
                cpu[workers].append(children_cpu_s() - used)
            return bench.sizes.photos / seconds

        rates = in_turns({"two": lambda r=rate: r(2), "one": lambda r=rate: r(1)},
                         bench.sizes.rounds)  # fmt: skip
        name = EMBED.format(engine)
        figure = compare(name, rates["two"], rates["one"], "1/s")
        # What two cores that nobody else used would give.
        figure[name] |= {
            "by_cpu": 2 * statistics.median(cpu[1][1:]) / statistics.median(cpu[2][1:]),
            "cpu_s": [cpu[2][1:], cpu[1][1:]],
            "note": f"({bench.sizes.photos:,} photos of 512 px, MobileNetV2, start included)",
        }
        figures |= figure
    return figures


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "search": search_row,
    "copy": copy_row,
    "replicas": replicas_row,
    "embed": embed_row,
}


# What is measured with


def many_photos(bench: Bench) -> Path:
    """As many files as are wanted, no two alike: what follows a picture is not decoded."""
    few = sorted(make_photos(bench.work / "photos").glob("*.jpg"))
    folder = bench.work / f"photos-{bench.sizes.photos}"
    if not folder.exists():
        fresh = Path(tempfile.mkdtemp(dir=bench.work))
        for number in range(bench.sizes.photos):
            data = few[number % len(few)].read_bytes() + number.to_bytes(4, "big")
            place = fresh / f"class-{number % 50:02}" / f"{number:05}.jpg"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)
        fresh.rename(folder)
    return folder


def dscl(*arguments: str) -> None:
    """Run a command to its end."""
    done = subprocess.run([sys.executable, *DSCL, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"dscl {' '.join(arguments)} failed: {done.stderr[-1000:]}")


def children_cpu_s() -> float:
    """CPU time of processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def remove(address: MilvusAddress) -> None:
    """Remove all that there is of a gallery on Milvus."""
    connection = MilvusConnection(address)
    try:
        if connection.has(address.name):
            connection.call("drop_alias", address.name)
        for each in connection.call("list_collections"):
            if each.startswith(f"{address.name}__"):
                connection.call("drop_collection", each)
    finally:
        connection.close()


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
