"""What a gallery costs: building, searching, memory, opening, adding, evaluating.

    python benchmarks/gallery.py
    python benchmarks/gallery.py --rows search,filter --work /mnt/disk/gallery-benchmark

Each row is measured against the bare thing, in turns in one run, or in plain units where there is
nothing to hold it against:

- build: photos a second, from files to a durable gallery, against the model's forward pass alone on
  the same photos, decoded before; as many threads for both;
- search: single queries through ``Gallery.search`` against FAISS's exact index, one thread;
- memory: what a process that has searched the gallery holds beyond one with an empty gallery, all
  files that it maps counted wholly, against the vectors as float32;
- filter: the same search among 1 % of the items, against the search among all;
- open: until a new process has its first result, imports aside, files in the page cache;
- add: items a second in durable batches of 64, vectors given;
- evaluate: ``index.evaluate`` against pytorch-metric-learning's AccuracyCalculator, one thread.

Searches and evaluations are timed by CPU time, all else by the clock. Photos and model are made
here (``--images`` and ``--model`` take others). Vectors are drawn as ``clustered`` says, which is
printed; real ones may be easier or harder to index. What was made is kept in ``--work``, which must
lie on the disk that is to be measured, for the next run. Writes gallery.json beside the table that
it prints.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
from measuring import compare, in_turns
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from index import Gallery, Model, NewItem, build, evaluate, list_photos
from index.approximate import EXACT_LIMIT, RequestedKind
from index.base_files import read_base
from index.catalog import Catalog
from index.gallery import VECTORS_FOLDER
from index.parallel import check_workers, in_order

T = TypeVar("T")

K = 10
TARGETS = (0.95, 0.99)

#: Items of one durable add.
BATCH = 64

#: Vectors drawn, and items stored, at a time when the large gallery is made.
BLOCK = 50_000

#: Every hundredth item has the same value of this attribute.
ATTRIBUTE = "hundredth"
WHERE = {ATTRIBUTE: 7}

GOALS = {
    "build: photos/s, gallery / forward pass alone": ">= 0.9",
    "search at recall@10 >= 0.95: flat / gallery": ">= 150",
    "search at recall@10 >= 0.99: flat / gallery": ">= 60",
    "memory: gallery / float32": "<= 1.15",
    "filter: search among all / among 1 %": ">= 0.5",
    "open": "< 2 s",
    "add: to an empty gallery": ">= 2000/s",
    "add: to the large gallery": ">= 2000/s",
    "evaluate: time, gallery / AccuracyCalculator": "<= 1.0",
    "evaluate: largest difference of P@1 and MAP@R": "<= 1e-6",
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    vectors: int  #: of the large gallery
    queries: int  #: of a round, and those that recall is measured on
    flat_queries: int  #: of a round, where all vectors are compared
    batches: int  #: of a round of adds
    evaluated: int  #: items evaluated
    backbone: str  #: of the model that is made here
    dim: int
    classes: int  #: photos drawn: models of car …
    per_class: int  #: … and photos of each …
    side: int  #: … this wide
    rounds: int


FULL = Sizes(
    vectors=1_000_000,
    queries=500,
    flat_queries=20,
    batches=64,
    evaluated=20_000,
    backbone="mobilenet_v2",
    dim=128,
    classes=20,
    per_class=20,
    side=512,
    rounds=5,
)

#: Enough to see that everything works; the figures mean nothing.
QUICK = Sizes(
    vectors=6000,
    queries=20,
    flat_queries=5,
    batches=2,
    evaluated=600,
    backbone="small_cnn",
    dim=16,
    classes=2,
    per_class=10,
    side=64,
    rounds=1,
)


@dataclass(frozen=True)
class Bench:
    """What the rows share."""

    sizes: Sizes
    images: Path
    model: Model
    work: Path

    @property
    def dim(self) -> int:
        return self.model.card.dim

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the disk that is measured, for the time being."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            yield Path(folder)

    def large(self) -> Path:
        """The gallery of the large rows, made if it is not there."""
        n = self.sizes.vectors
        path = self.work / f"gallery-{n}x{self.dim}-{self.model.sha256[:8]}"
        if not path.exists():
            tell(f"making a gallery of {n:,} vectors …")
            with self.scratch() as folder:
                make_large(folder / "gallery", self)
                (folder / "gallery").replace(path)
        return path

    def queries(self) -> NDArray[np.float32]:
        """Vectors drawn as those of the large gallery are, but not in it."""
        return clustered(self.sizes.vectors, self.sizes.queries, self.dim, seed=1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {','.join(ROWS)}")
    parser.add_argument("--images", type=Path, help="photos to build from; default: drawn here")
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work at all?")
    parser.add_argument("--work", type=Path, default=Path("runs/gallery-benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if unknown := set(names) - set(ROWS):
        raise SystemExit(f"no row is called {', '.join(sorted(unknown))}: take {','.join(ROWS)}.")
    sizes = QUICK if arguments.quick else FULL
    arguments.work.mkdir(parents=True, exist_ok=True)
    images = arguments.images or drawn_photos(arguments.work, sizes)
    model = Model.load(arguments.model or made_model(arguments.work, sizes, images))
    bench = Bench(sizes, images, model, arguments.work)
    vectors = (
        f"{sizes.vectors:,} × {bench.dim}, around {centres_of(sizes.vectors):,} random centres, "
        "100 to each on average; they spread around a centre as far as the centres lie apart, so "
        "two of one centre have a cosine of about 0.5. Queries are drawn in the same way."
    )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, faiss {faiss.__version__}"
    figures: dict[str, Any] = {}
    with threadpool_limits(1):
        for name, row in ROWS.items():  # in this order, see ``ROWS``
            if name in names:
                figures |= row(bench)
    report = {
        "command": f"python {' '.join(Path(argument).name for argument in sys.argv)}",
        "machine": machine,
        "model": model.card.name,
        "vectors": vectors,
        "sizes": asdict(sizes),
        "figures": figures,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gallery.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{machine}, model {model.card.name}\nvectors: {vectors}")
    print("| | measured | goal |\n|---|---|---|")
    for name, figure in figures.items():
        value = figure["ratio"] if "ratio" in figure else figure["median"]
        print(f"| {name} | {value:.4g} {figure['note']} | {GOALS[name]} |")
    if arguments.quick:
        print("--quick: these figures mean nothing")


# What is measured


def build_row(bench: Bench) -> dict[str, Any]:
    """From photo files to a durable gallery, and what the forward passes of it take alone."""
    photos = list_photos(bench.images)
    workers = check_workers(None)
    decoded = [bench.model.prepare(photo.file) for photo in photos]

    def whole() -> float:
        with bench.scratch() as folder:
            began = time.perf_counter()
            with Gallery.create(folder / "gallery", bench.model) as gallery:
                report = build(gallery, list_photos(bench.images), workers=workers)
                gallery.settle()
            seconds = time.perf_counter() - began
        if report.added != len(photos) or report.duplicates:
            raise SystemExit(
                f"of {len(photos)} photos {report.added} were added and {len(report.duplicates)} "
                "are copies: take readable photos that differ."
            )
        return len(photos) / seconds

    def forward() -> float:
        began = time.perf_counter()
        for _ in in_order(lambda pixels: bench.model.embed(pixels[None]), decoded, workers):
            pass
        return len(photos) / (time.perf_counter() - began)

    def read() -> float:
        began = time.perf_counter()
        for _ in in_order(lambda photo: bench.model.prepare(photo.file), photos, workers):
            pass
        return len(photos) / (time.perf_counter() - began)

    rates = in_turns({"whole": whole, "forward": forward, "read": read}, bench.sizes.rounds)
    name = "build: photos/s, gallery / forward pass alone"
    figure = compare(name, rates["whole"], rates["forward"], "1/s")
    decoding = statistics.median(rates["read"])
    figure[name] |= {
        "note": f"({workers} threads; reading and decoding alone: {decoding:.0f}/s)",
        "reading_and_decoding": rates["read"],
        "photos": len(photos),
        "threads": workers,
    }
    return figure


def search_row(bench: Bench) -> dict[str, Any]:
    """Single queries at two recalls, against comparing all vectors."""
    path, queries = bench.large(), bench.queries()
    flat, ids = flat_index(path)
    truth = ids[flat.search(queries, K)[1]]
    figures: dict[str, Any] = {}
    with Gallery.open(path, writable=True) as gallery:
        for target in TARGETS:
            info = gallery.tune(target)
            times = in_turns(
                {
                    "flat": partial(
                        per_query, lambda q: flat.search(q, K), queries[: bench.sizes.flat_queries]
                    ),
                    "gallery": partial(per_query, lambda q: gallery.search(q, K), queries),
                },
                bench.sizes.rounds,
            )
            reached = recall([gallery.search(query, K).ids[0] for query in queries], truth)
            name = f"search at recall@10 >= {target}: flat / gallery"
            figures |= compare(name, times["flat"], times["gallery"], "µs")
            figures[name] |= {
                "note": f"({info.kind}, recall@10 {reached:.4f} on other queries)",
                "recall": reached,
                "recall_promised": info.recall,
                "kind": info.kind,
                "parameters": asdict(info.parameters),
            }
    return figures


def memory_row(bench: Bench) -> dict[str, Any]:
    """Resident memory of processes of their own: one with the gallery, one with an empty one."""
    path, queries = bench.large(), bench.queries()
    raw = 4 * bench.sizes.vectors * bench.dim / 2**20
    with bench.scratch() as folder:
        Gallery.create(folder / "empty", bench.model).close()
        without = in_a_new_process(memory_of, folder / "empty", queries)
    held = {
        name: mb - without[name] for name, mb in in_a_new_process(memory_of, path, queries).items()
    }
    name = "memory: gallery / float32"
    figure = compare(name, [held["mapped"]], [raw], "MiB")
    figure[name] |= {
        "note": f"({held['resident'] / raw:.2f} in memory after {len(queries)} queries, "
        f"{held['peak'] / raw:.2f} at the peak)",
        "held": held,
    }
    return figure


def filter_row(bench: Bench) -> dict[str, Any]:
    """The same queries among all items, and among the hundredth of them that a filter matches."""
    path, queries = bench.large(), bench.queries()
    flat, ids = flat_index(path)
    match = np.flatnonzero(item_number(ids) % 100 == WHERE[ATTRIBUTE])
    among = faiss.IndexFlatIP(bench.dim)
    among.add(flat.reconstruct_batch(match))
    truths = {
        "all": ids[flat.search(queries, K)[1]],
        "filtered": ids[match][among.search(queries, K)[1]],
    }
    with Gallery.open(path) as gallery:
        began = time.thread_time()
        gallery.search(queries[0], K, where=WHERE)
        first = 1e6 * (time.thread_time() - began)
        searches: dict[str, Callable[[NDArray[np.float32]], Any]] = {
            "all": lambda query: gallery.search(query, K),
            "filtered": lambda query: gallery.search(query, K, where=WHERE),
        }
        times = in_turns(
            {name: partial(per_query, each, queries) for name, each in searches.items()},
            bench.sizes.rounds,
        )
        reached = {
            name: recall([each(query).ids[0] for query in queries], truths[name])
            for name, each in searches.items()
        }
    name = "filter: search among all / among 1 %"
    figure = compare(name, times["all"], times["filtered"], "µs")
    figure[name] |= {
        "note": f"(recall@10 {reached['all']:.4f} / {reached['filtered']:.4f}; "
        f"the first search by a filter {first / 1000:.0f} ms)",
        "recall": reached["all"],
        "recall_filtered": reached["filtered"],
        "first_us": first,
        "matching": len(match),
    }
    return figure


def open_row(bench: Bench) -> dict[str, Any]:
    """Seconds until a new process has a result."""
    path, queries = bench.large(), bench.queries()
    times = in_turns(
        {"open": lambda: in_a_new_process(first_result, path, queries[0])}, bench.sizes.rounds
    )
    return plain("open", times["open"], "s")


def add_row(bench: Bench) -> dict[str, Any]:
    """Durable batches, to an empty gallery and to the large one."""
    vectors, _ = clustered(bench.sizes.vectors, bench.sizes.batches * BATCH, bench.dim, seed=2)
    batches = [
        [new_item("added", start + i, vector) for i, vector in enumerate(vectors[start:][:BATCH])]
        for start in range(0, len(vectors), BATCH)
    ]

    def add(gallery: Gallery) -> float:
        began = time.perf_counter()
        ids = [item_id for batch in batches for item_id in gallery.add(batch)]
        seconds = time.perf_counter() - began
        gallery.remove(ids)
        return len(ids) / seconds

    def add_to_empty() -> float:
        with (
            bench.scratch() as folder,
            Gallery.create(folder / "gallery", bench.model) as gallery,
        ):
            return add(gallery)

    with Gallery.open(bench.large(), writable=True) as large:
        rates = in_turns(
            {"an empty gallery": add_to_empty, "the large gallery": lambda: add(large)},
            bench.sizes.rounds,
        )
    return plain("add: to an empty gallery", rates["an empty gallery"], "1/s") | plain(
        "add: to the large gallery", rates["the large gallery"], "1/s"
    )


def evaluate_row(bench: Bench) -> dict[str, Any]:
    """P@1 and MAP@R of all items against all."""
    # Wide apart, so that many answers are wrong.
    vectors, labels = clustered(
        bench.sizes.evaluated, bench.sizes.evaluated, bench.dim, seed=3, spread=2.5
    )
    # It brings torch, and changes how FAISS searches: after all rows that search.
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    torch.set_num_threads(1)
    metrics = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=metrics, k="max_bin_count", device=torch.device("cpu"))
    found: dict[str, tuple[float, float]] = {}

    def ours() -> float:
        began = time.process_time()
        figures = evaluate(vectors, labels, ks=(1,))
        found["ours"] = figures.recall[1], figures.map_at_r
        return time.process_time() - began

    def theirs() -> float:
        began = time.process_time()
        figures = calculator.get_accuracy(vectors, labels)
        found["theirs"] = figures[metrics[0]], figures[metrics[1]]
        return time.process_time() - began

    times = in_turns({"ours": ours, "theirs": theirs}, bench.sizes.rounds)
    name = "evaluate: time, gallery / AccuracyCalculator"
    figure = compare(name, times["ours"], times["theirs"], "s")
    p, map_at_r = found["ours"]
    figure[name]["note"] = f"({bench.sizes.evaluated:,} items, P@1 {p:.3f}, MAP@R {map_at_r:.3f})"
    difference = max(abs(a - b) for a, b in zip(found["ours"], found["theirs"], strict=True))
    return figure | plain("evaluate: largest difference of P@1 and MAP@R", [difference], "")


#: In the order in which they are measured: ``evaluate`` comes after all that search.
ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "build": build_row,
    "search": search_row,
    "memory": memory_row,
    "filter": filter_row,
    "open": open_row,
    "add": add_row,
    "evaluate": evaluate_row,
}


# In processes of their own


def memory_of(path: Path, queries: NDArray[np.float32]) -> dict[str, float]:
    """MiB that this process holds once it has searched a gallery.

    ``resident`` is what is in memory now, ``mapped`` what would be if each page were that this
    process maps of the gallery's files; ``peak`` is the most that was.
    """
    with Gallery.open(path) as gallery:
        for query in queries:
            gallery.search(query, K)
        status = Path("/proc/self/status").read_text()
        maps = Path("/proc/self/smaps").read_text().splitlines()
    resident, peak = (
        int(status.partition(f"{name}:")[2].split(maxsplit=1)[0]) for name in ("VmRSS", "VmHWM")
    )
    inside, outside = False, 0
    for line in maps:
        name, _, rest = line.partition(":")
        if " " in name:  # the first line of a mapping, which ends in its file
            inside = str(path.absolute()) in line
        elif inside and name in ("Size", "Rss"):
            outside += int(rest.split()[0]) * (1 if name == "Size" else -1)
    return {
        "resident": resident / 1024,
        "mapped": (resident + outside) / 1024,
        "peak": peak / 1024,
    }


def first_result(path: Path, query: NDArray[np.float32]) -> float:
    """Seconds from opening a gallery to the first result."""
    began = time.perf_counter()
    with Gallery.open(path) as gallery:
        gallery.search(query, K)
        return time.perf_counter() - began


def in_a_new_process(function: Callable[..., T], *arguments: Any) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# What is measured with


def centres_of(n: int) -> int:
    return max(2, n // 100)


def clustered(
    n: int, count: int, dim: int, *, seed: int, spread: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors [count, dim] of a population of n, and the centre that each belongs to.

    Centres are normally distributed, one for every 100 of the population; a vector is a centre of
    equal chance plus normally distributed noise, ``spread`` times as wide as the centres lie.
    """
    centres = np.random.default_rng(0).standard_normal((centres_of(n), dim), np.float32)
    rng = np.random.default_rng((seed, 1))
    labels = rng.integers(0, len(centres), count)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, BLOCK):
        block = vectors[start : start + BLOCK]
        block[:] = spread * rng.standard_normal(block.shape, np.float32)
        block += centres[labels[start : start + BLOCK]]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vectors, labels


def new_item(folder: str, number: int, vector: NDArray[np.float32]) -> NewItem:
    """An item without a photo."""
    return NewItem(
        root=Path("/nowhere"),
        path=f"{folder}/{number}.jpg",
        sha256=f"{folder}-{number}",
        size=1,
        mtime_ns=1,
        label=None,
        attributes={ATTRIBUTE: number % 100},
        vector=vector,
    )


def item_number(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the large gallery's items: they were stored in order, by ids from 1."""
    return ids - 1


def make_large(path: Path, bench: Bench) -> None:
    n = bench.sizes.vectors
    vectors, _ = clustered(n, n, bench.dim, seed=0)
    kind: RequestedKind = "auto" if n > EXACT_LIMIT else "ivf"
    Gallery.create(path, bench.model, index_kind=kind).close()
    # Past the gallery, which would build its index anew again and again on the way.
    catalog = Catalog(path, writable=True)
    for start in range(0, n, BLOCK):
        block = vectors[start : start + BLOCK]
        catalog.insert([new_item("stock", start + i, vector) for i, vector in enumerate(block)])
    catalog.close()
    with Gallery.open(path, writable=True) as gallery:
        gallery.settle()


def flat_index(path: Path) -> tuple[faiss.IndexFlatIP, NDArray[np.int64]]:
    """FAISS's exact index over the vectors of a gallery, and their ids."""
    base = read_base(path / VECTORS_FOLDER)
    assert base is not None
    flat = faiss.IndexFlatIP(base.vectors.shape[1])
    flat.add(base.vectors)
    return flat, base.ids


def drawn_photos(work: Path, sizes: Sizes) -> Path:
    from training.render import render_dataset

    path = work / f"photos-{sizes.classes}x{sizes.per_class}-{sizes.side}"
    if not path.exists():
        tell("drawing photos …")
        render_dataset(
            path, classes=sizes.classes, per_class=sizes.per_class, size=sizes.side, seed=0
        )
    return path


def made_model(work: Path, sizes: Sizes, images: Path) -> Path:
    """A model with random weights, which computes what a trained one does."""
    path = work / f"{sizes.backbone}-{sizes.dim}"
    if not path.exists():
        tell("exporting a model …")
        in_a_new_process(export_model, path, sizes, images)
    return path


def export_model(path: Path, sizes: Sizes, images: Path) -> None:
    # Here, for it brings torch.
    from training.frozen import export_frozen

    export_frozen(sizes.backbone, out=path, weights="none", whiten_on=images, dim=sizes.dim)


# Measuring


def per_query(search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> float:
    """Microseconds of this thread's CPU time for a query, given one by one."""
    began = time.thread_time()
    for query in queries:
        search(query[None])
    return 1e6 * (time.thread_time() - began) / len(queries)


def recall(found: Sequence[NDArray[np.int64]], truth: NDArray[np.int64]) -> float:
    hits = [len(np.intersect1d(f, t)) for f, t in zip(found, truth, strict=True)]
    return float(np.mean(hits) / truth.shape[1])


def plain(name: str, values: list[float], unit: str) -> dict[str, Any]:
    median = statistics.median(values)
    tell(f"{name}: {median:.4g} {unit}")
    return {name: {"median": median, "unit": unit, "note": unit, "values": values}}


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
