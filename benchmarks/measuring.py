"""How the benchmarks here measure: several things in turns, medians, ratios."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["compare", "in_turns", "interleaved"]

T = TypeVar("T")


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure each in turn, after a round that warms up and does not count."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                results[name].append(value)
    return results


def interleaved(
    calls: Mapping[str, Callable[[T], object]], arguments: Sequence[T], rounds: int
) -> dict[str, list[float]]:
    """The median milliseconds of each call in each round, after one that warms up.

    The calls take turns with each argument, and with who comes first.
    """
    results: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        times: dict[str, list[float]] = {name: [] for name in calls}
        for place, argument in enumerate(arguments):
            order = list(calls.items())
            for name, call in order if place % 2 else reversed(order):
                began = time.perf_counter()
                call(argument)
                times[name].append(1000 * (time.perf_counter() - began))
        if number:
            for name in calls:
                results[name].append(statistics.median(times[name]))
    return results


def compare(name: str, one: list[float], other: list[float], unit: str) -> dict[str, Any]:
    """The ratio of two medians, with the values that it comes from."""
    first, second = statistics.median(one), statistics.median(other)
    print(f"{name}: {first:.2f} / {second:.2f} {unit}", file=sys.stderr, flush=True)
    return {name: {"ratio": first / second, "unit": unit, "values": one, "against": other}}
