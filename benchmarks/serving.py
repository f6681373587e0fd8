"""Processes that the service's benchmarks start and watch: servers, their memory and CPU time."""

from __future__ import annotations

import http.client
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DSCL", "HERE", "Process", "child", "dscl_serve", "nginx_before"]

#: As `dscl`, wherever the benchmark was started from.
DSCL = ["-c", "from service.cli import main; main()"]
ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent

START_DEADLINE_S = 300
STOP_DEADLINE_S = 30
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class NotRunningError(RuntimeError):
    """A process of the benchmark ended, or did not begin, on its own."""


@dataclass
class Process:
    """A server that runs, and the processes it has started."""

    name: str
    popen: subprocess.Popen[bytes]
    port: int
    output: Path
    #: From the start of the process until it was ready.
    started_s: float

    def check(self) -> None:
        """Raise if it has ended."""
        if (status := self.popen.poll()) is not None:
            raise NotRunningError(f"{self.name} ended with {status}:\n{self.output.read_text()}")

    def tree(self) -> list[int]:
        """The ids of the process and of all its descendants."""
        parents: dict[int, int] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                fields = stat_fields(int(folder.name))
                if fields:
                    parents[int(folder.name)] = int(fields[1])
        found = [self.popen.pid]
        for pid in found:  # grows while it is read: breadth first
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu_s(self) -> float:
        """CPU time that the tree has used so far, in seconds."""
        ticks = 0
        for pid in self.tree():
            fields = stat_fields(pid)
            ticks += sum(map(int, fields[11:13])) if fields else 0
        return ticks / TICKS_PER_S

    def memory(self) -> dict[str, int]:
        """Bytes that are resident: all (``rss``), and those that no file stands behind."""
        sums = {"rss": 0, "anonymous": 0}
        for pid in self.tree():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # it has just ended
                continue
            for name, key in (("VmRSS", "rss"), ("RssAnon", "anonymous")):
                found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
                sums[key] += 1024 * int(found[1]) if found else 0
        return sums


def stat_fields(pid: int) -> list[str]:
    """``/proc/PID/stat`` after the name, which may hold blanks: [state, ppid, …]; [] if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextmanager
def dscl_serve(
    gallery: Path | str, folder: Path, options: Sequence[str] = (), **environment: str
) -> Iterator[Process]:
    """``dscl serve`` on a free port, ready to search."""
    command = [*DSCL, "serve", "--gallery", str(gallery), "--port", "0", *options]
    with child("dscl serve", command, folder, r"^http://\S+?:(\d+): opening", environment) as up:
        yield up


@contextmanager
def child(
    name: str, arguments: Sequence[str], folder: Path, port: str, environment: dict[str, str]
) -> Iterator[Process]:
    """A Python process that serves HTTP, once ``/health/ready`` answers 200.

    Args:
        name: for messages.
        arguments: of Python.
        folder: where its output goes.
        port: a regular expression whose first group is the port in that output.
        environment: beside this process's own, less the settings of the service.
    """
    output = folder / f"{name.replace(' ', '-')}.txt"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DSCL_")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    began = time.perf_counter()
    with output.open("wb") as file:
        popen = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment},
        )
    process = Process(name, popen, 0, output, 0)
    try:
        while not (found := re.search(port, output.read_text(), re.MULTILINE)):
            process.check()
            wait(began, name)
        process.port = int(found[1])
        while not ready(process.port):
            process.check()
            wait(began, name)
        process.started_s = time.perf_counter() - began
        yield process
    finally:
        popen.terminate()
        try:
            popen.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


@contextmanager
def nginx_before(ports: Sequence[int], folder: Path) -> Iterator[int]:
    """The port of an nginx, as it is deployed, in front of services on these ports."""
    # Behind all others: from this folder, `service` is a benchmark, not the package.
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from scripts.check_deploy import nginx_folder

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    example = (ROOT / "deploy" / "nginx" / "backends" / "machines.conf").read_text()
    servers = "".join(f"    server 127.0.0.1:{each} max_fails=0;\n" for each in ports)
    backends = re.sub(r"^    server .*\n", "", example, flags=re.MULTILINE)
    backends = backends.replace("upstream replicas {\n", "upstream replicas {\n" + servers)
    folder.mkdir()
    config = nginx_folder(ROOT, folder, backends, port=port)
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        raise NotRunningError("nginx is not installed.")
    output = folder / "output.txt"
    with output.open("wb") as file:
        # As one user: its workers, as root's would be another's, may not enter the folder.
        popen = subprocess.Popen(
            [nginx, "-p", str(folder), "-c", str(config), "-g", f"daemon off; user {user()};"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    process = Process("nginx", popen, port, output, 0)
    try:
        began = time.perf_counter()
        while not ready(port):
            process.check()
            wait(began, "nginx")
        yield port
    finally:
        popen.terminate()
        popen.wait(STOP_DEADLINE_S)


def user() -> str:
    """Who this process is."""
    return pwd.getpwuid(os.getuid()).pw_name


def ready(port: int) -> bool:
    """Whether searches on this port will be answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_DEADLINE_S)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def wait(began: float, name: str) -> None:
    """Wait a moment, but not for ever."""
    if time.perf_counter() - began > START_DEADLINE_S:
        raise NotRunningError(f"{name} was not ready within {START_DEADLINE_S} s.")
    time.sleep(0.005)
