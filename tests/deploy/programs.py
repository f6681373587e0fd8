"""nginx as the tests run it: the real program, on loopback, until it is told to stop."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from scripts.check_deploy import nginx_folder
from tests.service.running import DEADLINE_S, eventually

REPOSITORY = Path(__file__).parents[2]


def program(name: str) -> str:
    """The path of a program of the system; the test is skipped where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install nginx prometheus)")
    return found


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def backends(ports: Sequence[int]) -> str:
    """What goes into conf.d/backends.conf, as in backends/machines.conf."""
    example = REPOSITORY / "deploy" / "nginx" / "backends" / "machines.conf"
    servers = "".join(f"    server 127.0.0.1:{port} max_fails=0;\n" for port in ports)
    kept = [
        line
        for line in example.read_text(encoding="utf-8").splitlines(keepends=True)
        if not line.lstrip().startswith("server ")
    ]
    opening = kept.index("upstream replicas {\n") + 1
    return "".join([*kept[:opening], servers, *kept[opening:]])


def limits_of(per_minute: int) -> str:
    """What goes into conf.d/limits.conf: the example, with another number."""
    text = (REPOSITORY / "deploy" / "nginx" / "limits.conf").read_text(encoding="utf-8")
    return text.replace("rate=600r/m", f"rate={per_minute}r/m").replace(
        "burst=599", f"burst={per_minute - 1}"
    )


@contextmanager
def proxying(ports: Sequence[int], *, per_minute: int = 0) -> Iterator[httpx.Client]:
    """A client of nginx, as it is deployed, in front of replicas on these ports of loopback.

    With ``per_minute`` a client may make so many requests.
    """
    nginx = program("nginx")
    # Not pytest's folder, which only its owner may enter: nginx's workers have another user.
    with tempfile.TemporaryDirectory(prefix="dscl-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        port = free_port()
        limits = limits_of(per_minute) if per_minute else ""
        config = nginx_folder(REPOSITORY, folder, backends(ports), port=port, limits=limits)
        output = folder / "output.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [nginx, "-p", name, "-c", str(config), "-g", "daemon off;"],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

        def listens() -> bool | None:
            assert process.poll() is None, output.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except ConnectionRefusedError:
                return None
            return True

        try:
            eventually(listens)
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
                yield client
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
