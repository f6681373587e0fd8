"""The bare loop of benchmarks/service.py: decode → embed → search without a web around it.

    python benchmarks/service_bare.py --gallery gallery/ --photos photos/

Reads lines of ``THREADS SECONDS`` and answers each with a line of JSON, so that runs can take turns
with those of the service in one process that stays warm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from index import Gallery, Model

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gallery", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    arguments = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(arguments.photos.glob("*.jpg"))]
    with Gallery.open(arguments.gallery) as gallery:
        card = gallery.model.card
        gallery.model.embed(np.zeros((1, 3, card.height, card.width), np.uint8))
        print(json.dumps(described(gallery.model)), flush=True)
        for line in sys.stdin:
            threads, seconds = line.split()
            print(json.dumps(run(gallery, photos, int(threads), float(seconds))), flush=True)


def described(model: Model) -> dict[str, str]:
    return {"runtime": model.runtime, "precision": model.precision}


def run(gallery: Gallery, photos: list[bytes], threads: int, seconds: float) -> dict[str, object]:
    latencies: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()

    def loop(first: int) -> None:
        for photo in itertools.islice(itertools.cycle(photos), first, None):
            start = time.perf_counter()
            if start - began >= seconds:
                return
            query = gallery.model.embed(gallery.model.prepare(photo)[None])
            gallery.search(query, K)
            latencies.append(time.perf_counter() - start)

    workers = [
        threading.Thread(target=loop, args=(n * len(photos) // threads,)) for n in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "latencies_ms": [round(1000 * latency, 3) for latency in latencies],
    }


if __name__ == "__main__":
    main()
