"""What Prometheus reads: requests, stages of a search, queues, the gallery and its model.

Several worker processes count together through files in ``PROMETHEUS_MULTIPROC_DIR``, which has to
be in the environment before this module is imported. What a gallery is (its size, its recall, its
model) is not counted but looked at, when asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

__all__ = [
    "MEDIA_TYPE",
    "GalleryFacts",
    "Stage",
    "exposition",
    "in_flight",
    "observe_request",
    "observe_stage",
    "process_ended",
    "queue_length",
    "set_jobs",
]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Stage = Literal["decode", "embed", "search"]

#: Set by the service's supervisor when there are several processes.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

# When a series began to be counted is of use to nobody here, and doubles what is read.
disable_created_metrics()

_registry = CollectorRegistry()

_requests = Counter(
    "dscl_http_requests",
    "Requests answered, by route as the interface names it. 499: the client went away.",
    ["route", "method", "status"],
    registry=_registry,
)
_seconds = Histogram(
    "dscl_http_request_seconds",
    "Seconds from the arrival of a request to the end of its answer, upload included.",
    ["route"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=_registry,
)
_stages = Histogram(
    "dscl_stage_seconds",
    "Seconds that a search spent on decoding, embedding and searching; waiting is in none.",
    ["stage"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
    registry=_registry,
)
_in_flight = Gauge(
    "dscl_http_in_flight",
    "Requests being answered now.",
    multiprocess_mode="livesum",
    registry=_registry,
)
_queues = Gauge(
    "dscl_queue_length",
    "Calls that wait for a thread or run on one.",
    ["pool"],
    multiprocess_mode="livesum",
    registry=_registry,
)
_jobs = Gauge(
    "dscl_jobs",
    "Jobs kept, by state.",
    ["state"],
    multiprocess_mode="livesum",
    registry=_registry,
)


@dataclass(frozen=True)
class GalleryFacts:
    """What is told of a gallery."""

    items: int
    recall: float | None  #: recall@10 of its index as last measured, None if never
    model_name: str
    model_sha256: str


def observe_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count a request; ``route`` is its template, such as ``/items/{item_id}``, never its path."""
    _request_counter(route, method, status).inc()
    _request_seconds(route).observe(seconds)


# Looking a series up costs more than counting.
@cache
def _request_counter(route: str, method: str, status: int) -> Counter:
    return _requests.labels(route, method, str(status))


@cache
def _request_seconds(route: str) -> Histogram:
    return _seconds.labels(route)


def observe_stage(stage: Stage, seconds: float) -> None:
    """Count the time that a search spent in one of its stages."""
    _stage_seconds(stage).observe(seconds)


@cache
def _stage_seconds(stage: Stage) -> Histogram:
    return _stages.labels(stage)


def in_flight() -> Gauge:
    """How many requests are being answered: for ``inc`` and ``dec``."""
    return _in_flight


def queue_length(pool: str) -> Gauge:
    """How many calls a pool of threads has waiting or running: for ``inc`` and ``dec``."""
    return _queues.labels(pool)


def set_jobs(states: Mapping[str, int]) -> None:
    """Tell how many jobs there are in each state; only the process that runs them calls this."""
    for state, count in states.items():
        _jobs.labels(state).set(count)


def process_ended(pid: int) -> None:
    """Forget what a process that is gone had in flight and in its queues; its counts stay."""
    mark_process_dead(pid)


def exposition(gallery: GalleryFacts | None) -> bytes:
    """Everything in Prometheus' text format; without ``gallery`` while none is open."""
    return generate_latest(_Everything(gallery))


class _Everything(Collector):
    def __init__(self, gallery: GalleryFacts | None) -> None:
        self._gallery = gallery

    def collect(self) -> Iterator[Metric]:
        if os.environ.get(SHARED_FOLDER):
            yield from MultiProcessCollector(None).collect()
        else:
            yield from _registry.collect()
        if self._gallery is not None:
            yield from _of_gallery(self._gallery)


def _of_gallery(facts: GalleryFacts) -> Iterator[Metric]:
    yield GaugeMetricFamily("dscl_gallery_items", "Items in the gallery.", facts.items)
    if facts.recall is not None:
        yield GaugeMetricFamily(
            "dscl_gallery_recall",
            "recall@10 of the gallery's searches against exact ones, as last measured.",
            facts.recall,
        )
    model = GaugeMetricFamily(
        "dscl_model_info", "1 for the model that embeds photos now.", labels=["name", "sha256"]
    )
    model.add_metric([facts.model_name, facts.model_sha256], 1)
    yield model
