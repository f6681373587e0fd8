"""The benchmark of scaling out runs; what it measures is not judged here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from tests.index.gallery_kinds import needs_server

REPOSITORY = Path(__file__).parents[2]


def run(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--quick", "--rounds=1", f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
    return subprocess.run(
        [sys.executable, "benchmarks/scale.py", *options, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@needs_server
def test_rows_are_measured_and_those_left_out_keep_their_figures(tmp_path: Path) -> None:
    first = run(tmp_path, "--rows=copy,search")
    assert first.returncode == 0, first.stderr
    process = run(tmp_path, "--rows=replicas")
    assert process.returncode == 0, process.stderr
    figures = json.loads((tmp_path / "out" / "scale.json").read_text())["figures"]
    assert {name.split(":")[0] for name in figures} == {"search", "copy", "replicas"}
    for name, figure in figures.items():
        value = figure["ratio"] if "ratio" in figure else figure["value"]
        assert math.isfinite(value)
        assert value > 0 or "differ" in name or "other neighbours" in name
        assert name in process.stdout
    # These do not depend on the machine.
    assert figures["copy: items that differ after folder, Milvus, folder"]["value"] == 0
    assert figures["copy: exact searches that find other neighbours"]["value"] == 0


def test_what_cannot_be_measured_is_refused_by_name(tmp_path: Path) -> None:
    process = run(tmp_path, "--rows=search,speed")
    assert process.returncode == 1
    assert "no row is called speed" in process.stderr
    process = run(tmp_path, "--rows=search", DSCL_TEST_MILVUS="")
    assert process.returncode == 1
    assert "no Milvus server" in process.stderr
