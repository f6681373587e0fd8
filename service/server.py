"""``serve_app``: one process that answers on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from index.errors import DsclError
from service.engine import Engine
from service.logs import logging_config
from service.protocol import bounded_protocol
from service.settings import Settings

__all__ = ["Server"]

#: Seconds a silent connection is kept, and seconds that running requests have at the end.
KEEP_ALIVE_S = 15
GRACE_S = 10

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn with the service's settings. SIGTERM and SIGINT stop it, SIGHUP reloads."""

    def __init__(self, app: FastAPI, settings: Settings, *, around: ASGIApp | None = None) -> None:
        """Serve ``app``.

        Args:
            app: of ``create_app``.
            settings: the ones it was made with.
            around: what stands around ``app``, if something does.
        """
        super().__init__(
            uvicorn.Config(
                # uvicorn and Starlette type the same protocol differently
                cast(Any, app if around is None else around),
                loop="uvloop",
                http=bounded_protocol(settings.header_timeout_s),
                log_config=logging_config(settings.log_format, access_log=settings.access_log),
                access_log=False,  # ours knows the key and the route
                server_header=False,
                # On the writer's socket only our own processes knock, and say for whom.
                forwarded_allow_ips="*" if settings.role == "writer" else None,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self.engine: Engine = app.state.engine
        self._reloading: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and to listen to SIGHUP."""
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self.engine.end_watching()
        super().handle_exit(sig, frame)

    def _hang_up(self) -> None:
        task = asyncio.create_task(self._reload())
        self._reloading.add(task)  # or it could be collected before it ends
        task.add_done_callback(self._reloading.discard)

    async def _reload(self) -> None:
        try:
            done = await self.engine.reload()
        except DsclError as error:
            logger.error("SIGHUP: %s", error)
        else:
            logger.warning(
                "SIGHUP: %s gallery %s, %d items, model %s",
                "now serving" if done.changed else "still serving",
                done.gallery,
                done.items,
                done.model_name,
            )
