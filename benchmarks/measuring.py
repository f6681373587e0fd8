"""How the benchmarks here measure: several things in turns, medians, ratios."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["compare", "in_turns"]


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure each in turn, after a round that warms up and does not count."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                results[name].append(value)
    return results


def compare(name: str, one: list[float], other: list[float], unit: str) -> dict[str, Any]:
    """The ratio of two medians, with the values that it comes from."""
    first, second = statistics.median(one), statistics.median(other)
    print(f"{name}: {first:.2f} / {second:.2f} {unit}", file=sys.stderr, flush=True)
    return {name: {"ratio": first / second, "unit": unit, "values": one, "against": other}}
