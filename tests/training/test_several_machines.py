"""Training over machines by ``torchrun --nnodes``: two network namespaces stand for two machines.

Where these cannot be made (they need root on Linux), two launchers on this machine's loopback do.
What processes of one machine do is tested in ``test_many_processes``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.service.running import clean_environment, eventually
from tests.training.test_many_processes import (
    DEADLINE_S,
    EPOCHS,
    ROOT,
    assert_as_alone,
    cars,
    children_of,
    long,
    shared,
)
from tests.training.test_trainer import command_line, one_thread
from tests.training.tiny_runs import (
    assert_same_but_for_rounding,
    end,
    finished_run,
    learned,
    untrained,
)
from training.run import Run

__all__ = ["cars", "long", "one_thread", "shared"]  # fixtures


@dataclass(frozen=True)
class Machine:
    """A place to start programs in."""

    prefix: tuple[str, ...]  #: of a command that is to run there
    address: str
    interface: str


@dataclass
class Node:
    """What ``torchrun`` does on one machine."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")


def system(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    """Two machines that reach each other, and nothing else."""
    names = [f"dscl-{os.getpid()}-{number}" for number in (1, 2)]
    ends = [f"dscl{os.getpid() % 10**6}{letter}" for letter in "ab"]
    made: list[str] = []
    try:
        try:
            for name in names:
                system("ip", "netns", "add", name)
                made.append(name)
            system(
                *("ip", "link", "add", ends[0], "netns", names[0]),
                *("type", "veth", "peer", "name", ends[1], "netns", names[1]),
            )
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no network namespaces ({error}): two launchers on loopback instead")
            yield [Machine((), "127.0.0.1", "lo")] * 2
            return
        found = []
        for number, (name, link) in enumerate(zip(names, ends, strict=True), start=1):
            address = f"10.213.7.{number}"
            system("ip", "-n", name, "addr", "add", f"{address}/24", "dev", link)
            system("ip", "-n", name, "link", "set", link, "up")
            system("ip", "-n", name, "link", "set", "lo", "up")
            found.append(Machine(("ip", "netns", "exec", name), address, link))
        yield found
    finally:
        for name in made:
            system("ip", "netns", "del", name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def training(
    machines: Sequence[Machine], folder: Path, *arguments: str, nproc: Sequence[int] = (1, 1)
) -> Iterator[list[Node]]:
    """``torchrun -m training ARGUMENTS`` on each machine, the first of them rank 0."""
    port = free_port()  # of loopback; in a namespace every port is free
    nodes: list[Node] = []
    try:
        for rank, machine in enumerate(machines):
            output = folder / f"machine-{rank}.txt"
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [
                        *machine.prefix,
                        *(sys.executable, "-m", "torch.distributed.run"),
                        f"--nnodes={len(machines)}",
                        f"--node-rank={rank}",
                        f"--nproc-per-node={nproc[rank]}",
                        f"--master-addr={machines[0].address}",
                        f"--master-port={port}",
                        *("-m", "training", *arguments),
                    ],
                    cwd=ROOT,
                    env=clean_environment(GLOO_SOCKET_IFNAME=machine.interface),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            nodes.append(Node(process, output))
        yield nodes
    finally:
        for node in nodes:
            for child in children_of(node.process.pid):
                kill(child)
            node.process.kill()
            node.process.wait(DEADLINE_S)


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def until_epoch(nodes: Sequence[Node], epoch: int) -> None:
    """Return when the first machine has told of this epoch."""

    def told() -> bool | None:
        if f"\nEpoch {epoch}/" in nodes[0].said():
            return True
        assert all(node.process.poll() is None for node in nodes), nodes[0].said()
        return None

    eventually(told, deadline_s=DEADLINE_S)


def test_two_machines_get_the_weights_of_one_process(
    machines: list[Machine], cars: Path, shared: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = command_line(cars, out, **shared)[1:]
    with training(machines, tmp_path, *options) as nodes:
        for node in nodes:
            assert node.process.wait(DEADLINE_S) == 0, node.said()
    assert "= 12, shared by 2 processes, in chunks of 5, 2 steps an epoch" in nodes[0].said()
    assert "Epoch" not in nodes[1].said()
    assert_as_alone(out, finished_run(tmp_path / "alone", cars, **shared), nodes[0].said())


def test_when_a_machine_dies_the_other_ends_and_more_processes_go_on_from_the_last_epoch(
    machines: list[Machine], cars: Path, shared: dict[str, Any], long: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = command_line(cars, run, **shared, epochs=EPOCHS)[1:]
    with training(machines, tmp_path, *options) as nodes:
        until_epoch(nodes, 2)
        for process in [nodes[1].process.pid, *children_of(nodes[1].process.pid)]:
            kill(process)
        assert nodes[0].process.wait(DEADLINE_S) != 0
    assert 1 <= Run.open(run).load().epoch < EPOCHS
    resume = f"--resume={run}"
    with training(machines, tmp_path, resume, nproc=(2, 1)) as nodes:
        for node in nodes:
            assert node.process.wait(DEADLINE_S) == 0, node.said()
    assert "shared by 3 processes" in nodes[0].said()
    assert_as_alone(run, long, nodes[0].said())


def test_a_signal_on_one_machine_stops_both_and_one_process_goes_on(
    machines: list[Machine], cars: Path, shared: dict[str, Any], long: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = command_line(cars, run, **shared, epochs=EPOCHS)[1:]
    with training(machines, tmp_path, *options) as nodes:
        until_epoch(nodes, 1)
        nodes[1].process.terminate()
        for node in nodes:
            assert node.process.wait(DEADLINE_S) != 0
        saved = f"Saved {run / 'checkpoints' / 'last.pt'} as of before this step."
        assert nodes[0].said().count(saved) == 1
        assert f"Continue with: dscl train --resume {run}" in nodes[0].said()
    found = end(Run.open(run))
    start = learned(untrained(long.settings).state_dict())
    assert_same_but_for_rounding(learned(found.weights), learned(long.weights), start)
    assert found.losses == pytest.approx(long.losses, rel=1e-4)
