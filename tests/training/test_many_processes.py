"""Real processes that train together get what one process gets; they are stopped and go on so too.

What they tell each other is tested in ``test_distributed``, how they are started in
``test_launch``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from index.model import Model
from service.cli import dscl
from tests.service.running import DSCL, clean_environment, eventually
from tests.training.test_trainer import command_line, one_thread  # noqa: F401
from tests.training.tiny_runs import (
    GENTLE,
    Finished,
    assert_same_but_for_rounding,
    end,
    finished_run,
    learned,
    untrained,
    write_cars,
    write_weights,
)
from training.run import Run

#: Each process imports torch, and all of them share the cores with whatever else runs.
DEADLINE_S = 600

ROOT = Path(__file__).parents[2]

#: Long enough not to be over before the signal arrives.
EPOCHS = 12


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cars(tmp_path_factory.mktemp("data") / "cars")


@pytest.fixture(scope="module")
def shared(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run in which nothing depends on how its batches are cut.

    Those of 12 are shared 6 and 6, in chunks of 5 and 1; one process has chunks of 5, 5 and 2.
    """
    weights = write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors", cars)
    return {**GENTLE, "weights": str(weights)}


def ended(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command at its end, from the root of the repository."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_as_alone(run: Path, alone: Finished, output: str) -> None:
    """The run's weights, losses and embeddings are those of one process, and it speaks once."""
    weights = load_file(run / "model" / "weights.safetensors")
    start = learned(untrained(alone.settings).state_dict())
    assert_same_but_for_rounding(learned(weights), learned(alone.weights), start)
    lines = Run.open(run).metrics()
    assert [line["epoch"] for line in lines] == list(range(1, alone.settings.epochs + 1))
    assert [line["loss"] for line in lines] == pytest.approx(alone.losses, rel=1e-4)
    embeddings = np.load(run / "evaluation" / "embeddings.npy")
    np.testing.assert_allclose(embeddings, alone.saved("embeddings"), rtol=0, atol=1e-3)
    assert Model.load(run / "model").card.metrics["recall"] == alone.facts["metrics"]["recall"]
    last = f"Epoch {alone.settings.epochs}/{alone.settings.epochs}: "
    assert output.count(last) == 1
    assert output.count("Exported ") == 1


# From beginning to end


def test_processes_of_the_command_get_the_weights_of_one_with_proxies_too(
    cars: Path, shared: dict[str, Any], tmp_path: Path
) -> None:
    peer = {**shared, "loss": "proxy-anchor", "baseline": True}
    out = tmp_path / "run"
    done = ended([*DSCL, *command_line(cars, out, **peer), "--nproc=2"])
    assert "= 12, shared by 2 processes, in chunks of 5, 2 steps an epoch" in done.stdout
    alone = finished_run(tmp_path / "alone", cars, **peer)
    assert_as_alone(out, alone, done.stdout)
    found, expected = Run.open(out).load(), alone.run.load()
    for key, value in expected.criterion.items():
        torch.testing.assert_close(found.criterion[key], value, rtol=1e-4, atol=1e-5)
    # To the head's bias this loss is not blind.
    bias = expected.network["head.bias"]
    torch.testing.assert_close(found.network["head.bias"], bias, rtol=1e-3, atol=1e-6)
    assert f"--out={out}" in (out / "run.json").read_text(encoding="utf-8")


# Stopped on the way


@dataclass
class StoppedPair:
    path: Path
    status: int
    errors: str
    children: list[int]


def children_of(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def still_training(process: int, run: Path) -> bool:
    """Whether it is there, and not a newer process of the same number."""
    try:
        return str(run) in Path(f"/proc/{process}/cmdline").read_bytes().decode()
    except OSError:
        return False


@pytest.fixture(scope="module")
def stopped(
    cars: Path, shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> StoppedPair:
    """Two processes whose launcher got SIGTERM after the first epoch."""
    if not Path("/proc/self/task").exists():
        pytest.skip("the system does not tell which processes a launcher has started")
    out = tmp_path_factory.mktemp("runs") / "run"
    process = subprocess.Popen(
        [*DSCL, *command_line(cars, out, **shared, epochs=EPOCHS), "--nproc=2"],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        children: list[int] = []
        for line in process.stdout:
            if line.startswith("Epoch 1/"):
                children = children_of(process.pid)
                process.terminate()
                break
        _, errors = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return StoppedPair(out, process.returncode, errors, children)


@pytest.fixture(scope="module")
def long(cars: Path, shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One process that nothing disturbed."""
    return finished_run(tmp_path_factory.mktemp("runs") / "long", cars, **shared, epochs=EPOCHS)


def test_a_signal_to_the_launcher_stops_all_and_a_checkpoint_is_saved(
    stopped: StoppedPair,
) -> None:
    assert stopped.status == 130, stopped.errors
    checkpoint = Run.open(stopped.path).load()
    assert 1 <= checkpoint.epoch < EPOCHS
    assert not (stopped.path / "model").exists()
    saved = f"Saved {stopped.path / 'checkpoints' / 'last.pt'} as of before this step."
    assert stopped.errors.count(saved) == 1
    hint = f"Stopped. Continue with: dscl train --resume {stopped.path}"
    assert stopped.errors.count(hint) == 1
    assert len(stopped.children) >= 2
    eventually(
        lambda: None if any(still_training(pid, stopped.path) for pid in stopped.children) else True
    )


def test_torchrun_goes_on_with_what_was_stopped_and_gets_the_weights_of_one_process(
    stopped: StoppedPair, long: Finished, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped.path, tmp_path / "run"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = ended([*torchrun, "--nproc-per-node=2", "-m", "training", f"--resume={run}"])
    assert "shared by 2 processes" in done.stdout
    assert "Continuing after " in done.stdout
    assert_as_alone(run, long, done.stdout)


def test_what_was_stopped_goes_on_in_one_process(
    stopped: StoppedPair, long: Finished, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped.path, tmp_path / "run"))
    found = end(Run.open(run))
    start = learned(untrained(long.settings).state_dict())
    assert_same_but_for_rounding(learned(found.weights), learned(long.weights), start)
    assert found.losses == pytest.approx(long.losses, rel=1e-4)


@pytest.mark.parametrize("nproc", [2, 3])
def test_the_command_goes_on_in_as_many_processes_as_it_is_told(
    long: Finished, monkeypatch: pytest.MonkeyPatch, nproc: int
) -> None:
    """What the launcher does with it is tested in ``test_launch``."""
    launched: list[tuple[int, list[str]]] = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(
        "training.launch.launch", lambda n, arguments: launched.append((n, arguments)) or 7
    )
    options = [f"--resume={long.run.path}", f"--nproc={nproc}"]
    assert CliRunner().invoke(dscl, ["train", *options]).exit_code == 7
    assert launched == [(nproc, ["-m", "training", *options])]
