from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.service.running import clean_environment

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "hostile.py"


def test_the_service_stands_hostile_input(gallery_folder: Path, tmp_path: Path) -> None:
    """The benchmark, short: it ends with 0 only if nothing failed, grew or died."""
    options = {"--count": 120, "--idle": 200, "--gallery": gallery_folder, "--out": tmp_path}
    result = subprocess.run(
        [sys.executable, str(BENCHMARK), *(str(each) for pair in options.items() for each in pair)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads((tmp_path / "hostile.json").read_text())["counts"]
    answers = counts["images"]
    assert sum(answers.values()) == 120
    kinds = {answer.partition(":")[0] for answer in answers}
    assert {"untouched", "flipped", "cut", "spliced", "noise", "lying", "polyglot"} <= kinds
    assert answers["untouched: 200"] > 0 and answers["cut: image_truncated"] > 0
    assert counts["slow clients"]["all_cut_off_s"] < 30
    assert counts["idle connections"]["connections"] == 200
