"""``supervise``: several processes that search one gallery, and one that changes it.

All of them are started anew when they die. The ones that search share a socket, so a connection
that waits is taken by whichever is free; what changes the gallery they pass on to the writer over a
socket of its own (``service.forward``).
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import FrameType

from index.errors import DsclError
from service.generation import Generation
from service.settings import Role, Settings

__all__ = ["Ready", "WorkerFailedError", "supervise"]

#: Seconds between the death of a process and its restart; doubled while it dies at once.
RESTART_S = 0.1
RESTART_MAX_S = 10.0

#: A process that has lived for so many seconds did not die at once.
LIVED_S = 10.0

#: Seconds that a process may take to stop before it is killed; it lets requests end in this time.
STOP_S = 15.0

WRITER_SOCKET = "writer.sock"

logger = logging.getLogger(__name__)


class WorkerFailedError(DsclError):
    """A process of the service that cannot start; the message is its own."""

    code = "worker_failed"


@dataclass(frozen=True)
class Ready:
    """What a process tells when its gallery is open."""

    items: int
    model_name: str
    model_sha256: str


@dataclass
class _Worker:
    """One of the processes, through all its lives."""

    role: Role
    process: SpawnProcess
    reports: Connection
    born: float
    pause: float = RESTART_S
    due: float | None = None  #: when it is to be started again, if it is dead
    ready: bool = False  #: in this life
    was_ready: bool = False  #: in this or an earlier one


def supervise(
    settings: Settings, listener: socket.socket, when_ready: Callable[[Ready], None]
) -> None:
    """Run the service in ``settings.workers`` processes and one writer until SIGTERM or SIGINT.

    Args:
        settings: of the service.
        listener: the socket that the processes answer on.
        when_ready: called once, when all of them are.

    Raises:
        WorkerFailedError: a process cannot start, for a reason that another try would not mend.
    """
    with tempfile.TemporaryDirectory(prefix="dscl-") as folder:
        state = Path(folder)
        figures = state / "metrics"
        figures.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(figures)
        with socket.socket(socket.AF_UNIX) as writer_listener:
            writer_listener.bind(str(state / WRITER_SOCKET))
            writer_listener.listen(128)
            shared = settings.model_copy(update={"state_folder": state})
            _Supervisor(shared, listener, writer_listener, when_ready).run()


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        writer_listener: socket.socket,
        when_ready: Callable[[Ready], None],
    ) -> None:
        self._settings = settings
        self._sockets: dict[Role, socket.socket] = {"search": listener, "writer": writer_listener}
        self._when_ready = when_ready
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._stopping = threading.Event()
        # A signal only notes what is wanted; this wakes the loop that does it.
        self._wake, self._waker = multiprocessing.Pipe(duplex=False)
        self._told = False
        self._reload_due = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # The writer first: it upgrades a gallery of an older format.
        workers = [self._start("writer")]
        workers += [self._start("search") for _ in range(self._settings.workers)]
        try:
            while not self._stopping.is_set():
                self._look(workers)
        finally:
            self._stop(workers)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            self._stopping.set()
        self._waker.send(number)

    def _start(self, role: Role) -> _Worker:
        reports, report = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_run, args=(self._settings, role, self._sockets[role], report), name=role
        )
        process.start()
        report.close()
        return _Worker(role, process, reports, time.monotonic())

    def _look(self, workers: list[_Worker]) -> None:
        """Wait for something to happen, and see to it."""
        now = time.monotonic()
        due = [worker.due for worker in workers if worker.due is not None]
        alive = [worker for worker in workers if worker.due is None]
        happened = multiprocessing.connection.wait(
            [
                self._wake,
                *(worker.process.sentinel for worker in alive),
                *(worker.reports for worker in alive if not worker.reports.closed),
            ],
            timeout=max(0.0, min(due) - now) if due else None,
        )
        if self._wake in happened and self._wake.recv() == signal.SIGHUP:
            self._reload_due = True
        for number, worker in enumerate(workers):
            if worker.reports in happened:
                self._hear(worker)
            if worker.due is None and worker.process.sentinel in happened:
                self._bury(worker)
            elif worker.due is not None and worker.due <= time.monotonic():
                again = self._start(worker.role)
                again.pause, again.was_ready = worker.pause, worker.was_ready
                workers[number] = again
        self._pass_reload_on(workers)
        if not self._told and all(worker.was_ready for worker in workers):
            self._told = True
            self._when_ready(self._ready)

    def _pass_reload_on(self, workers: list[_Worker]) -> None:
        """Have the writer reload, once it is there to hear of it; it tells the others."""
        [writer] = [worker for worker in workers if worker.role == "writer"]
        if self._reload_due and writer.ready and writer.due is None:
            assert writer.process.pid is not None
            os.kill(writer.process.pid, signal.SIGHUP)
            self._reload_due = False

    def _hear(self, worker: _Worker) -> None:
        try:
            report = worker.reports.recv()
        except EOFError:  # it died without a word
            worker.reports.close()
            return
        worker.reports.close()
        if isinstance(report, Ready):
            worker.ready = worker.was_ready = True
            if worker.role == "writer":
                self._ready = report
        elif not self._told:
            raise WorkerFailedError(report)
        else:
            logger.error("the %s process: %s", worker.role, report)

    def _bury(self, worker: _Worker) -> None:
        from service.metrics import process_ended

        if worker.process.pid is not None:
            process_ended(worker.process.pid)
        if self._stopping.is_set():
            worker.due = float("inf")
            return
        lived = time.monotonic() - worker.born
        worker.pause = RESTART_S if lived >= LIVED_S else min(RESTART_MAX_S, 2 * worker.pause)
        logger.warning(
            "the %s process %s ended with status %s: a new one starts in %.1f s",
            worker.role,
            worker.process.pid,
            worker.process.exitcode,
            worker.pause,
        )
        worker.due = time.monotonic() + worker.pause

    def _stop(self, workers: list[_Worker]) -> None:
        # Those that search first: what they have forwarded, the writer still has to answer.
        for role in ("search", "writer"):
            those = [worker.process for worker in workers if worker.role == role]
            for process in those:
                if process.is_alive():
                    process.terminate()
            deadline = time.monotonic() + STOP_S
            for process in those:
                process.join(max(0.0, deadline - time.monotonic()))
                if process.is_alive():
                    logger.error("the %s process %s did not stop: killed", role, process.pid)
                    process.kill()
                    process.join()


def _run(settings: Settings, role: Role, listener: socket.socket, report: Connection) -> None:
    """The life of one process."""
    # Ctrl-C reaches all processes of a terminal; when to stop is the supervisor's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from concurrent.futures import Future

    from index import Gallery
    from index.memory import return_freed_memory
    from service.app import create_app
    from service.forward import Forward
    from service.server import Server

    return_freed_memory()
    state = settings.state_folder
    assert state is not None
    present = Generation(state).present()
    changed = {"role": role} | ({} if present is None else {"gallery": present})
    settings = settings.model_copy(update=changed)
    try:
        app = create_app(settings)
    except DsclError as error:
        report.send(str(error))
        return
    around = Forward(app, state / WRITER_SOCKET) if role == "search" else None
    server = Server(app, settings, around=around)

    def when_opened(opened: Future[Gallery]) -> None:
        error = opened.exception()
        if error is None:
            gallery = opened.result()
            card = gallery.model.card
            report.send(Ready(len(gallery), card.name, card.sha256))
        else:
            report.send(str(error))
            server.should_exit = True

    server.engine.opened.add_done_callback(when_opened)
    # Without its supervisor nobody would start it again, or stop it.
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None

    def stop_with_supervisor() -> None:
        supervisor.join()
        server.should_exit = True

    threading.Thread(target=stop_with_supervisor, daemon=True, name="supervisor").start()
    server.run(sockets=[listener])
