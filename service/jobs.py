"""``Jobs``: long work beside the requests, with progress, cancelling and results that are kept.

``service.job_states`` keeps the states, so that what was done, and what a crash interrupted, is
known after the service has started again, and to its other replicas. What the jobs do is said
elsewhere; HTTP is not known here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, get_args

from index.errors import DsclError, GalleryUnavailableError
from service.errors import OverloadedError
from service.job_states import KEPT, JobStates, MemoryStates, interrupted
from service.metrics import set_jobs
from service.schemas.jobs import Job, JobProblem, JobProgress, JobState

__all__ = ["JobCancelledError", "JobNotFoundError", "Jobs", "Progress", "Work"]

logger = logging.getLogger(__name__)

#: Seconds between two writes of a running job's progress, and between two tellings of it.
SAVE_EVERY_S = 1.0
TELL_EVERY_S = 0.1

#: Seconds between two looks at a job that another process runs, for those who watch it.
LOOK_EVERY_S = 1.0

#: Called with (done, total, stage).
Progress = Callable[[int, int, str], None]

#: A job's work: ``work(progress, cancelled)`` → its result, a dict that JSON can hold.
Work = Callable[[Progress, Callable[[], bool]], dict[str, Any]]


class JobNotFoundError(DsclError):
    """A job id that is not known, or no longer."""

    code = "job_not_found"


class JobCancelledError(DsclError):
    """Raised by a job's work that stops because ``cancelled()`` said so."""

    code = "job_cancelled"


class Jobs:
    """Jobs on threads of their own, with a bounded queue. Safe to use from any thread."""

    def __init__(
        self, states: JobStates | None = None, *, threads: int = 1, limit: int = 8
    ) -> None:
        """Take in what is known of earlier jobs; those that had not ended are ``interrupted``.

        Args:
            states: where their states are kept, closed with this; None keeps them in memory, for a
                process that must not write.
            threads: jobs that run at a time.
            limit: jobs that may wait beyond those.
        """
        self._states: JobStates = MemoryStates() if states is None else states
        self._limit = threads + limit
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="job")
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._cancels: dict[str, threading.Event] = {}
        self._saved: dict[str, float] = {}
        self._listeners: dict[str, list[Callable[[], None]]] = {}
        self._stopping = False
        self._silent = False
        for job in self._states.load():
            self._jobs[job.id] = job
            if not job.ended:
                self._end(job, state="interrupted", problem=interrupted())
        self._states.watch_cancels(self._cancel_own)

    def start(self, kind: str, work: Work) -> Job:
        """Queue a job.

        Args:
            kind: what it does, in a word.
            work: called on a job's thread with ``progress(done, total, stage)`` and
                ``cancelled()``, which it asks between two steps; if that is true, it leaves things
                whole and raises ``JobCancelledError``. A ``DsclError`` ends the job as ``failed``
                with its code and message.

        Raises:
            OverloadedError: too many jobs wait already.
            GalleryUnavailableError: the server that its state is to be kept on does not answer.
        """
        job = Job(id=uuid.uuid4().hex, kind=kind, state="queued", created=datetime.now(UTC))
        self._take_place(job.id)
        try:
            self._states.begin(job)
        except BaseException:
            with self._lock:
                del self._cancels[job.id]
            raise
        with self._lock:
            self._save(job)
            if self._stopping:
                self._end(job, state="interrupted", problem=interrupted())
            else:
                self._executor.submit(self._run, job.id, work)
        return job

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting in this process."""
        with self._lock:
            return bool(self._cancels)

    def get(self, job_id: str) -> Job:
        """A job as it is now.

        Raises:
            JobNotFoundError: no such job.
            GalleryUnavailableError: the server that knows of jobs of other processes does not
                answer. So below.
        """
        job = self._own(job_id) or self._states.other(job_id)
        if job is None:
            raise JobNotFoundError(
                f"no job {job_id[:64]!r}: GET /jobs lists those there are. The last {KEPT} are "
                "kept."
            )
        return job

    def list(self) -> list[Job]:
        """All jobs that are kept, the newest first."""
        others = {job.id: job for job in self._states.others()}
        with self._lock:
            known = others | self._jobs  # what this process runs it knows best
        return sorted(known.values(), key=lambda job: job.created, reverse=True)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop, which may take it a moment; one that has ended stays as it is.

        Raises:
            JobNotFoundError: no such job.
        """
        if self._own(job_id) is not None:
            self._cancel_own(job_id)
        elif not self.get(job_id).ended:
            self._states.cancel_other(job_id)
        return self.get(job_id)

    async def watch(self, job_id: str) -> AsyncIterator[Job]:
        """The job as it is now, and again after it has changed, until it has ended.

        Changes in quick succession come as one. Also ends when ``end_watching`` is called. While a
        server that knows of it does not answer, a job of another process does not change.

        Raises:
            JobNotFoundError: no such job.
        """
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def listener() -> None:
            loop.call_soon_threadsafe(changed.set)

        job = await self._look(job_id)
        with self._lock:
            self._listeners.setdefault(job_id, []).append(listener)
        try:
            told = None
            while True:
                changed.clear()
                with suppress(GalleryUnavailableError):
                    job = await self._look(job_id)
                if job != told or self._silent:
                    yield job
                told = job
                if job.ended or self._silent:
                    return
                with suppress(TimeoutError):
                    own = self._own(job_id) is not None
                    await asyncio.wait_for(changed.wait(), None if own else LOOK_EVERY_S)
                    await asyncio.sleep(TELL_EVERY_S)
        finally:
            with self._lock:
                self._listeners[job_id].remove(listener)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]

    def end_watching(self) -> None:
        """Let those who watch go: a service that is to stop would wait for them."""
        with self._lock:
            self._silent = True
            for job_id in self._listeners:
                self._tell(job_id)

    def close(self) -> None:
        """Stop what runs and drop what waits, as ``interrupted``; return when that is done."""
        with self._lock:
            self._stopping = True
            for job_id, cancel in list(self._cancels.items()):
                cancel.set()
                job = self._jobs.get(job_id)
                if job is not None and job.state == "queued":
                    self._end(job, state="interrupted", problem=interrupted())
        self._executor.shutdown(cancel_futures=True)
        self._states.close()

    # Inside

    def _take_place(self, job_id: str) -> None:
        with self._lock:
            if self._stopping or len(self._cancels) >= self._limit:
                raise OverloadedError(
                    f"{len(self._cancels)} jobs are running or waiting, and no more are taken: try "
                    "again when one of them has ended."
                )
            self._cancels[job_id] = threading.Event()

    def _own(self, job_id: str) -> Job | None:
        with self._lock:
            return self._jobs.get(job_id)

    async def _look(self, job_id: str) -> Job:
        """``get``, without holding up the event loop where a server is asked."""
        own = self._own(job_id)
        return await asyncio.to_thread(self.get, job_id) if own is None else own

    def _cancel_own(self, job_id: str) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None and job.state == "queued":
                self._end(job, state="cancelled")
            elif job is not None and job.state == "running":
                self._cancels[job_id].set()

    def _run(self, job_id: str, work: Work) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.ended:  # cancelled while it waited
                return
            cancel = self._cancels[job_id]
            job = self._save(
                job.model_copy(update={"state": "running", "started": datetime.now(UTC)})
            )

        def progress(done: int, total: int, stage: str) -> None:
            self._progress(job_id, JobProgress(done=done, total=total, stage=stage))

        try:
            result = work(progress, cancel.is_set)
        except JobCancelledError:
            if self._stopping:
                self._end(job, state="interrupted", problem=interrupted())
            else:
                self._end(job, state="cancelled")
        except DsclError as error:
            problem = JobProblem(code=error.code, detail=str(error))
            self._end(job, state="failed", problem=problem)
        except Exception:
            logger.exception("job %s (%s)", job.id, job.kind)
            problem = JobProblem(
                code="internal_error",
                detail="the service failed on this job. Its log says why: look for the job's id.",
            )
            self._end(job, state="failed", problem=problem)
        else:
            self._end(job, state="done", result=result)

    def _progress(self, job_id: str, progress: JobProgress) -> None:
        with self._lock:
            job = self._jobs[job_id].model_copy(update={"progress": progress})
            if time.monotonic() - self._saved[job_id] < SAVE_EVERY_S:
                self._jobs[job_id] = job
                self._tell(job_id)
            else:
                self._save(job)

    def _end(self, job: Job, **changes: object) -> None:
        with self._lock:
            job = self._jobs[job.id]
            self._save(job.model_copy(update={**changes, "finished": datetime.now(UTC)}))
            self._cancels.pop(job.id, None)
            self._saved.pop(job.id, None)
            self._forget()

    def _save(self, job: Job) -> Job:
        with self._lock:
            self._states.save(job)
            self._jobs[job.id] = job
            self._saved[job.id] = time.monotonic()
            self._tell(job.id)
            states = Counter(job.state for job in self._jobs.values())
            set_jobs({state: states[state] for state in get_args(JobState)})
        return job

    def _forget(self) -> None:
        newest = sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)
        for job in [job for job in newest if job.ended][KEPT:]:
            self._states.forget(job.id)
            del self._jobs[job.id]

    def _tell(self, job_id: str) -> None:
        for listener in self._listeners.get(job_id, []):
            listener()
