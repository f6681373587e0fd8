"""Running a command beside a Milvus server: its exit status, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.milvus_server import MilvusServer
from tests.service.running import DEADLINE_S, eventually

REPOSITORY = Path(__file__).parents[2]

NOT_RUN = 77

#: Says where the server's folder and process are, then waits.
TELL = """
import os, sys
folder = os.environ["DSCL_TEST_MILVUS_HOME"].split(":")[0]
print(os.environ["DSCL_TEST_MILVUS"], folder, flush=True)
sys.stdin.read()
"""


def with_milvus(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "scripts/with_milvus.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def server_processes(folder: str) -> list[str]:
    """The processes that work in a server's folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if str(link.readlink()).removesuffix(" (deleted)") == folder:
                found.append(link.parent.name)
        except OSError:
            continue  # it ended meanwhile
    return found


def test_a_server_that_cannot_be_installed_is_told_from_a_failure(tmp_path: Path) -> None:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    process = with_milvus("--environment", tmp_path / "venv", "true", **nowhere)
    _, said = process.communicate(timeout=DEADLINE_S)
    if "not run: no network namespace" in said or "is made for Linux" in said:
        pytest.skip(said)
    assert process.returncode == NOT_RUN
    assert "not run: the Milvus server cannot be installed" in said


def test_a_machine_that_cannot_keep_the_server_alone_is_told_from_a_failure(
    tmp_path: Path,
) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\necho no rights >&2\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    process = with_milvus("true", PATH=f"{tmp_path}:{os.environ['PATH']}")
    _, said = process.communicate(timeout=DEADLINE_S)
    if "is made for Linux" in said:
        pytest.skip(said)
    assert process.returncode == NOT_RUN
    assert "no network namespace can be made: no rights" in said


@pytest.mark.milvus_server
@pytest.mark.skipif(MilvusServer.of_environment() is None, reason="needs `make test-milvus`")
@pytest.mark.parametrize("end", ["by itself", "SIGINT", "SIGTERM", "SIGKILL"])
def test_however_it_ends_nothing_of_the_server_is_left(end: str) -> None:
    process = with_milvus(sys.executable, "-c", TELL)
    assert process.stdin and process.stdout
    address, folder = process.stdout.readline().split()
    assert address == "127.0.0.1:19530"
    assert server_processes(folder)
    if end == "by itself":
        process.stdin.close()
    elif end == "SIGINT":  # as Ctrl-C: to all of the terminal's processes
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, end))
    status = process.wait(DEADLINE_S)
    eventually(lambda: server_processes(folder) == [] or None)
    assert status == {"by itself": 0, "SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[end]
    if end == "SIGKILL":  # which nobody can clean up after
        shutil.rmtree(folder)
    assert not Path(folder).exists()


@pytest.mark.milvus_server
@pytest.mark.skipif(MilvusServer.of_environment() is None, reason="needs `make test-milvus`")
def test_the_exit_status_is_the_commands() -> None:
    process = with_milvus("sh", "-c", "exit 5")
    process.communicate(timeout=2 * DEADLINE_S)
    assert process.returncode == 5
