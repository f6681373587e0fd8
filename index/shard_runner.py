"""Shards embedded by several processes of this machine.

Each process is spawned (a child forked after ONNX Runtime or FAISS have run may hang), loads the
model once with one thread, and asks for one shard after the other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol, cast

from index.errors import DsclError, ShardError
from index.model import Model
from index.parallel import check_workers
from index.reading import embed_photo
from index.shards import Work

__all__ = ["ProcessRunner", "Runner", "ShardEmbedder"]


class Runner(Protocol):
    """What embeds shards: processes here, or a cluster."""

    @property
    def workers(self) -> int:
        """How many shards are embedded beside one another."""
        ...

    def run(self, work: Work, numbers: Sequence[int]) -> Generator[int, None, None]:
        """Embed these shards of ``work``, and yield the number of each as it is done.

        Raises:
            ShardError: a worker was killed, or cannot read or write the work folder.
            ModelError: the model cannot be loaded where it is to run.
        """
        ...


class ShardEmbedder:
    """Embeds shards of one work folder with one model, loaded once. What every engine runs."""

    def __init__(self, folder: Path) -> None:
        """Open the work folder and load its model.

        Raises:
            ShardError: no work folder there.
            ModelError: the model cannot be loaded.
        """
        self.work = Work.open(folder)
        self.model: Model = self.work.model()

    def embed(self, number: int) -> int:
        """Embed a shard, unless it is done; returns how many of its photos were embedded now.

        Raises:
            ShardError: no such shard, or the work folder cannot be read or written.
        """
        shard = self.work.shard(number)
        if self.work.is_done(shard):
            return 0
        results = [embed_photo(self.model, file) for file in self.work.files(shard)]
        self.work.write(shard, results)
        return len(results)


class ProcessRunner:
    """Runs shards in ``workers`` spawned processes; default: one for each core.

    As ``multiprocessing`` wants it, a script that uses this does so below
    ``if __name__ == "__main__":``.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = check_workers(workers)

    def run(self, work: Work, numbers: Sequence[int]) -> Generator[int, None, None]:
        """See ``Runner``. When the generator is closed, the processes are stopped at once."""
        waiting = list(reversed(numbers))
        workers: list[_Worker] = []
        busy: dict[Connection, _Worker] = {}
        try:
            while waiting and len(workers) < self.workers:
                worker = _Worker.start(work.path)
                workers.append(worker)
                worker.give(waiting.pop())
                busy[worker.connection] = worker
            while busy:
                for ready in wait(list(busy)):
                    worker = busy.pop(cast(Connection, ready))
                    yield worker.take()
                    if waiting:
                        worker.give(waiting.pop())
                        busy[worker.connection] = worker
        finally:
            for worker in workers:
                worker.stop()


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    number: int = -1  #: the shard it has in hand

    @classmethod
    def start(cls, folder: Path) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(folder, theirs), daemon=True)
        process.start()
        theirs.close()  # so that ours tells when the process has ended
        return cls(process, ours)

    def give(self, number: int) -> None:
        self.number = number
        with contextlib.suppress(OSError):  # where it has ended, ``take`` says so
            self.connection.send(number)

    def take(self) -> int:
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise ShardError(
                f"a worker process ended with status {self.process.exitcode} over shard "
                f"{self.number}; if it was killed for memory, give fewer --workers. The same "
                "command goes on with what is not done."
            ) from None
        if error is not None:
            raise error
        return self.number

    def stop(self) -> None:
        self.process.kill()  # outputs are whole or absent
        self.process.join()
        self.connection.close()


def _work(folder: Path, connection: Connection) -> None:
    """The life of a worker process: for each number received, None or the error is sent."""
    # Ctrl-C goes to the whole group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    embedder: ShardEmbedder | None = None
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        error: Exception | None = None
        try:
            embedder = embedder or ShardEmbedder(folder)
            embedder.embed(number)
        except DsclError as known:
            error = known
        except Exception:  # a fault of ours: shown where it can be seen
            error = RuntimeError(
                f"shard {number} on {socket.gethostname()}:\n{traceback.format_exc()}"
            )
        connection.send(error)


def _end_with_parent() -> None:
    """Nobody waits for what this process does once its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
