from __future__ import annotations

import asyncio
import threading

import pytest

from service.batching import WorkerPool
from service.errors import OverloadedError


def test_calls_run_on_the_pools_own_threads() -> None:
    async def run() -> set[str]:
        pool = WorkerPool("own", workers=2, queue_limit=10)
        try:
            calls = [pool.run(lambda: threading.current_thread().name) for _ in range(10)]
            return set(await asyncio.gather(*calls))
        finally:
            pool.close()

    assert asyncio.run(run()) <= {"own_0", "own_1"}


def test_results_and_errors_come_back_to_their_callers() -> None:
    async def run() -> list[object]:
        pool = WorkerPool("own", workers=2, queue_limit=100)
        try:
            calls = [pool.run(lambda n: 12 // n, n) for n in (3, 0, 2)]
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            pool.close()

    four, error, six = asyncio.run(run())
    assert (four, six) == (4, 6)
    assert isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize(("workers", "queue_limit"), [(1, 0), (1, 3), (3, 2)])
def test_as_many_calls_are_taken_as_run_and_may_wait(workers: int, queue_limit: int) -> None:
    async def run() -> None:
        pool = WorkerPool("own", workers=workers, queue_limit=queue_limit)
        may_go_on = threading.Event()
        places = workers + queue_limit
        try:
            calls = [asyncio.create_task(pool.run(may_go_on.wait, 30)) for _ in range(places)]
            await asyncio.sleep(0)  # each task runs up to its wait
            with pytest.raises(OverloadedError):
                await pool.run(int)
            may_go_on.set()
            assert await asyncio.gather(*calls) == [True] * places
            assert await pool.run(int) == 0
        finally:
            may_go_on.set()
            pool.close()

    asyncio.run(run())


def test_a_call_cancelled_while_it_waits_never_runs_and_frees_its_place() -> None:
    async def run() -> list[str]:
        pool = WorkerPool("own", workers=1, queue_limit=1)
        may_go_on = threading.Event()
        ran: list[str] = []
        try:
            first = asyncio.create_task(pool.run(may_go_on.wait, 30))
            second = asyncio.create_task(pool.run(ran.append, "cancelled"))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            third = asyncio.create_task(pool.run(ran.append, "third"))
            await asyncio.sleep(0)
            may_go_on.set()
            await asyncio.gather(first, third)
        finally:
            may_go_on.set()
            pool.close()
        return ran

    assert asyncio.run(run()) == ["third"]


def test_a_running_call_keeps_its_place_when_its_caller_goes() -> None:
    async def run() -> None:
        pool = WorkerPool("own", workers=1, queue_limit=0)
        started, may_go_on = threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            may_go_on.wait(30)

        try:
            call = asyncio.create_task(pool.run(work))
            assert await asyncio.to_thread(started.wait, 30)
            call.cancel()
            await asyncio.wait([call])
            with pytest.raises(OverloadedError):
                await pool.run(int)
        finally:
            may_go_on.set()
            pool.close()

    asyncio.run(run())
