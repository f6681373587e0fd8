"""Plans for 1 million to 1 billion cars, from what is measured on this machine.

    OMP_NUM_THREADS=1 python benchmarks/plan_scale.py measure     minutes, on an idle machine
    python benchmarks/plan_scale.py plan                          fills docs/scale.md

``measure`` builds indexes of growing size, as galleries do, and tunes each to recall@10 >= 0.95:

- how long a query takes and a build, in CPU time on one thread, and how they grow with n;
- bytes in memory of vectors and index, bytes on disk of an item in the catalog;
- what becomes of recall and CPU time where the same vectors are searched in four shards.

Vectors are drawn as in ``benchmarks/gallery.py``. ``plan`` adds its figures for 1,000,000 vectors
and those of ``benchmarks/service.py``, extrapolates, and says so. Machines and prices are options.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from gallery import BATCH, K, clustered, new_item
from numpy.typing import NDArray
from scale_model import (
    Assumptions,
    Folder,
    IndexKind,
    Measured,
    PowerLaw,
    Sharded,
    fit_power_law,
    folder,
    sharded,
)
from threadpoolctl import threadpool_limits

from index import Gallery
from index.tuning import build_base
from index.vectors import VectorIndex

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
RESULT = "scale_plan.json"

TARGET = 0.95
DIM = 128
SHARDS = 4
QUERIES = 500

#: n of the indexes; the last of "ivf" is searched in shards, too.
SIZES: dict[IndexKind, tuple[int, ...]] = {
    "ivf": (50_000, 100_000, 200_000),
    "hnsw": (25_000, 50_000, 100_000),
}
QUICK: dict[IndexKind, tuple[int, ...]] = {"ivf": (4000, 8000), "hnsw": (2000, 4000)}

#: Items of the catalog whose bytes are counted.
CATALOG = 20_000
QUICK_CATALOG = 1280

PLANNED = (1e6, 1e7, 1e8, 1e9)

BEGIN, END = "<!-- plan -->", "<!-- /plan -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure on this machine")
    measuring.add_argument("--quick", action="store_true", help="small sizes: does it work at all?")
    measuring.add_argument("--out", type=Path, default=RESULTS)
    planning = commands.add_parser("plan", help="calculate from what was measured")
    planning.add_argument("--results", type=Path, default=RESULTS, help="folder of all figures")
    planning.add_argument("--document", type=Path, default=REPOSITORY / "docs" / "scale.md")
    for each in fields(Assumptions):
        option = f"--{each.name.replace('_', '-')}"
        kind = int if each.type == "int" else float
        planning.add_argument(option, type=kind, default=each.default, help=f"[{each.default}]")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        arguments.out.mkdir(parents=True, exist_ok=True)
        with threadpool_limits(1):
            faiss.omp_set_num_threads(1)
            report = measure(quick=arguments.quick)
        (arguments.out / RESULT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.out / RESULT}")
        return
    given = {each.name: getattr(arguments, each.name) for each in fields(Assumptions)}
    text = plan(arguments.results, Assumptions(**given))
    fill(arguments.document, text)
    print(text)


# Measuring


def measure(*, quick: bool) -> dict[str, Any]:
    """All that ``plan`` needs and other benchmarks do not measure."""
    sizes = QUICK if quick else SIZES
    points: dict[str, list[dict[str, Any]]] = {}
    for kind, each in sizes.items():
        points[kind] = []
        for n in each:
            tell(f"{kind}, {n:,} vectors …")
            points[kind].append(measure_index(kind, n))
    tell(f"{sizes['ivf'][-1]:,} vectors in {SHARDS} shards …")
    return {
        "command": f"python {' '.join(Path(argument).name for argument in sys.argv)}",
        "quick": quick,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, faiss {faiss.__version__}",
        "dim": DIM,
        "target_recall": TARGET,
        "indexes": points,
        "shards": measure_shards(sizes["ivf"][-1]),
        "catalog_bytes": measure_catalog(QUICK_CATALOG if quick else CATALOG),
    }


def measure_index(kind: IndexKind, n: int) -> dict[str, Any]:
    """Build an index over n vectors, and search it query by query."""
    vectors = drawn(n, n, seed=0)
    began = time.thread_time()
    base = build_base(np.arange(n), vectors, seq=0, kind=kind, target_recall=TARGET)
    build_s = time.thread_time() - began
    if base.ann is None:
        raise SystemExit(f"{kind} over {n:,} vectors does not reach recall {TARGET}.")
    index = VectorIndex.from_base(base)
    queries = drawn(n, QUERIES, seed=1)
    times = query_times(index, queries)
    found = np.concatenate([index.search(query[None], K)[0] for query in queries])
    # The graph holds the vectors; the cells hold codes beside them.
    beside = 0 if kind == "hnsw" else vectors.nbytes
    return {
        "n": n,
        "build_s": build_s,
        "recall": recall(found, exact(vectors, queries)),
        "bytes": (len(faiss.serialize_index(base.ann)) + beside) / n,
        "query_s": times.tolist(),
        "parameters": asdict(base.parameters),
    }


def measure_shards(n: int) -> dict[str, Any]:
    """The same queries to one index, and to indexes over parts of it whose results are merged."""
    vectors, queries = drawn(n, n, seed=0), drawn(n, QUERIES, seed=1)
    truth = exact(vectors, queries)
    parts = np.array_split(np.arange(n), SHARDS)
    indexes = [
        VectorIndex.from_base(
            build_base(ids, vectors[ids], seq=0, kind="ivf", target_recall=TARGET)
        )
        for ids in parts
    ]
    seconds = sum(query_times(index, queries).mean() for index in indexes)
    found = np.empty((len(queries), K), np.int64)
    for row, query in enumerate(queries):
        results = [index.search(query[None], K) for index in indexes]
        ids = np.concatenate([ids[0] for ids, _ in results])
        scores = np.concatenate([scores[0] for _, scores in results])
        found[row] = ids[np.argsort(-scores, kind="stable")[:K]]
    return {"n": n, "shards": SHARDS, "recall": recall(found, truth), "query_s": float(seconds)}


def measure_catalog(n: int) -> float:
    """Bytes on disk of an item in a gallery without an index, its vector included."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.tiny_model import make_model_folder

    vectors = drawn(n, n, seed=0)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "gallery"
        model = make_model_folder(Path(name) / "model", dim=DIM, size=64)
        with Gallery.create(path, model) as gallery:
            for start in range(0, n, BATCH):
                block = vectors[start : start + BATCH]
                gallery.add([new_item("p", start + i, vector) for i, vector in enumerate(block)])
        return sum(file.stat().st_size for file in path.glob("catalog.sqlite*")) / n


def query_times(index: VectorIndex, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """CPU seconds of each query, after a round that warms up."""
    times = np.empty(len(queries))
    for _ in range(2):
        for row, query in enumerate(queries):
            began = time.thread_time()
            index.search(query[None], K)
            times[row] = time.thread_time() - began
    return times


def drawn(n: int, count: int, *, seed: int) -> NDArray[np.float32]:
    """``count`` of a population of n, as ``benchmarks/gallery.py`` draws them."""
    vectors: NDArray[np.float32] = clustered(n, count, DIM, seed=seed)[0]
    return vectors


def exact(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows of the K nearest of each query, (q, K)."""
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    rows: NDArray[np.int64] = flat.search(queries, K)[1]
    return rows


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """The share of the nearest that were found."""
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / K for one, other in pairs]))


# Planning


def plan(results: Path, assumed: Assumptions) -> str:
    """The plan in Markdown.

    Raises:
        SystemExit: something has not been measured yet; says by what it is.
    """
    report = read(results, RESULT, "benchmarks/plan_scale.py measure")
    measured = gathered(
        report,
        read(results, "gallery.json", "benchmarks/gallery.py"),
        read(results, "service.json", "benchmarks/service.py"),
    )
    folders = [folder(n, measured, assumed) for n in PLANNED]
    kinds: tuple[IndexKind, ...] = ("ivf", "hnsw", "diskann")
    clusters = [sharded(n, kind, measured, assumed) for n in PLANNED[1:] for kind in kinds]
    return "\n\n".join(
        [
            f"By `benchmarks/plan_scale.py`, measured {report['date']} on {report['machine']}; "
            f"vectors of {measured.dim} values, recall@10 ≥ {TARGET}. "
            + ("**`--quick`: these figures mean nothing.** " if report["quick"] else "")
            + laws(measured),
            "**A gallery folder on one machine**",
            folder_table(folders),
            "**Milvus on several machines** "
            f"({assumed.cores} cores, {assumed.memory_gb:.0f} GB, {assumed.price_per_hour:g} an "
            f"hour each; {assumed.copies} copies of everything; {assumed.queries_per_s:.0f} "
            f"searches by photo a second; cores busy {assumed.busy:.0%}, memory filled to "
            f"{assumed.filled:.0%})",
            sharded_table(clusters),
            sharding(report),
        ]
    )


def gathered(report: Any, gallery: Any, service: Any) -> Measured:
    """What three benchmarks measured, in one place."""
    kinds: dict[IndexKind, Any] = report["indexes"]
    search: dict[IndexKind, PowerLaw] = {}
    for kind, points in kinds.items():
        sizes = [point["n"] for point in points]
        seconds = [statistics.mean(point["query_s"]) for point in points]
        if kind == "ivf" and not report["quick"]:  # a fourth point, ten times as far
            row = gallery["figures"][f"search at recall@10 >= {TARGET}: flat / gallery"]
            sizes.append(gallery["sizes"]["vectors"])
            seconds.append(statistics.median(row["against"]) / 1e6)
        search[kind] = fit_power_law(sizes, seconds)
    build = {
        kind: fit_power_law([p["n"] for p in points], [p["build_s"] for p in points])
        for kind, points in kinds.items()
    }
    largest = {kind: points[-1] for kind, points in kinds.items()}
    opened = gallery["figures"]["open"]["median"]
    n = gallery["sizes"]["vectors"]
    runs = service["measured"]["runs"]
    times = np.asarray(largest["ivf"]["query_s"])
    return Measured(
        dim=report["dim"],
        search_s=search,
        build_s=build,
        bytes_in_memory={kind: point["bytes"] for kind, point in largest.items()},
        disk_bytes=report["catalog_bytes"],
        recall={kind: point["recall"] for kind, point in largest.items()},
        request_s=1 / statistics.median(run["per_cpu_s"] for run in runs["service, 8 clients"]),
        embed_s=1 / statistics.median(run["per_cpu_s"] for run in runs["bare"]),
        add_per_s=gallery["figures"]["add: to the large gallery"]["median"],
        open_s=PowerLaw(opened / n, 1.0, 0.0, n),  # it reads the catalog once
        query_times=times / times.mean(),
    )


def laws(measured: Measured) -> str:
    """How search and build grow."""
    said = []
    for kind, law in measured.search_s.items():
        build = measured.build_s[kind]
        said.append(
            f"`{kind}`: a query's CPU time grows as n^{law.exponent:.2f} (measured to "
            f"{law.largest:,.0f}, {law.error:.0%} off at most), a build's as n^{build.exponent:.2f}"
        )
    return "; ".join(said) + ". What lies beyond is extrapolated."


def folder_table(rows: Sequence[Folder]) -> str:
    """One line for each size."""
    head = (
        "| items | memory | disk, photos aside | filling, vectors given | building the index, one "
        "core | opening | a query, one core | fits |\n|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| {row.items:,.0f} | {row.memory_gb:,.1f} GB | {row.disk_gb:,.1f} GB | "
        + (
            f"{hours(row.fill_h)} | {hours(row.rebuild_h)} | {row.open_s:,.0f} s | "
            f"{row.search_ms:,.2f} ms | yes |"
            if row.fits
            else "– | – | – | – | no |"
        )
        for row in rows
    )


def sharded_table(rows: Sequence[Sharded]) -> str:
    """One line for each size and kind of index."""
    head = (
        "| items | index | memory of a copy | shards | machines: data, service | recall@10 | a "
        "query, p50, p99 | embedding all photos | a million searches |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| {row.items:,.0f} | {row.kind} | {row.memory_gb:,.0f} GB"
        + (f", {row.disk_gb:,.0f} GB on SSD" if row.disk_gb else "")
        + f" | {row.shards} | {row.data_machines}, {row.service_machines} | "
        + ("not measured" if row.recall is None else f"{row.recall:.3f}")
        + " | "
        + (
            "not measured"
            if row.search_ms_p50 is None
            else f"{row.search_ms_p50:.1f}, {row.search_ms_p99:.1f} ms"
        )
        + f" | {row.embed_core_h:,.0f} core hours | {row.cost_per_million:,.2f} |"
        for row in rows
    )


def sharding(report: Any) -> str:
    """What four shards did to recall and CPU time."""
    shards, [*_, whole] = report["shards"], report["indexes"]["ivf"]
    ratio = shards["query_s"] / statistics.mean(whole["query_s"])
    return (
        f"{shards['n']:,} vectors in {shards['shards']} shards, each tuned by itself: recall@10 "
        f"{shards['recall']:.3f} (one index: {whole['recall']:.3f}), {ratio:.1f} × the CPU time."
    )


def hours(value: float) -> str:
    """A time in the unit that it is read in."""
    if value < 1 / 60:
        return f"{value * 3600:.0f} s"
    return f"{value * 60:.0f} min" if value < 2 else f"{value:,.0f} h"


def fill(document: Path, text: str) -> None:
    """Put the plan between its marks.

    Raises:
        SystemExit: the document has no such marks.
    """
    content = document.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document} has no {BEGIN} … {END} to be filled.")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def read(folder: Path, name: str, command: str) -> Any:
    """Figures of a benchmark."""
    path = folder / name
    if not path.exists():
        raise SystemExit(f"{path} is not there: run python {command} first.")
    return json.loads(path.read_text(encoding="utf-8"))


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
