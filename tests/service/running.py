"""The service as the tests run it: a real process, or an application in this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from service.app import create_app
from service.engine import Engine
from service.settings import Settings

T = TypeVar("T")

DEADLINE_S = 60
DSCL = [sys.executable, "-c", "from service.cli import main; main()"]


def eventually(look: Callable[[], T | None], *, deadline_s: float = DEADLINE_S) -> T:
    """What ``look`` gives once it gives something."""
    end = time.monotonic() + deadline_s
    while (found := look()) is None:
        assert time.monotonic() < end, f"not within {deadline_s} s"
        time.sleep(0.01)
    return found


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings of the service, one BLAS thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DSCL_")}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


def run_dscl(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DSCL, *map(str, arguments)],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@dataclass
class Server:
    """A running ``dscl serve``."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    output: Path

    def ready(self) -> bool | None:
        assert self.process.poll() is None, self.output.read_text()
        answers = self.client.get("/health/ready").status_code == 200
        # Of several processes, all: this one may have been the first.
        return (answers and "\nReady at " in self.output.read_text()) or None


@contextmanager
def serving(
    gallery: Path | str,
    folder: Path,
    *options: str,
    python: tuple[str, ...] = (),
    **environment: str,
) -> Iterator[Server]:
    """``dscl serve`` on a free port, ready to search."""
    output = folder / "output.txt"
    command = [DSCL[0], *python, *DSCL[1:], "serve", "--gallery", str(gallery), "--port", "0"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options],
            env=clean_environment(**environment),
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def url() -> str | None:
        assert process.poll() is None, output.read_text()
        found = re.search(r"^(http://\S+): opening", output.read_text(), re.MULTILINE)
        return found and found[1]

    try:
        with httpx.Client(base_url=eventually(url), timeout=DEADLINE_S, trust_env=False) as client:
            server = Server(process, client, output)
            eventually(server.ready)
            yield server
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


@dataclass
class InProcess:
    """The application in this process, where a test can reach inside."""

    engine: Engine
    client: httpx.AsyncClient


@asynccontextmanager
async def in_process(settings: Settings) -> AsyncIterator[InProcess]:
    """The application with its lifespan; not necessarily ready."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield InProcess(app.state.engine, client)
