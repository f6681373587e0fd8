"""What the web around the model costs: ``dscl serve`` against the bare loop and a naive peer.

    python benchmarks/service.py                        # all figures; 10 of its minutes endurance
    python benchmarks/service.py --quick                # does it run at all
    python benchmarks/service.py --serve "--workers 2"  # other settings of the service

Photos of 512 px, MobileNetV2 at 224 px, 100,000 vectors of 128 values, loopback. The load comes
from a process of its own that costs little CPU. What a ratio compares takes turns in one run; both
sides have the same runtime, precision, threads and gallery. Beside ratios of wall-clock time stand
those of CPU time, which other work on the machine hardly changes. Writes service.json beside the
table that it prints.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from service_setup import make_gallery, make_model, make_photos, make_vectors
from serving import HERE, Process, child, dscl_serve

RATE_8 = "requests/s at 8 clients / bare loop"
RATE_32 = "requests/s at 32 clients / bare loop"
ADDED = "latency added at 1 client, p50 (ms)"
PEER = "requests/s at 8 clients / naive FastAPI + eager torch"
TAIL = "p99 / p50 at 8 clients"
FLOOR = "the same by CPU time, where photos come to the bare loop over HTTP, too"
ERRORS = "errors under load with adds and removes"
GROWTH = "memory after the first minute, growth (%)"
START = "cold start to ready (s)"

GOALS: dict[str, tuple[str, Callable[[float], bool]]] = {
    RATE_8: (">= 0.95", lambda value: value >= 0.95),
    RATE_32: (">= 0.95", lambda value: value >= 0.95),
    FLOOR: ("", lambda value: value >= 0.95),
    ADDED: ("<= 1", lambda value: value <= 1),
    PEER: (">= 5", lambda value: value >= 5),
    TAIL: ("<= 2", lambda value: value <= 2),
    ERRORS: ("0", lambda value: value == 0),
    GROWTH: ("< 3", lambda value: value < 3),
    START: ("< 3", lambda value: value < 3),
}

#: Between two changes of the gallery while it is under load: an item comes, an older one goes.
CHANGE_EVERY_S = 0.5
KEPT = 20


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    items: int
    rounds: int
    seconds: float  #: of each measurement of a round
    endurance_s: float
    settled_s: float  #: of the endurance run, before memory is compared
    starts: int


FULL = Plan(items=100_000, rounds=5, seconds=10, endurance_s=600, settled_s=60, starts=5)
QUICK = Plan(items=2_000, rounds=1, seconds=2, endurance_s=8, settled_s=2, starts=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and short; not for quoting")
    parser.add_argument("--rounds", type=int, help=f"of interleaved runs [{FULL.rounds}]")
    parser.add_argument("--seconds", type=float, help=f"of each run [{FULL.seconds:g}]")
    parser.add_argument("--minutes", type=float, help="of endurance [10]; 0 leaves it out")
    parser.add_argument("--serve", default="", help="further options of `dscl serve`")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="of the bare loop: processes × threads of the service [cores]",
    )
    parser.add_argument("--weights", default="none", help="state dict of MobileNetV2")
    parser.add_argument("--work", type=Path, help="keep model, photos and gallery in this folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    if arguments.minutes and 60 * arguments.minutes <= plan.settled_s:
        parser.error(
            f"--minutes {arguments.minutes:g}: memory is compared after {plan.settled_s:g} s, "
            "so give more, or 0."
        )
    plan = Plan(
        items=plan.items,
        rounds=arguments.rounds or plan.rounds,
        seconds=arguments.seconds or plan.seconds,
        endurance_s=plan.endurance_s if arguments.minutes is None else 60 * arguments.minutes,
        settled_s=plan.settled_s,
        starts=plan.starts,
    )
    with tempfile.TemporaryDirectory() as scratch:
        work = Work.make(arguments.work or Path(scratch), Path(scratch), plan, arguments.weights)
        options = shlex.split(arguments.serve)
        measured = cold_starts(work, options, plan.starts)
        measured |= speed(work, options, plan, arguments.threads)
        if plan.endurance_s:
            measured |= endurance(work, options, plan)
    report = {
        "command": f"python benchmarks/service.py {shlex.join(sys.argv[1:])}".strip(),
        "quick": arguments.quick,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "plan": vars(plan),
        "threads": arguments.threads,
        "measured": measured,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "service.json").write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}{', quick: not for quoting' if report['quick'] else ''}")
    print("| | measured | by CPU time | goal | met |\n|---|---|---|---|---|")
    for name, (goal, met) in GOALS.items():
        if name not in report["measured"]:
            print(f"| {name} | not measured | | {goal} | |")
            continue
        entry = report["measured"][name]
        by_cpu = f"{entry['by_cpu']:.3g}" if "by_cpu" in entry else ""
        verdict = ("yes" if met(entry["value"]) else "no") if goal else ""
        print(f"| {name} | {entry['value']:.3g} | {by_cpu} | {goal} | {verdict} |")


@dataclass(frozen=True)
class Work:
    """Where everything is that the runs need."""

    model: Path
    photos: Path
    vectors: Path
    gallery: Path
    scratch: Path

    @classmethod
    def make(cls, folder: Path, scratch: Path, plan: Plan, weights: str) -> Work:
        folder.mkdir(parents=True, exist_ok=True)
        print("Preparing model, photos and gallery …", file=sys.stderr)
        model = make_model(folder / "model", weights)
        vectors = folder / f"vectors-{plan.items}.npy"
        gallery = make_gallery(
            folder / f"gallery-{plan.items}", model, make_vectors(vectors, plan.items)
        )
        return cls(model, make_photos(folder / "photos"), vectors, gallery, scratch)


# Cold start


def cold_starts(work: Work, options: list[str], starts: int) -> dict[str, Any]:
    seconds = []
    for _ in range(starts):
        with dscl_serve(work.gallery, work.scratch, options) as server:
            seconds.append(server.started_s)
    return {START: {"value": statistics.median(seconds), "seconds": seconds}}


# Speed


@dataclass(frozen=True)
class Rate:
    """A run of the load generator or of the bare loop."""

    per_s: float
    per_cpu_s: float  #: requests per second of the measured side's own CPU time
    p50_ms: float
    p99_ms: float
    requests: int
    errors: int
    load_cpu: float  #: cores that the load generator took


def speed(work: Work, options: list[str], plan: Plan, threads: int) -> dict[str, Any]:
    with ExitStack() as running:
        server = running.enter_context(dscl_serve(work.gallery, work.scratch, options))
        peer = running.enter_context(naive(work))
        echo = running.enter_context(bare_exchange(work))
        bare = running.enter_context(BareLoop.start(work))
        runs: dict[str, Callable[[], Rate]] = {
            "bare": lambda: bare.run(threads, plan.seconds),
            "service, 8 clients": lambda: load(server, work, 8, plan.seconds),
            "naive, 8 clients": lambda: load(peer, work, 8, plan.seconds),
            "bare exchange, 8 clients": lambda: load(echo, work, 8, plan.seconds),
            "service, 32 clients": lambda: load(server, work, 32, plan.seconds),
            "bare, 1 thread": lambda: bare.run(1, plan.seconds),
            "service, 1 client": lambda: load(server, work, 1, plan.seconds),
        }
        for warm_up in runs.values():
            warm_up()
        rates: dict[str, list[Rate]] = {name: [] for name in runs}
        for number in range(plan.rounds):
            for name, run in runs.items():
                print(f"Round {number + 1} of {plan.rounds}: {name}", file=sys.stderr)
                rates[name].append(run())
    eight, one = rates["service, 8 clients"], rates["service, 1 client"]
    floors = [
        a.per_cpu_s * (1 / b.per_cpu_s + 1 / c.per_cpu_s)
        for a, b, c in zip(eight, rates["bare"], rates["bare exchange, 8 clients"], strict=True)
    ]
    tails = [rate.p99_ms / rate.p50_ms for rate in eight]
    added = [a.p50_ms - b.p50_ms for a, b in zip(one, rates["bare, 1 thread"], strict=True)]
    return {
        RATE_8: ratio(eight, rates["bare"]),
        RATE_32: ratio(rates["service, 32 clients"], rates["bare"]),
        FLOOR: {"value": statistics.median(floors), "each": floors},
        ADDED: {"value": statistics.median(added), "each": added},
        PEER: ratio(eight, rates["naive, 8 clients"]),
        TAIL: {"value": statistics.median(tails), "each": tails},
        "model": bare.described,
        "runs": {name: [vars(rate) for rate in each] for name, each in rates.items()},
    }


def ratio(ours: list[Rate], others: list[Rate]) -> dict[str, Any]:
    """Medians over the rounds of the ratio within a round."""
    pairs = list(zip(ours, others, strict=True))
    each = [a.per_s / b.per_s for a, b in pairs]
    by_cpu = [a.per_cpu_s / b.per_cpu_s for a, b in pairs]
    return {
        "value": statistics.median(each),
        "by_cpu": statistics.median(by_cpu),
        "each": each,
        "each_by_cpu": by_cpu,
    }


@contextmanager
def bare_exchange(work: Work) -> Iterator[Process]:
    script = [str(HERE / "service_echo.py")]
    with child("echo", script, work.scratch, r"^port (\d+)$", {}) as process:
        yield process


@contextmanager
def naive(work: Work) -> Iterator[Process]:
    script = [str(HERE / "service_naive.py"), "--model", str(work.model)]
    script += ["--vectors", str(work.vectors)]
    with child("naive", script, work.scratch, r"^port (\d+)$", {}) as process:
        yield process


class BareLoop:
    """The process of service_bare.py."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        assert popen.stdin is not None and popen.stdout is not None
        self._stdin, self._stdout = popen.stdin, popen.stdout
        self.described: dict[str, str] = json.loads(self._stdout.readline())

    @classmethod
    @contextmanager
    def start(cls, work: Work) -> Iterator[BareLoop]:
        script = [str(HERE / "service_bare.py"), "--gallery", str(work.gallery)]
        command = [sys.executable, *script, "--photos", str(work.photos)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as popen:
            try:
                yield cls(popen)
            finally:
                popen.terminate()

    def run(self, threads: int, seconds: float) -> Rate:
        self._stdin.write(f"{threads} {seconds}\n")
        self._stdin.flush()
        ran = json.loads(self._stdout.readline())
        return rate(ran["latencies_ms"], ran["seconds"], ran["cpu_s"])


def load(server: Process, work: Work, clients: int, seconds: float) -> Rate:
    """What ``clients`` get out of a server; it must answer every request."""
    cpu = server.cpu_s()
    ran = json.loads(
        subprocess.run(
            load_command(server, work, clients, seconds),
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 120,
        ).stdout
    )
    server.check()
    measured = rate(
        ran["latencies_ms"],
        ran["seconds"],
        server.cpu_s() - cpu,
        errors=failures(ran),
        load_cpu=ran["cpu_s"] / ran["seconds"],
    )
    if measured.errors:
        raise SystemExit(f"{server.name} failed on some requests: {ran['statuses']}")
    return measured


def load_command(server: Process, work: Work, clients: int, seconds: float) -> list[str]:
    command = [sys.executable, str(HERE / "service_load.py"), "--port", str(server.port)]
    command += ["--photos", str(work.photos), "--clients", str(clients)]
    return [*command, "--seconds", str(seconds)]


def failures(ran: dict[str, Any]) -> int:
    """Requests without an answer of 200."""
    answered: dict[str, int] = ran["statuses"]
    refused = sum(count for status, count in answered.items() if status != "200")
    return int(ran["broken"]) + refused


def rate(
    latencies_ms: list[float], seconds: float, cpu_s: float, *, errors: int = 0, load_cpu: float = 0
) -> Rate:
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return Rate(
        per_s=len(latencies_ms) / seconds,
        per_cpu_s=len(latencies_ms) / cpu_s,
        p50_ms=float(p50),
        p99_ms=float(p99),
        requests=len(latencies_ms),
        errors=errors,
        load_cpu=load_cpu,
    )


# Endurance


def endurance(work: Work, options: list[str], plan: Plan) -> dict[str, Any]:
    """32 clients search while items come and go; memory is looked at each second."""
    print(f"{plan.endurance_s / 60:.1f} minutes under load", file=sys.stderr)
    samples: list[dict[str, float]] = []
    with dscl_serve(work.gallery, work.scratch, options) as server:
        changes = Changes(server, work.photos)
        with (
            subprocess.Popen(
                load_command(server, work, 32, plan.endurance_s), stdout=subprocess.PIPE, text=True
            ) as searching,
            changes,
        ):
            began = time.perf_counter()
            while (now := time.perf_counter() - began) < plan.endurance_s:
                samples.append({"second": now, **server.memory()})
                server.check()
                time.sleep(1)
            assert searching.stdout is not None
            ran = json.loads(searching.stdout.read())
        changes.undo()
    latencies = ran.pop("latencies_ms")
    after = [sample for sample in samples if sample["second"] >= plan.settled_s]
    # A median at both ends, as single samples catch a request's own photo.
    window = max(1, len(after) // 10)
    first, last = (
        statistics.median(sample["rss"] for sample in part)
        for part in (after[:window], after[-window:])
    )
    return {
        ERRORS: {
            "value": failures(ran) + len(changes.failed),
            "searches": len(latencies),
            "statuses": ran["statuses"],
            "broken": ran["broken"],
            "changes": changes.made,
            "failed_changes": changes.failed[:20],
        },
        GROWTH: {
            "value": 100 * (last / first - 1),
            "first_bytes": first,
            "last_bytes": last,
            "samples": samples[:: max(1, len(samples) // 120)],
        },
    }


class Changes:
    """Adds photos to a served gallery and removes them again, on a thread, while in a ``with``."""

    def __init__(self, server: Process, photos: Path) -> None:
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{server.port}", timeout=60, trust_env=False
        )
        self._photos = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._ids: list[int] = []
        self.made = 0
        self.failed: list[str] = []

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def undo(self) -> None:
        """Remove what is left, so that the gallery is as it was."""
        while self._ids:
            self._remove()
        self._client.close()

    def _run(self) -> None:
        while not self._stop.wait(CHANGE_EVERY_S):
            photo = self._photos[self.made % len(self._photos)]
            answer = self._send("POST", "/items", files={"file": ("car.jpg", photo)})
            if answer is not None:
                self._ids.append(answer.json()["id"])
            if len(self._ids) > KEPT:
                self._remove()

    def _remove(self) -> None:
        self._send("DELETE", f"/items/{self._ids.pop(0)}")

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response | None:
        try:
            answer = self._client.request(method, path, **arguments)
        except httpx.TransportError as error:
            self.failed.append(f"{method} {path}: {error!r}")
            return None
        if not answer.is_success:
            self.failed.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
            return None
        self.made += 1
        return answer


if __name__ == "__main__":
    main()
