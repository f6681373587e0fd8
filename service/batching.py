"""Threads for the heavy part of a request, and a bound on how many requests wait for them.

One thread per forward pass and one forward pass per core comes closest to what a CPU can do, and
batching gains nothing there, so a photo is decoded, embedded and searched in a single hop to one
thread. The event loop only ever waits; the framework's own thread pool is left alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from service.errors import OverloadedError
from service.metrics import queue_length

__all__ = ["WorkerPool"]

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool:
    """A fixed number of threads with a bounded queue in front."""

    def __init__(self, name: str, *, workers: int, queue_limit: int) -> None:
        """Make a pool; threads start when there is work.

        Args:
            name: names the threads.
            workers: calls that run at a time.
            queue_limit: calls that may wait beyond those.
        """
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._length = queue_length(name)
        self._places = threading.BoundedSemaphore(workers + queue_limit)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``call``, made on one of the threads; cancelled in time, it never runs.

        Raises:
            OverloadedError: the queue is full.
        """
        if not self._places.acquire(blocking=False):
            raise OverloadedError(
                "the service has more requests than it can take: try again in a second."
            )
        self._length.inc()
        future = self._executor.submit(call, *args, **kwargs)
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def _leave(self, _: Future[T]) -> None:
        """Called when a thread is done with a call, however long after the caller has gone."""
        self._length.dec()
        self._places.release()

    def close(self) -> None:
        """Drop what waits and return when what runs is done."""
        self._executor.shutdown(cancel_futures=True)
