from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index.errors import InvalidArgumentError
from service.errors import OverloadedError
from service.job_states import KEPT, FolderStates
from service.jobs import JobCancelledError, JobNotFoundError, Jobs, Progress
from service.schemas import Job
from tests.service.running import DEADLINE_S, clean_environment, eventually

Cancelled = Callable[[], bool]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(FolderStates(tmp_path), limit=2)
    yield jobs
    jobs.close()


class Held:
    """Work that waits until it is told to go on, or cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
        progress(1, 2, "half")
        self.begun.set()
        while not self.go.wait(0.01):
            if cancelled():
                raise JobCancelledError("stopped")
        return {"answer": 42}


def ended(jobs: Jobs, job: Job) -> Job:
    def look() -> Job | None:
        now = jobs.get(job.id)
        return now if now.ended else None

    return eventually(look)


def test_a_job_goes_from_queued_to_done_with_its_progress_and_result(jobs: Jobs) -> None:
    first, second = Held(), Held()
    job, waiting = jobs.start("one", first), jobs.start("two", second)
    assert first.begun.wait(DEADLINE_S)
    now = jobs.get(job.id)
    assert (now.kind, now.state, now.progress.done, now.progress.stage) == (
        "one",
        "running",
        1,
        "half",
    )
    assert jobs.get(waiting.id).state == "queued"
    assert [each.id for each in jobs.list()] == [waiting.id, job.id]
    first.go.set()
    second.go.set()
    done = ended(jobs, job)
    assert (done.state, done.result, done.problem) == ("done", {"answer": 42}, None)
    assert done.started and done.finished and done.created <= done.started <= done.finished


def test_a_failed_job_has_the_code_of_its_error_and_nothing_of_an_unforeseen_one(
    jobs: Jobs,
) -> None:
    def refused(progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
        raise InvalidArgumentError("k is 0.")

    def broken(progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
        raise RuntimeError("secret")

    failed = ended(jobs, jobs.start("refused", refused))
    assert failed.state == "failed" and failed.problem is not None
    assert (failed.problem.code, failed.problem.detail) == ("invalid_argument", "k is 0.")
    failed = ended(jobs, jobs.start("broken", broken))
    assert failed.state == "failed" and failed.problem is not None
    assert failed.problem.code == "internal_error"
    assert "secret" not in failed.model_dump_json()


def test_a_running_job_and_a_queued_one_can_be_cancelled_and_a_done_one_stays(jobs: Jobs) -> None:
    first, second, third = Held(), Held(), Held()
    running, queued = jobs.start("one", first), jobs.start("two", second)
    assert first.begun.wait(DEADLINE_S)
    assert jobs.cancel(queued.id).state == "cancelled"
    jobs.cancel(running.id)
    assert ended(jobs, running).state == "cancelled"
    third.go.set()
    done = ended(jobs, jobs.start("three", third))
    assert jobs.cancel(done.id) == done
    assert not second.begun.is_set()


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(jobs: Jobs) -> None:
    works = [Held() for _ in range(4)]
    started = [jobs.start("held", work) for work in works[:3]]
    with pytest.raises(OverloadedError):
        jobs.start("held", works[3])
    jobs.cancel(started[2].id)
    jobs.start("held", works[3])
    for work in works:
        work.go.set()


def test_an_unknown_job_is_not_found(jobs: Jobs) -> None:
    for job_id in ("", "../catalog", "0" * 32):
        with pytest.raises(JobNotFoundError):
            jobs.get(job_id)
        with pytest.raises(JobNotFoundError):
            jobs.cancel(job_id)


def test_results_are_there_after_a_restart_and_only_the_last_are_kept(tmp_path: Path) -> None:
    jobs = Jobs(FolderStates(tmp_path))
    made = []
    for number in range(KEPT + 3):
        made.append(jobs.start("quick", lambda progress, cancelled, n=number: {"n": n}))
        ended(jobs, made[-1])
    jobs.close()
    again = Jobs(FolderStates(tmp_path))
    assert [job.result for job in again.list()] == [
        {"n": number} for number in reversed(range(3, KEPT + 3))
    ]
    assert len(list(tmp_path.glob("*.json"))) == KEPT
    again.close()


def test_closing_interrupts_what_runs_and_what_waits(tmp_path: Path) -> None:
    jobs = Jobs(FolderStates(tmp_path))
    work = Held()
    running, waiting = jobs.start("held", work), jobs.start("held", Held())
    assert work.begun.wait(DEADLINE_S)
    jobs.close()
    again = Jobs(FolderStates(tmp_path))
    assert [again.get(job.id).state for job in (running, waiting)] == ["interrupted"] * 2
    again.close()


KILLED = """
import sys, time
from pathlib import Path
from service.job_states import FolderStates
from service.jobs import Jobs

def work(progress, cancelled):
    progress(3, 10, "counting")
    print(job.id, flush=True)
    time.sleep(60)
    return {}

jobs = Jobs(FolderStates(Path(sys.argv[1])))
job = jobs.start("slow", work)
"""


def test_a_job_whose_process_was_killed_is_interrupted(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().strip()
        process.kill()
    jobs = Jobs(FolderStates(tmp_path))
    job = jobs.get(job_id)
    assert job.state == "interrupted" and job.problem is not None and job.finished
    assert job.problem.code == "interrupted"
    jobs.close()
    assert Jobs(FolderStates(tmp_path)).get(job_id) == job


def test_a_file_that_is_no_state_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"id": "x"}))
    jobs = Jobs(FolderStates(tmp_path))
    assert jobs.list() == []
    assert (tmp_path / "x.json").is_file()
    jobs.close()


def test_a_watcher_sees_the_start_the_progress_and_the_end_in_order(jobs: Jobs) -> None:
    steps = [threading.Event() for _ in range(3)]

    def work(progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
        for number, step in enumerate(steps):
            assert step.wait(DEADLINE_S)
            progress(number + 1, 3, "stepping")
        return {"steps": 3}

    async def watch() -> list[Job]:
        job = jobs.start("steps", work)
        seen = []
        waiting = iter(steps)
        async for now in jobs.watch(job.id):
            seen.append(now)
            if now.state == "running" and (step := next(waiting, None)):
                step.set()
        return seen

    seen = asyncio.run(asyncio.wait_for(watch(), DEADLINE_S))
    done = [job.progress.done for job in seen]
    assert done == sorted(done) and set(done) == {0, 1, 2, 3}
    assert seen[-1].state == "done" and seen[-1].result == {"steps": 3}
    assert [job.ended for job in seen[:-1]] == [False] * (len(seen) - 1)


def test_a_watcher_of_an_ended_job_sees_it_once_and_end_watching_lets_go(jobs: Jobs) -> None:
    work = Held()
    work.go.set()
    done = ended(jobs, jobs.start("held", work))
    held = Held()

    async def watch(job: Job) -> list[Job]:
        return [now async for now in jobs.watch(job.id)]

    async def let_go() -> list[Job]:
        job = jobs.start("held", held)
        watching = asyncio.create_task(watch(job))
        await asyncio.to_thread(held.begun.wait, DEADLINE_S)
        jobs.end_watching()
        return await asyncio.wait_for(watching, DEADLINE_S)

    assert asyncio.run(watch(done)) == [done]
    assert not asyncio.run(let_go())[-1].ended
    held.go.set()
