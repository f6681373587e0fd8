"""The gallery's benchmark runs; what it measures is not judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.photos import write_class_folders
from tests.tiny_model import make_model_folder

REPOSITORY = Path(__file__).parents[2]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    write_class_folders(tmp_path / "photos")
    make_model_folder(tmp_path / "model")
    folders = {"images": "photos", "model": "model", "work": "work", "out": "results"}
    options = [f"--{option}={tmp_path / name}" for option, name in folders.items()]
    return subprocess.run(
        [sys.executable, "benchmarks/gallery.py", "--quick", *options, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """Where all rows were measured, and what was printed."""
    tmp_path = tmp_path_factory.mktemp("benchmark")
    process = run(tmp_path)
    assert process.returncode == 0, process.stderr
    return tmp_path, process.stdout


def test_every_row_of_the_table_is_measured(done):
    tmp_path, printed = done
    report = json.loads((tmp_path / "results" / "gallery.json").read_text())
    figures = report["figures"]
    assert {name.split(":")[0].split(" at ")[0] for name in figures} == {
        "build", "search", "memory", "filter", "open", "add", "evaluate",
    }  # fmt: skip
    for name, figure in figures.items():
        value = figure["ratio"] if "ratio" in figure else figure["median"]
        assert math.isfinite(value)
        assert value > 0 or "difference" in name
        assert name in printed
    assert report["vectors"] in printed


def test_figures_that_do_not_depend_on_the_machine_are_right(done):
    tmp_path, _ = done
    figures = json.loads((tmp_path / "results" / "gallery.json").read_text())["figures"]
    assert figures["evaluate: largest difference of P@1 and MAP@R"]["median"] <= 1e-6
    # 20 queries, so that a promise of 0.95 may be missed by a little.
    assert all(f["recall"] > 0.85 for name, f in figures.items() if name.startswith("search"))
    assert figures["filter: search among all / among 1 %"]["recall_filtered"] == 1
    # Vectors are mapped whole, and there is little else beside so few of them.
    assert figures["memory: gallery / float32"]["ratio"] > 0.9


def test_a_row_that_there_is_not_is_refused_by_name(tmp_path):
    process = run(tmp_path, "--rows=search,speed")
    assert process.returncode == 1
    assert "no row is called speed" in process.stderr
