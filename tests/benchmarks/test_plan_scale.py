"""The plan's arithmetic against figures worked out by hand, and that its script runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from scale_model import (  # noqa: E402
    Assumptions,
    Measured,
    PowerLaw,
    diskann_bytes,
    fit_power_law,
    folder,
    sharded,
    slowest_of,
)


def law(factor: float, exponent: float = 1.0) -> PowerLaw:
    return PowerLaw(factor, exponent, 0.0, 1e6)


MEASURED = Measured(
    dim=128,
    search_s={"ivf": law(1e-6, 0.5)},
    build_s={"ivf": law(3.6e-5)},
    bytes_in_memory={"ivf": 600.0, "hnsw": 800.0},
    disk_bytes=1000.0,
    recall={"ivf": 0.96},
    request_s=0.02,
    embed_s=0.018,
    add_per_s=1000.0,
    open_s=law(1e-6),
    query_times=np.ones(10),
)
ASSUMED = Assumptions(
    cores=10,
    memory_gb=100.0,
    price_per_hour=1.8,
    filled=0.6,
    busy=0.5,
    copies=2,
    queries_per_s=1000.0,
    network_s=0.001,
    largest_shard=1e7,
)


def test_a_power_law_is_found_and_continued() -> None:
    found = fit_power_law([1e3, 1e4, 1e5], [2 * n**0.7 for n in (1e3, 1e4, 1e5)])
    assert found.exponent == pytest.approx(0.7)
    assert found.at(1e8) == pytest.approx(2 * 1e8**0.7)
    assert found.error < 1e-9
    # 10 % off in the middle is seen.
    assert fit_power_law([1, 10, 100], [1, 11, 100]).error > 0.03


@pytest.mark.parametrize(("sizes", "values"), [([1e3], [1.0]), ([1, 2], [0.0, 1.0])])
def test_what_has_no_power_law_is_refused(sizes: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="no power law"):
        fit_power_law(sizes, values)


def test_the_slowest_of_many_is_as_slow_as_the_slowest_hundredth_of_one() -> None:
    times = np.linspace(0, 1, 10_001)
    # The largest of s uniform draws lies below q ** (1 / s) with chance q.
    for shards in (1, 10, 100):
        found = slowest_of(times, shards, 0.5)
        assert found == pytest.approx(0.5 ** (1 / shards), abs=0.01)


def test_a_folder_needs_what_its_items_need() -> None:
    small, large = folder(1e7, MEASURED, ASSUMED), folder(1e9, MEASURED, ASSUMED)
    assert (small.memory_gb, small.disk_gb) == pytest.approx((6, 10))
    assert small.fill_h == pytest.approx(1e7 / 1000 / 3600)
    assert small.rebuild_h == pytest.approx(0.1)
    assert small.search_ms == pytest.approx(1000 * 1e-6 * 1e7**0.5)
    assert small.fits  # into 60 GB
    assert not large.fits


def test_machines_are_as_many_as_memory_or_queries_take() -> None:
    found = sharded(1e9, "ivf", MEASURED, ASSUMED)
    # 600 GB of 60 GB each, twice; 100 shards × 3.16 ms × 1000/s = 316 cores of 5 busy ones each.
    assert found.shards == 100
    assert found.data_machines == 64
    assert found.service_machines == 4  # 20 cores busy
    assert found.cost_per_million == pytest.approx(1e6 * 68 * 1.8 / 3.6e6)
    assert found.search_ms_p50 == pytest.approx(1 + 1000 * 1e-6 * 1e7**0.5)
    assert found.embed_core_h == pytest.approx(5000)
    quiet = sharded(1e9, "ivf", MEASURED, replace(ASSUMED, queries_per_s=1))
    assert (quiet.data_machines, quiet.service_machines) == (20, 2)


def test_what_was_not_measured_is_not_claimed() -> None:
    found = sharded(1e9, "diskann", MEASURED, ASSUMED)
    assert found.recall is found.search_ms_p50 is found.search_ms_p99 is None
    assert found.memory_gb == pytest.approx(64)  # codes of 64 bytes
    # 740 bytes a node, five to a sector of 4096.
    assert found.disk_gb == pytest.approx(1e9 * 4096 / 5 / 1e9)
    assert diskann_bytes(1280) == 2 * 4096


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/plan_scale.py", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_measures_and_fills_the_document_again_and_again(tmp_path: Path) -> None:
    document = tmp_path / "scale.md"
    document.write_text(
        "before\n<!-- plan -->\noutdated plan\n<!-- /plan -->\nafter\n", encoding="utf-8"
    )
    planning = ("plan", "--results", tmp_path, "--document", document)
    missing = run(*planning)
    assert missing.returncode == 1
    assert "run python benchmarks/plan_scale.py measure first" in missing.stderr

    measured = run("measure", "--quick", "--out", tmp_path)
    assert measured.returncode == 0, measured.stderr
    report = json.loads((tmp_path / "scale_plan.json").read_text(encoding="utf-8"))
    for points in report["indexes"].values():
        assert all(point["recall"] > 0.9 and point["bytes"] > 4 * 128 for point in points)
    # A vector is 512 bytes, and is in the catalog once.
    assert 512 < report["catalog_bytes"] < 2048

    for name in ("gallery.json", "service.json"):
        shutil.copy(REPOSITORY / "benchmarks" / "results" / name, tmp_path)
    assert run(*planning).returncode == 0
    once = document.read_text(encoding="utf-8")
    assert once.startswith("before\n<!-- plan -->\n")
    assert once.endswith("\n<!-- /plan -->\nafter\n")
    assert "outdated plan" not in once
    assert "these figures mean nothing" in once
    assert "| 1,000,000,000 | diskann |" in once
    assert run(*planning).returncode == 0
    assert document.read_text(encoding="utf-8") == once
    document.write_text("no marks", encoding="utf-8")
    assert "has no <!-- plan -->" in run(*planning).stderr
