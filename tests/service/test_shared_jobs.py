"""Jobs of several replicas, whose states are notes of one gallery.

``Notes`` here stands for ``index.milvus_notes.Notes``: a dict with its methods, which can be away.
The last test has real ones, of Milvus Lite.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from index import Gallery, Model
from index.errors import GalleryUnavailableError
from service import job_states
from service.errors import OverloadedError
from service.job_states import KEPT, NotesStates
from service.jobs import JobNotFoundError, Jobs, Progress
from service.schemas import Job
from tests.index.gallery_kinds import lite
from tests.service.running import DEADLINE_S, eventually
from tests.service.test_jobs import Held, ended

Cancelled = Callable[[], bool]


class Notes:
    """Texts by their keys, in memory."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.away = False
        self.writes = 0

    def get(self, key: str) -> str | None:
        self._expect()
        return self.texts.get(key)

    def put_all(self, texts: dict[str, str]) -> None:
        self._expect()
        self.writes += 1
        assert all(len(text.encode()) <= 65_000 for text in texts.values())
        self.texts.update(texts)

    def delete(self, *keys: str) -> None:
        self._expect()
        for key in keys:
            self.texts.pop(key, None)

    def keys(self, prefix: str = "") -> list[str]:
        return list(self.items(prefix))

    def items(self, prefix: str = "") -> dict[str, str]:
        self._expect()
        return {key: text for key, text in sorted(self.texts.items()) if key.startswith(prefix)}

    def _expect(self) -> None:
        if self.away:
            raise GalleryUnavailableError("the server is away")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    monkeypatch.setattr(job_states, "BEAT_S", 0.02)
    monkeypatch.setattr("service.jobs.LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("service.jobs.SAVE_EVERY_S", 0.0)
    return Notes()


@pytest.fixture
def replicas(notes: Notes) -> Iterator[tuple[Jobs, Jobs]]:
    one, other = Jobs(NotesStates(notes)), Jobs(NotesStates(notes))
    yield one, other
    notes.away = False
    one.close()
    other.close()


def state(jobs: Jobs, job: Job, wanted: str) -> Job:
    def look() -> Job | None:
        now = jobs.get(job.id)
        return now if now.state == wanted else None

    return eventually(look)


def test_a_job_is_known_to_every_replica_as_soon_as_its_id_is_told(
    replicas: tuple[Jobs, Jobs],
) -> None:
    one, other = replicas
    work = Held()
    job = one.start("held", work)
    assert other.get(job.id).id == job.id
    assert [each.id for each in other.list()] == [job.id]
    running = state(other, job, "running")
    assert running.started

    def half() -> bool | None:
        return other.get(job.id).progress.stage == "half" or None

    eventually(half)
    work.go.set()
    assert ended(other, job).result == {"answer": 42}
    assert one.get(job.id) == other.get(job.id)


def test_lists_are_the_same_everywhere_the_newest_first(replicas: tuple[Jobs, Jobs]) -> None:
    one, other = replicas
    started = [jobs.start("n", lambda progress, cancelled: {}) for jobs in (one, other, one)]
    for job in started:
        ended(one, job)
        ended(other, job)
    assert [job.id for job in one.list()] == [job.id for job in reversed(started)]
    assert one.list() == other.list()


@pytest.mark.parametrize("wanted", ["running", "queued"])
def test_a_job_can_be_cancelled_at_another_replica(
    replicas: tuple[Jobs, Jobs], notes: Notes, wanted: str
) -> None:
    one, other = replicas
    first, second = Held(), Held()
    running, queued = one.start("held", first), one.start("held", second)
    assert first.begun.wait(DEADLINE_S)
    job = running if wanted == "running" else queued
    assert not other.cancel(job.id).ended
    assert ended(other, job).state == ended(one, job).state == "cancelled"
    assert second.begun.is_set() == (wanted == "running")
    first.go.set()
    second.go.set()
    for each in (running, queued):
        ended(other, each)
    eventually(lambda: notes.keys("job-cancels/") == [] or None)
    done = ended(other, one.start("quick", lambda progress, cancelled: {}))
    assert other.cancel(done.id) == done
    assert notes.keys("job-cancels/") == []


def test_an_unknown_job_is_not_found_at_any_replica(replicas: tuple[Jobs, Jobs]) -> None:
    for jobs in replicas:
        with pytest.raises(JobNotFoundError):
            jobs.get("0" * 32)
        with pytest.raises(JobNotFoundError):
            jobs.cancel("0" * 32)


def test_a_job_whose_replica_is_gone_is_interrupted_and_one_that_lives_is_not(
    replicas: tuple[Jobs, Jobs], notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = replicas
    # Of a replica that was killed a while ago: nobody will write this any more.
    heard = datetime.now(UTC) - timedelta(seconds=job_states.GONE_S + 1)
    lost = Job(id="a" * 32, kind="lost", state="running", created=heard)
    note = job_states._Note(beat=heard, job=lost)
    notes.put_all({f"jobs/{lost.id}": note.model_dump_json()})
    for jobs in replicas:
        found = jobs.get(lost.id)
        assert (found.state, found.finished) == ("interrupted", heard)
        assert found.problem and found.problem.code == "interrupted"
        assert jobs.cancel(lost.id) == found
    # One that lives is heard of again and again, though it tells nothing new.
    monkeypatch.setattr(job_states, "GONE_S", 0.5)
    work = Held()
    job = one.start("held", work)
    assert work.begun.wait(DEADLINE_S)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert other.get(job.id).state in ("queued", "running")
    work.go.set()
    ended(other, job)


def test_closing_tells_the_others_at_once(notes: Notes) -> None:
    one, other = Jobs(NotesStates(notes)), Jobs(NotesStates(notes))
    work = Held()
    running, waiting = one.start("held", work), one.start("held", Held())
    assert work.begun.wait(DEADLINE_S)
    one.close()
    assert [other.get(job.id).state for job in (running, waiting)] == ["interrupted"] * 2
    other.close()


def test_a_job_goes_on_while_the_server_is_away_and_its_end_is_told_later(
    replicas: tuple[Jobs, Jobs], notes: Notes
) -> None:
    one, other = replicas
    work = Held()
    job = one.start("held", work)
    assert work.begun.wait(DEADLINE_S)
    notes.away = True
    with pytest.raises(GalleryUnavailableError):
        one.start("held", Held())
    for ask in (other.get, other.cancel):
        with pytest.raises(GalleryUnavailableError):
            ask(job.id)
    with pytest.raises(GalleryUnavailableError):
        other.list()
    work.go.set()
    assert ended(one, job).result == {"answer": 42}
    notes.away = False
    assert ended(other, job).result == {"answer": 42}


def test_a_start_that_could_not_be_kept_takes_no_place(
    replicas: tuple[Jobs, Jobs], notes: Notes
) -> None:
    one, _ = replicas
    notes.away = True
    for _ in range(20):
        with pytest.raises(GalleryUnavailableError):
            one.start("held", Held())
    assert not one.busy
    notes.away = False
    works = [Held() for _ in range(9)]
    started = [one.start("held", work) for work in works]
    with pytest.raises(OverloadedError):
        one.start("held", Held())
    for work in works:
        work.go.set()
    for job in started:
        ended(one, job)


def test_long_results_arrive_whole(replicas: tuple[Jobs, Jobs], notes: Notes) -> None:
    one, other = replicas
    chance = random.Random(0)
    result: dict[str, Any] = {"problems": [chance.random() for _ in range(20_000)], "é": "日本"}
    job = one.start("long", lambda progress, cancelled: result)
    assert ended(other, job).result == result
    assert [each.result for each in other.list()] == [result]


def test_only_the_last_are_kept_whoever_ran_them(replicas: tuple[Jobs, Jobs], notes: Notes) -> None:
    one, other = replicas
    long = {"numbers": [random.Random(n).random() for n in range(10_000)]}
    first = one.start("long", lambda progress, cancelled: long)
    ended(other, first)
    assert notes.keys(f"job-parts/{first.id}/")
    made = []
    for number in range(KEPT + 2):
        jobs = replicas[number % 2]
        made.append(jobs.start("quick", lambda progress, cancelled, n=number: {"n": n}))
        ended(jobs, made[-1])
    eventually(lambda: len(notes.keys("jobs/")) == KEPT or None)
    assert notes.keys("job-parts/") == []
    kept = {f"jobs/{job.id}" for job in made[2:]}
    assert set(notes.keys("jobs/")) == kept


def test_what_is_no_state_is_left_alone(replicas: tuple[Jobs, Jobs], notes: Notes) -> None:
    one, other = replicas
    notes.put_all({"jobs/x": "{", "jobs/y": '{"beat": "2026-01-01T00:00:00Z", "parts": 3}'})
    job = one.start("quick", lambda progress, cancelled: {})
    ended(other, job)
    assert [each.id for each in other.list()] == [job.id]
    assert notes.keys("jobs/")[-2:] == ["jobs/x", "jobs/y"]


def test_a_watcher_at_another_replica_sees_the_progress_and_the_end_also_after_an_outage(
    replicas: tuple[Jobs, Jobs], notes: Notes
) -> None:
    one, other = replicas
    steps = [threading.Event() for _ in range(3)]

    def work(progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
        for number, step in enumerate(steps):
            assert step.wait(DEADLINE_S)
            progress(number + 1, 3, "stepping")
        return {"steps": 3}

    async def watch() -> list[Job]:
        job = one.start("steps", work)
        seen = []
        waiting = iter(steps)
        async for now in other.watch(job.id):
            seen.append(now)
            notes.away = True
            asyncio.get_running_loop().call_later(0.1, setattr, notes, "away", False)
            if now.state == "running" and (step := next(waiting, None)):
                step.set()
        return seen

    seen = asyncio.run(asyncio.wait_for(watch(), DEADLINE_S))
    done = [job.progress.done for job in seen]
    assert done == sorted(done) and set(done) >= {0, 3}
    assert (seen[-1].state, seen[-1].result) == ("done", {"steps": 3})
    assert [job.ended for job in seen[:-1]] == [False] * (len(seen) - 1)


def test_end_watching_lets_go_who_watches_another_replicas_job(
    replicas: tuple[Jobs, Jobs],
) -> None:
    one, other = replicas
    work = Held()
    job = one.start("held", work)

    async def let_go() -> list[Job]:
        async def watch() -> list[Job]:
            return [now async for now in other.watch(job.id)]

        watching = asyncio.create_task(watch())
        await asyncio.to_thread(work.begun.wait, DEADLINE_S)
        other.end_watching()
        return await asyncio.wait_for(watching, DEADLINE_S)

    assert not asyncio.run(let_go())[-1].ended
    work.go.set()


def test_progress_costs_a_write_a_beat_and_idle_replicas_none(
    replicas: tuple[Jobs, Jobs], notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = replicas
    monkeypatch.setattr(job_states, "BEAT_S", 30.0)

    def work(progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
        for number in range(10_000):
            progress(number, 10_000, "counting")
        return {}

    ended(replicas[1], one.start("many", work))
    assert notes.writes <= 4  # begun, running, ended


def test_jobs_are_shared_through_a_gallery_on_milvus(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(job_states, "BEAT_S", 0.2)
    with lite(tmp_path) as file:
        address = f"milvus://{file}/jobs"
        Gallery.create(address, Model.load(model_folder)).close()
        with Gallery.open(address) as here, Gallery.open(address) as there:
            assert here.notes is not None and there.notes is not None
            one, other = Jobs(NotesStates(here.notes)), Jobs(NotesStates(there.notes))
            first, second = Held(), Held()
            job, stopped = one.start("held", first), one.start("held", second)
            assert first.begun.wait(DEADLINE_S)
            state(other, job, "running")
            first.go.set()
            assert ended(other, job).result == {"answer": 42}
            other.cancel(stopped.id)
            assert ended(other, stopped).state == "cancelled"
            long = {"text": "x" * 10_000, "numbers": list(range(30_000))}
            done = one.start("long", lambda progress, cancelled: long)
            assert ended(other, done).result == long
            assert {each.id for each in other.list()} == {job.id, stopped.id, done.id}
            one.close()
            other.close()
