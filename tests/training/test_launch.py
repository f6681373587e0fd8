"""Several processes on this machine: what they are told, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from index.errors import InvalidArgumentError
from training.launch import STOPPED, launch, launched

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
DEADLINE_S = 300

#: Notes what it was given, waits for the others, then does as ``sys.argv[2]`` says.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path

out, task, rank = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(number))

def meet(name):
    (out / f"{rank}.{name}").touch()
    end = time.monotonic() + 300
    while not all((out / f"{other}.{name}").exists() for other in range(2)):
        assert time.monotonic() < end
        time.sleep(0.01)

facts = {"environment": dict(os.environ), "group": os.getpgrp()}
(out / f"{rank}.json").write_text(json.dumps(facts))
meet("started")
if task == "fail" and rank == "1":
    sys.exit(7)
if task == "die" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if task != "succeed":
    while not got:
        time.sleep(0.01)
if task == "stop":
    meet("stopped")
(out / f"{rank}.signals").write_text(json.dumps(got))
sys.exit(130 if got else 0)
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A launcher changes its process for good: its environment and its signal handlers."""
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    os.environ.pop("OMP_NUM_THREADS", None)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


def signals(out: Path, rank: int) -> list[int]:
    received: list[int] = json.loads((out / f"{rank}.signals").read_text())
    return received


def test_each_process_learns_its_place_and_its_share_of_the_cores(tmp_path: Path) -> None:
    assert launch(2, ["-c", CHILD, str(tmp_path), "succeed"]) == 0
    facts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank, fact in enumerate(facts):
        environment = fact["environment"]
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == "2"
        assert environment["MASTER_ADDR"] == "127.0.0.1"
        assert environment["MASTER_PORT"].isdecimal()
        assert int(environment["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
        assert signals(tmp_path, rank) == []


@pytest.mark.parametrize(("task", "status"), [("fail", 7), ("die", 128 + signal.SIGKILL)])
def test_a_process_that_fails_ends_the_others_and_gives_its_status(
    tmp_path: Path, task: str, status: int
) -> None:
    assert launch(2, ["-c", CHILD, str(tmp_path), task]) == status
    assert signals(tmp_path, 0) == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("mistakes", "lines"),
    [
        ("'no photos'", ["Error: no photos"]),
        ("'no GPU ' + rank", ["Error: no GPU 0", "Error: no GPU 1"]),
    ],
)
def test_what_all_processes_say_is_printed_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mistakes: str, lines: list[str]
) -> None:
    child = CHILD.replace("sys.exit(7)", "pass").replace(
        'if task != "succeed":',
        "from training.launch import report_mistake\n"
        f"report_mistake(ValueError({mistakes}))\n"
        "meet('said')\n"
        "sys.exit(1)\n"
        'if task != "succeed":',
    )
    assert launch(2, ["-c", child, str(tmp_path), "fail"]) == 1
    assert capfd.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once(tmp_path: Path, number: signal.Signals) -> None:
    def send() -> None:
        end = time.monotonic() + DEADLINE_S
        while not all((tmp_path / f"{rank}.started").exists() for rank in (0, 1)):
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    status = launch(2, ["-c", CHILD, str(tmp_path), "stop"])
    sender.join()
    assert status == STOPPED
    for rank in (0, 1):
        assert signals(tmp_path, rank) == [number]
        # A terminal sends Ctrl-C to the launcher's process group.
        facts = json.loads((tmp_path / f"{rank}.json").read_text())
        assert facts["group"] != os.getpgrp()


def test_no_process_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="--nproc is 0: expected at least 1"):
        launch(0, ["-c", "pass"])


def test_a_launched_process_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launched()


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--help"], 0, "Usage: dscl train [OPTIONS]", ""),
        (["--preset", "nowhere"], 1, "", "Error: "),
    ],
)
def test_the_module_is_the_command_dscl_train(
    tmp_path: Path, arguments: list[str], status: int, out: str, err: str
) -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stdout.startswith(out)
    assert ended.stderr.startswith(err)
    assert "Traceback" not in ended.stderr
