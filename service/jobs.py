"""``Jobs``: long work beside the requests, with progress, cancelling and results that are kept.

A job's state is a file, so that what was done, and what a crash interrupted, is known after the
service has started again. What the jobs do is said elsewhere; HTTP is not known here.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, get_args

from pydantic import ValidationError

from index.errors import DsclError
from index.files import write_atomically
from service.errors import OverloadedError
from service.metrics import set_jobs
from service.schemas.jobs import Job, JobProblem, JobProgress, JobState

__all__ = ["JobCancelledError", "JobNotFoundError", "Jobs", "JobsFolderError", "Progress", "Work"]

logger = logging.getLogger(__name__)

#: Ended jobs that are kept; the oldest are forgotten.
KEPT = 100

#: Seconds between two writes of a running job's progress, and between two tellings of it.
SAVE_EVERY_S = 1.0
TELL_EVERY_S = 0.1

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


class JobsFolderError(DsclError):
    """A folder of jobs that this process cannot use."""

    code = "jobs_folder_invalid"


class Jobs:
    """Jobs on threads of their own, with a bounded queue. Safe to use from any thread."""

    def __init__(self, folder: Path | None, *, threads: int = 1, limit: int = 8) -> None:
        """Take in what is known of earlier jobs; those that had not ended are ``interrupted``.

        Args:
            folder: where their states are kept; one process at a time may use it. None keeps them
                in memory, for a process that must not write.
            threads: jobs that run at a time.
            limit: jobs that may wait beyond those.

        Raises:
            JobsFolderError: another process uses the folder, or it cannot be written to.
        """
        self._folder = folder
        self._claim = None if folder is None else _claim(folder)
        self._limit = threads + limit
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="job")
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._cancels: dict[str, threading.Event] = {}
        self._saved: dict[str, float] = {}
        self._listeners: dict[str, list[Callable[[], None]]] = {}
        self._stopping = False
        self._silent = False
        if folder is not None:
            self._load(folder)

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
        """
        with self._lock:
            if self._stopping or len(self._cancels) >= self._limit:
                raise OverloadedError(
                    f"{len(self._cancels)} jobs are running or waiting, and no more are taken: try "
                    "again when one of them has ended."
                )
            job = Job(id=uuid.uuid4().hex, kind=kind, state="queued", created=datetime.now(UTC))
            self._save(job)
            self._cancels[job.id] = threading.Event()
            self._executor.submit(self._run, job.id, work)
        return job

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        with self._lock:
            return bool(self._cancels)

    def get(self, job_id: str) -> Job:
        """A job as it is now.

        Raises:
            JobNotFoundError: no such job.
        """
        with self._lock:
            if job_id not in self._jobs:
                raise JobNotFoundError(
                    f"no job {job_id[:64]!r}: GET /jobs lists those there are. The last {KEPT} are "
                    "kept."
                )
            return self._jobs[job_id]

    def list(self) -> list[Job]:
        """All jobs that are kept, the newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop, which may take it a moment; one that has ended stays as it is.

        Raises:
            JobNotFoundError: no such job.
        """
        with self._lock:
            job = self.get(job_id)
            if job.state == "queued":
                self._end(job, state="cancelled")
            elif job.state == "running":
                self._cancels[job_id].set()
            return self.get(job_id)

    async def watch(self, job_id: str) -> AsyncIterator[Job]:
        """The job as it is now, and again after it has changed, until it has ended.

        Changes in quick succession come as one. Also ends when ``end_watching`` is called.

        Raises:
            JobNotFoundError: no such job.
        """
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def listener() -> None:
            loop.call_soon_threadsafe(changed.set)

        self.get(job_id)
        with self._lock:
            self._listeners.setdefault(job_id, []).append(listener)
        try:
            while True:
                changed.clear()
                job = self.get(job_id)
                yield job
                if job.ended or self._silent:
                    return
                await changed.wait()
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
                if (job := self._jobs[job_id]).state == "queued":
                    self._end(job, state="interrupted", problem=_interrupted())
        self._executor.shutdown(cancel_futures=True)
        if self._claim is not None:
            self._claim.close()

    # Inside

    def _load(self, folder: Path) -> None:
        for file in folder.glob("*.json"):
            try:
                job = Job.model_validate_json(file.read_bytes())
            except ValidationError:
                logger.exception("%s is no job's state: left alone", file)
                continue
            self._jobs[job.id] = job
            if not job.ended:
                self._end(job, state="interrupted", problem=_interrupted())

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
                self._end(job, state="interrupted", problem=_interrupted())
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
            job = self.get(job.id)
            self._save(job.model_copy(update={**changes, "finished": datetime.now(UTC)}))
            self._cancels.pop(job.id, None)
            self._saved.pop(job.id, None)
            self._forget()

    def _save(self, job: Job) -> Job:
        with self._lock:
            if self._folder is not None:
                file = self._folder / f"{job.id}.json"
                try:
                    write_atomically(file, job.model_dump_json(indent=1).encode())
                except OSError:  # the work itself matters more than what is known of it later
                    logger.exception("%s cannot be written: the state is in memory only", file)
            self._jobs[job.id] = job
            self._saved[job.id] = time.monotonic()
            self._tell(job.id)
            states = Counter(job.state for job in self._jobs.values())
            set_jobs({state: states[state] for state in get_args(JobState)})
        return job

    def _forget(self) -> None:
        ended = [job for job in self.list() if job.ended]
        for job in ended[KEPT:]:
            if self._folder is not None:
                (self._folder / f"{job.id}.json").unlink(missing_ok=True)
            del self._jobs[job.id]

    def _tell(self, job_id: str) -> None:
        for listener in self._listeners.get(job_id, []):
            listener()


def _interrupted() -> JobProblem:
    return JobProblem(
        code="interrupted",
        detail="the service stopped before the job was through: send the request again. What was "
        "done is kept.",
    )


def _claim(folder: Path) -> IO[str]:
    """An open file that keeps other processes from using the folder."""
    try:
        folder.mkdir(exist_ok=True)
        file = (folder / "lock").open("a", encoding="utf-8")
    except OSError as error:
        raise JobsFolderError(f"{folder} cannot be written to ({error.strerror}).") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise JobsFolderError(f"another service keeps its jobs in {folder}.") from None
    return file
