"""What a number of cars needs: bytes, machines, time and money, from figures that were measured.

Arithmetic only: what is measured, and what is assumed, comes in from ``plan_scale``, which prints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Assumptions",
    "Folder",
    "IndexKind",
    "Measured",
    "PowerLaw",
    "Sharded",
    "fit_power_law",
    "folder",
    "sharded",
    "slowest_of",
]

IndexKind = Literal["ivf", "hnsw", "diskann"]

HOUR_S = 3600
GB = 1e9

#: DISKANN as Milvus sets it by default: codes of an eighth of the vectors in memory, and on disk
#: each vector with the numbers of its 56 neighbours, in sectors of 4 KiB.
DISKANN_IN_MEMORY = 1 / 8
DISKANN_NEIGHBOURS = 56
SECTOR = 4096


@dataclass(frozen=True)
class PowerLaw:
    """y = factor · n^exponent, fitted between the smallest and the largest n measured."""

    factor: float
    exponent: float
    error: float  #: largest relative deviation from what was measured
    largest: float  #: n up to which it was measured

    def at(self, n: float) -> float:
        """y at n; beyond ``largest`` an extrapolation."""
        return self.factor * n**self.exponent


def fit_power_law(sizes: Sequence[float], values: Sequence[float]) -> PowerLaw:
    """The power law through measured points, by least squares of their logarithms.

    Args:
        sizes: at least two that differ, positive.
        values: as many, positive.

    Raises:
        ValueError: too few points, or points that have no logarithm.
    """
    if len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        raise ValueError(f"no power law through {list(sizes)} and {list(values)}.")
    exponent, logarithm = np.polyfit(np.log(sizes), np.log(values), 1)
    factor = math.exp(logarithm)
    fitted = factor * np.asarray(sizes) ** exponent
    error = float(np.max(np.abs(fitted / np.asarray(values) - 1)))
    return PowerLaw(factor, float(exponent), error, float(max(sizes)))


def slowest_of(
    times: NDArray[np.float64], shards: int, quantile: float, *, draws: int = 20_000, seed: int = 0
) -> float:
    """The ``quantile`` of how long the slowest of several shards takes.

    A query waits for all shards, so that what is rare in one is common in many.

    Args:
        times: of one shard, a sample; each shard draws from it.
        shards: at least 1.
        quantile: 0 … 1.
        draws: queries simulated.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    slowest = np.zeros(draws)
    for _ in range(shards):
        np.maximum(slowest, rng.choice(times, draws), out=slowest)
    return float(np.quantile(slowest, quantile))


@dataclass(frozen=True)
class Measured:
    """What was measured, on one core."""

    dim: int
    search_s: dict[IndexKind, PowerLaw]  #: CPU seconds of a query at the recall asked for
    build_s: dict[IndexKind, PowerLaw]  #: CPU seconds of building and tuning
    bytes_in_memory: dict[IndexKind, float]  #: of a vector with its share of the index
    disk_bytes: float  #: of an item in the catalog
    recall: dict[IndexKind, float]  #: recall@10 at the largest size measured
    request_s: float  #: CPU seconds of a search by photo, but for the search itself
    embed_s: float  #: CPU seconds of reading and embedding one photo
    add_per_s: float  #: items a second that one writer stores durably
    open_s: PowerLaw  #: until the first result
    query_times: NDArray[np.float64]  #: of single queries, relative to their mean


@dataclass(frozen=True)
class Assumptions:
    """What was not measured: machines, prices, habits."""

    cores: int = 16  #: of a machine
    memory_gb: float = 128.0
    price_per_hour: float = 1.0  #: of a machine, in any currency
    filled: float = 0.7  #: share of the memory that vectors may take
    busy: float = 0.5  #: share of the cores' time that is used on average
    copies: int = 2  #: of everything, so that a machine may fail
    queries_per_s: float = 100.0  #: average load
    network_s: float = 0.0005  #: to a shard and back
    largest_shard: float = 10e6  #: vectors; beyond, rebuilding takes too long


@dataclass(frozen=True)
class Folder:
    """A gallery folder on one machine."""

    items: float
    memory_gb: float
    disk_gb: float
    fill_h: float  #: durable adds by its one writer, vectors given
    rebuild_h: float  #: of the index, on one core
    open_s: float
    search_ms: float
    fits: bool  #: into the memory of one machine


def folder(n: float, measured: Measured, assumed: Assumptions) -> Folder:
    """What n items need in a gallery folder with an "ivf" index."""
    memory = n * measured.bytes_in_memory["ivf"]
    return Folder(
        items=n,
        memory_gb=memory / GB,
        disk_gb=n * measured.disk_bytes / GB,
        fill_h=n / measured.add_per_s / HOUR_S,
        rebuild_h=measured.build_s["ivf"].at(n) / HOUR_S,
        open_s=measured.open_s.at(n),
        search_ms=1000 * measured.search_s["ivf"].at(n),
        fits=memory <= assumed.filled * assumed.memory_gb * GB,
    )


@dataclass(frozen=True)
class Sharded:
    """Milvus over several machines, and the processes of the service in front of it."""

    items: float
    kind: IndexKind
    shards: int
    memory_gb: float  #: of one copy
    disk_gb: float  #: of one copy, of what is searched on disk
    data_machines: int  #: all copies
    service_machines: int
    recall: float | None  #: of a shard; None: not measured
    search_ms_p50: float | None  #: of the slowest shard, network included
    search_ms_p99: float | None
    embed_core_h: float  #: of all photos, once
    cost_per_million: float  #: queries, at the load assumed, machines that wait included


def sharded(n: float, kind: IndexKind, measured: Measured, assumed: Assumptions) -> Sharded:
    """What n items need on Milvus with an index of one kind.

    Each shard is searched for each query. Machines are as many as the memory takes or as the
    queries keep busy, whichever is more, at least one for each copy. DISKANN's bytes are those of
    its formula; how long it searches was not measured, and the cost counts its memory alone.
    """
    raw = 4 * measured.dim
    in_memory = raw * DISKANN_IN_MEMORY if kind == "diskann" else measured.bytes_in_memory[kind]
    memory = n * in_memory
    shards = max(1, math.ceil(n / assumed.largest_shard))
    law = measured.search_s.get(kind)
    shard_s = None if law is None else law.at(n / shards)
    searching = 0.0 if shard_s is None else shards * shard_s * assumed.queries_per_s
    by_memory = memory / (assumed.filled * assumed.memory_gb * GB)
    by_cores = searching / (assumed.busy * assumed.cores)
    data = max(
        assumed.copies * math.ceil(by_memory),
        math.ceil(by_cores),
        assumed.copies,
    )
    serving = measured.request_s * assumed.queries_per_s / (assumed.busy * assumed.cores)
    service = max(assumed.copies, math.ceil(serving))
    queries_per_h = assumed.queries_per_s * HOUR_S
    p50, p99 = (
        None
        if shard_s is None
        else 1000
        * (assumed.network_s + shard_s * slowest_of(measured.query_times, shards, quantile))
        for quantile in (0.5, 0.99)
    )
    return Sharded(
        items=n,
        kind=kind,
        shards=shards,
        memory_gb=memory / GB,
        disk_gb=n * diskann_bytes(measured.dim) / GB if kind == "diskann" else 0.0,
        data_machines=data,
        service_machines=service,
        recall=measured.recall.get(kind),
        search_ms_p50=p50,
        search_ms_p99=p99,
        embed_core_h=n * measured.embed_s / HOUR_S,
        cost_per_million=1e6 * (data + service) * assumed.price_per_hour / queries_per_h,
    )


def diskann_bytes(dim: int) -> float:
    """Bytes on disk of a vector in DISKANN: none lies across two sectors unless it is larger."""
    node = 4 * dim + 4 * (DISKANN_NEIGHBOURS + 1)
    if node > SECTOR:
        return float(SECTOR * math.ceil(node / SECTOR))
    return SECTOR / (SECTOR // node)
