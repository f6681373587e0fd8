"""A server process with all that guards the service, around routes that only say what they got.

``python -m tests.service.guarded`` takes its settings from the environment and prints its port.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import Depends, FastAPI, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from index.errors import InvalidArgumentError
from service.commands import listen
from service.errors import install_error_handlers
from service.logs import logging_config
from service.metrics import MEDIA_TYPE, exposition
from service.middleware import install_middleware
from service.security import require
from service.settings import Settings
from service.tracing import record_stage, telemetry
from tests.service.running import DEADLINE_S, clean_environment, eventually

READ, WRITE, ADMIN = ([Depends(require(scope))] for scope in ("read", "write", "admin"))


def application(settings: Settings) -> FastAPI:
    app = FastAPI(telemetry=telemetry(settings.trace))
    install_error_handlers(app)
    install_middleware(app, settings)
    calls = {"waiting": 0, "cancelled": 0}

    async def wait_for_ever() -> None:
        calls["waiting"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            calls["cancelled"] += 1
            raise
        finally:
            calls["waiting"] -= 1

    @app.get("/health/live")
    async def live() -> dict[str, int]:
        return calls

    @app.get("/items/{number}", dependencies=READ)
    async def item(request: Request, number: int) -> dict[str, Any]:
        return {"client": request.state.client, "number": number}

    @app.post("/items", dependencies=WRITE)
    @app.post("/items/bulk", dependencies=WRITE)
    @app.post("/search", dependencies=READ)
    async def upload(file: UploadFile) -> dict[str, int]:
        return {"size": len(await file.read())}

    @app.post("/search/vector", dependencies=READ)
    async def vector(numbers: list[float]) -> dict[str, int]:
        return {"size": len(numbers)}

    @app.get("/search/staged", dependencies=READ)
    async def staged() -> None:
        record_stage("embed", 0.25)

    @app.get("/things", dependencies=READ)
    async def things() -> None:
        pass

    @app.put("/things", dependencies=WRITE)
    async def change_things(request: Request) -> None:
        raise InvalidArgumentError(f"{await request.json()} is no thing")

    app.get("/search/wait", dependencies=READ)(wait_for_ever)
    app.post("/items/wait", dependencies=WRITE)(wait_for_ever)
    app.post("/admin/reload", dependencies=ADMIN)(wait_for_ever)

    @app.get("/jobs/events", dependencies=READ)
    async def events() -> StreamingResponse:
        async def ticks() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b"tick\n"
                await asyncio.sleep(0.5)

        return StreamingResponse(ticks())

    @app.get("/boom", dependencies=READ)
    async def boom() -> None:
        raise RuntimeError("a secret of the inside")

    @app.get("/metrics", dependencies=READ)
    async def metrics() -> Response:
        return Response(exposition(None), media_type=MEDIA_TYPE)

    return app


@dataclass
class Guarded:
    """A running process."""

    client: httpx.Client
    port: int
    output: Path
    process: subprocess.Popen[bytes]

    def calls(self) -> dict[str, int]:
        calls: dict[str, int] = self.client.get("/health/live").json()
        return calls


@contextmanager
def guarded(folder: Path, **environment: str) -> Iterator[Guarded]:
    """A server process with these ``DSCL_…`` settings, ready to answer."""
    output = folder / "guarded.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.service.guarded"],
            env=clean_environment(DSCL_GALLERY="none", **environment),
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def port() -> int | None:
        assert process.poll() is None, output.read_text()
        found = re.search(r"^port (\d+)$", output.read_text(), re.MULTILINE)
        return int(found[1]) if found else None

    try:
        number = eventually(port)
        url = f"http://127.0.0.1:{number}"
        with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
            yield Guarded(client, number, output, process)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def main() -> None:
    settings = Settings()  # type: ignore[call-arg]  # from the environment
    listener = listen("127.0.0.1", 0, next_port=False)
    config = uvicorn.Config(
        application(settings),
        http="httptools",
        loop="uvloop",
        log_config=logging_config(settings.log_format, access_log=settings.access_log),
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    print("port", listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
