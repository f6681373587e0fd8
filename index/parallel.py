"""Work in threads whose results come in the order of the inputs.

For functions that let go of the interpreter lock: reading, hashing, decoding, embedding.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from index.errors import InvalidArgumentError

__all__ = ["check_workers", "in_order"]

T = TypeVar("T")
R = TypeVar("R")

#: Inputs taken ahead of the consumer, for each worker: enough to bridge a slow one, few in memory.
AHEAD = 4


def check_workers(workers: int | None) -> int:
    """``workers``, or the number of cores for None.

    Raises:
        InvalidArgumentError: less than 1.
    """
    if workers is None:
        return os.cpu_count() or 1
    if workers < 1:
        raise InvalidArgumentError(f"workers is {workers}: expected at least 1.")
    return workers


def in_order(
    function: Callable[[T], R], inputs: Iterable[T], workers: int
) -> Generator[R, None, None]:
    """``map`` with ``workers`` threads, a few inputs ahead of the consumer.

    ``inputs`` is drawn from in the consumer's thread. An error of ``function`` is raised when its
    result is due. When the generator is closed, inputs not begun are dropped and those under way
    are waited for.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="parallel")
    source = iter(inputs)
    try:
        waiting.extend(pool.submit(function, each) for each in islice(source, AHEAD * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, each) for each in islice(source, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
