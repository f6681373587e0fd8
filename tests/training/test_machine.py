"""What a run chooses to compute with, and that it computes with it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import DsclError
from tests.training.test_trainer import one_thread  # noqa: F401
from tests.training.tiny_runs import Finished, finished_run, write_cars
from training import machine
from training.machine import Machine
from training.settings import TrainSettings

GIB = 2**30

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def choose(*, processes: int = 1, **values: Any) -> Machine:
    return Machine.choose(TrainSettings(**values), processes=processes)


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cars(tmp_path_factory.mktemp("data") / "cars")


@pytest.fixture(scope="module")
def plain(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that left its machine open, but for the device."""
    return finished_run(tmp_path_factory.mktemp("runs") / "plain", cars, epochs=1, workers=None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU with bf16 and 40 GB free: what is chosen can be seen without one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Stand-in")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (40 * GIB, 80 * GIB))
    monkeypatch.setattr("os.cpu_count", lambda: 12)


# On a CPU


def test_a_cpu_computes_in_float32_and_decodes_in_line() -> None:
    chosen = choose(device="cpu")
    assert chosen.device == torch.device("cpu")
    assert chosen.autocast is None
    assert chosen.workers == 0


def test_what_is_told_is_not_chosen() -> None:
    chosen = choose(device="cpu", precision="bf16", workers=5, activations_mb=3)
    assert chosen.autocast == torch.bfloat16
    assert chosen.workers == 5
    assert chosen.activation_bytes == 3 * 2**20
    assert choose(device="cpu", precision="fp32", activations_mb=0).activation_bytes == 0


@pytest.mark.parametrize(("processes", "expected"), [(1, 2 * GIB), (2, GIB)])
def test_activations_may_take_a_quarter_of_what_is_free_shared_by_all_processes(
    monkeypatch: pytest.MonkeyPatch, processes: int, expected: int
) -> None:
    monkeypatch.setattr(machine, "_free_bytes", lambda device: 8 * GIB)
    assert choose(device="cpu", processes=processes).activation_bytes == expected


@pytest.mark.skipif(
    not Path("/proc/meminfo").exists(), reason="the system does not tell how much memory is free"
)
def test_free_memory_is_some_of_what_there_is() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = machine._free_bytes(torch.device("cpu"))
    # What this process itself has in use is not free.
    used = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free < total - used // 2


def test_where_the_system_tells_nothing_two_gigabytes_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(path: Path, **_: object) -> str:
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", missing)
        assert choose(device="cpu").activation_bytes == 2 * GIB


def test_a_run_says_in_one_line_what_it_computes_with(plain: Finished) -> None:
    [line] = [text for text in plain.said if text.startswith("Computing on ")]
    assert line == (
        "Computing on cpu, float32, channels last, decoding in line, 0.0 GB for activations."
    )


def test_bf16_on_a_cpu_learns_almost_the_same(cars: Path, tmp_path: Path, plain: Finished) -> None:
    half = finished_run(tmp_path / "run", cars, epochs=1, precision="bf16")
    [loss], [expected] = half.losses, plain.losses
    assert math.isfinite(loss)
    assert loss != expected
    assert loss == pytest.approx(expected, rel=0.05)
    for name, value in half.weights.items():
        assert value.isfinite().all(), name
        assert value.dtype == plain.weights[name].dtype
    assert any("bf16 autocast" in text for text in half.said)


# On a GPU


@pytest.mark.usefixtures("gpu")
def test_a_gpu_computes_in_bf16_and_has_all_other_cores_decode() -> None:
    chosen = choose()
    assert chosen.device.type == "cuda"
    assert chosen.autocast == torch.bfloat16
    assert chosen.workers == 11
    assert chosen.activation_bytes == 10 * GIB
    assert chosen.describe() == (
        "Stand-in (cuda), bf16 autocast, channels last, 11 decoding processes, "
        "10.0 GB for activations"
    )
    assert choose(processes=4).workers == 2
    assert choose(processes=4).activation_bytes == 10 * GIB  # a GPU each
    assert choose(processes=16).workers == 1
    assert choose(precision="fp32", workers=0).autocast is None


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_bf16_computes_in_float32_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert choose().autocast is None
    with pytest.raises(DsclError, match="--precision is bf16, which Stand-in does not compute"):
        choose(precision="bf16")


@needs_gpu
def test_a_run_on_a_gpu_learns_almost_the_same(cars: Path, tmp_path: Path, plain: Finished) -> None:
    for precision, tolerance in {"fp32": 1e-2, "auto": 0.05}.items():
        found = finished_run(
            tmp_path / precision, cars, epochs=1, device="cuda", precision=precision
        )
        assert found.losses == pytest.approx(plain.losses, rel=tolerance)
        assert any(text.startswith("Computing on ") and "cuda" in text for text in found.said)


@needs_gpu
def test_activations_take_a_quarter_of_the_gpus_free_memory() -> None:
    free, _ = torch.cuda.mem_get_info()
    assert choose(device="cuda").activation_bytes == pytest.approx(free / 4, rel=0.1)
