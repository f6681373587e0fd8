"""The run folder: what it holds from the start, and that what cannot be kept is found out then."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_trainer import assert_same, one_thread, open_run  # noqa: F401
from tests.training.tiny_runs import Finished, end, finished_run, write_cars
from training.run import Checkpoint, Run, RunError
from training.settings import TrainSettings

Disk = Callable[..., Path]


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cars(tmp_path_factory.mktemp("data") / "cars")


@pytest.fixture(scope="module")
def finished(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that keeps all that a checkpoint can hold."""
    return finished_run(
        tmp_path_factory.mktemp("runs") / "run", cars, epochs=2, loss="proxy-anchor", average=0.5
    )


def mount(*options: str | Path) -> None:
    """Skips the test, with the reason, where the system does not let us."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *map(str, options)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A real disk in memory, of a size that the test says; asked again, it gets the new size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def sized(options: str) -> Path:
        nonlocal mounted
        mount("-o", f"remount,{options}" if mounted else options, "tmpfs", place)
        mounted = True
        return place

    try:
        yield sized
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# What it holds


def test_a_run_keeps_how_it_was_started(tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    settings = TrainSettings(data="photos", dim=7, train_classes="001-098")
    run = Run.create(
        tmp_path / "new" / "run", settings, command="dscl train --data 'my photos'", preset="demo"
    )
    facts = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert facts.keys() == {"command", "preset", "started", "platform", "versions"}
    assert facts["command"] == "dscl train --data 'my photos'"
    assert facts["preset"] == "demo"
    started = datetime.datetime.fromisoformat(facts["started"])
    assert before <= started <= datetime.datetime.now(datetime.UTC)
    assert facts["platform"] == platform.platform()
    for name, version in facts["versions"].items():
        assert version == importlib.metadata.version(name)
    assert {"dscl-retrieval", "torch", "pytorch-metric-learning"} < facts["versions"].keys()
    assert Run.open(run.path).settings == settings
    assert files(run.path) == {"run.json", "settings.json"}


def test_a_run_notes_what_it_computes_on_and_forgets_nothing(finished: Finished) -> None:
    facts = json.loads((finished.run.path / "run.json").read_text(encoding="utf-8"))
    assert facts.keys() == {"command", "preset", "started", "platform", "versions", "device"}
    assert f"Computing on {facts['device']}." in finished.said


def test_a_run_without_a_command_says_so(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", TrainSettings())
    facts = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert (facts["command"], facts["preset"]) == (None, None)


def test_a_checkpoint_comes_back_to_the_bit_and_stands_alone(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", TrainSettings())
    for step in (1, 2):
        values = {"weight": torch.randn(3, 2), "steps": torch.tensor(step)}
        kept = Checkpoint(
            epoch=4, step=step, losses=[0.25, 1 / 3], network=values, optimizer={"state": {}},
            criterion={"proxies": torch.randn(2)}, average=None if step == 1 else values,
        )  # fmt: skip
        run.save(kept)
        found = run.load()
        for name, value in vars(kept).items():
            assert_same(getattr(found, name), value)
        assert files(run.path / "checkpoints") == {"last.pt"}


def test_lines_of_epochs_that_are_done_again_stand_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", TrainSettings())
    run.forget_metrics(from_epoch=0)
    assert run.metrics() == []
    lines: list[dict[str, Any]] = [{"epoch": epoch, "loss": 1 / epoch} for epoch in (1, 2, 3)]
    for line in lines:
        run.log(line)
    run.forget_metrics(from_epoch=2)
    assert run.metrics() == lines[:2]
    run.log(lines[2])
    assert run.metrics() == lines


# What it does not fit on


def test_a_run_that_does_not_fit_is_refused_before_its_first_epoch_and_goes_on_with_room(
    cars: Path, disk: Disk
) -> None:
    run = open_run(disk("size=4m") / "run", cars, epochs=1)
    with pytest.raises(RunError) as caught:
        end(run)
    message = str(caught.value)
    assert message.startswith(f"{run.path} has no room for the ")
    assert message.endswith(
        " MB that checkpoints and model take (No space left on device): make room, or name another "
        "place with --out."
    )
    assert files(run.path) == {"run.json", "settings.json"}
    disk("size=64m")
    assert len(end(Run.open(run.path)).losses) == 1


def test_what_is_reserved_is_free_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", TrainSettings())
    before = os.statvfs(tmp_path).f_bavail
    size = 64 * 2**20
    run.reserve(size)
    assert files(run.path) == {"run.json", "settings.json"}
    assert before - os.statvfs(tmp_path).f_bavail < size // os.statvfs(tmp_path).f_frsize


def test_a_run_reserves_what_it_writes_in_the_end(
    cars: Path, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[int] = []
    monkeypatch.setattr(Run, "reserve", lambda run, size: reserved.append(size))
    again = end(Run(finished.run.path, finished.settings))
    weights = sum(value.nbytes for value in again.weights.values())
    # A checkpoint is written beside the one that it replaces; the model holds the weights twice.
    [size] = reserved
    written = 2 * finished.run.checkpoint_file.stat().st_size + 2 * weights
    # Names and shapes come on top of the numbers, which they hardly matter beside in real networks.
    assert written <= 1.05 * size
    assert size <= 1.5 * written


def test_a_place_that_cannot_be_written_is_refused(disk: Disk) -> None:
    place = disk("size=1m,ro")
    with pytest.raises(RunError, match=rf"{place}/run cannot be written: Read-only file system\."):
        Run.create(place / "run", TrainSettings())
    assert not (place / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(RunError, match=r"cannot be written: Permission denied\."):
        Run.create(tmp_path / "theirs" / "run", TrainSettings())


def test_a_disk_that_is_full_is_told_when_the_folder_is_made(disk: Disk) -> None:
    place = disk("size=64k")
    (place / "ballast").write_bytes(bytes(60 * 1024))
    with pytest.raises(RunError, match=r"cannot be written: No space left on device\."):
        Run.create(place / "run", TrainSettings())
    assert not (place / "run").exists()
    (place / "ballast").unlink()
    Run.create(place / "run", TrainSettings())
