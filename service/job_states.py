"""Where the states of jobs are kept: in memory, in a folder, or beside a gallery on Milvus.

``service.jobs`` runs the jobs of one process, and tells one of these about them. In the notes of a
gallery on Milvus the replicas of a service see each other's jobs. There a job that has not ended
carries the moment at which its replica was last heard of; if that is long ago, the replica is gone,
and the job reads as interrupted. Clocks of replicas must agree within some seconds.
"""

from __future__ import annotations

import base64
import fcntl
import logging
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from index.errors import DsclError
from index.files import write_atomically
from service.schemas.jobs import Job, JobProblem

__all__ = [
    "KEPT",
    "FolderStates",
    "JobStates",
    "JobsFolderError",
    "MemoryStates",
    "NotesStates",
    "SmallTexts",
    "interrupted",
]

logger = logging.getLogger(__name__)

#: Ended jobs that are kept; the oldest are forgotten.
KEPT = 100

#: Seconds between two signs of life of a replica whose jobs run, and between its looks whether one
#: is to be cancelled.
BEAT_S = 2.0

#: Seconds without a sign of life after which a replica is gone. A Milvus server that is started
#: again keeps it from giving one for a while, too.
GONE_S = 120.0

#: Bytes of a note. Longer states, of jobs with long results, are packed and cut.
NOTE_BYTES = 48_000

JOB = "jobs/"
PART = "job-parts/"
CANCEL = "job-cancels/"


class JobsFolderError(DsclError):
    """A folder of jobs that this process cannot use."""

    code = "jobs_folder_invalid"


class JobStates(Protocol):
    """Keeps what is known of jobs."""

    def load(self) -> list[Job]:
        """The jobs that an earlier process of this place has left, now this process's."""
        ...

    def watch_cancels(self, cancel: Callable[[str], object]) -> None:
        """Have ``cancel`` called with the id of each job that another process is to stop here."""
        ...

    def begin(self, job: Job) -> None:
        """Keep a job that nobody has been told of.

        Raises:
            GalleryUnavailableError: it cannot be kept now.
        """
        ...

    def save(self, job: Job) -> None:
        """Keep a job's state, soon. Never fails: the work matters more than what is known of it."""
        ...

    def forget(self, job_id: str) -> None:
        """Keep a job no longer."""
        ...

    def others(self) -> list[Job]:
        """The jobs of all processes that keep theirs here, as far as this one can see them.

        Raises:
            GalleryUnavailableError: they cannot be read now. So below.
        """
        ...

    def other(self, job_id: str) -> Job | None:
        """One of ``others``, if there is such a job."""
        ...

    def cancel_other(self, job_id: str) -> None:
        """Ask the process that runs a job to stop it."""
        ...

    def close(self) -> None:
        """Let go of the place; what was saved is there."""
        ...


class MemoryStates:
    """Nothing is kept beyond the process."""

    def load(self) -> list[Job]:
        """None."""
        return []

    def watch_cancels(self, cancel: Callable[[str], object]) -> None:
        """No other process asks."""

    def begin(self, job: Job) -> None:
        """As ``save``."""
        self.save(job)

    def save(self, job: Job) -> None:
        """Nothing to do."""

    def forget(self, job_id: str) -> None:
        """Nothing to do."""

    def others(self) -> list[Job]:
        """None."""
        return []

    def other(self, job_id: str) -> Job | None:
        """None."""
        return None

    def cancel_other(self, job_id: str) -> None:
        """There is no other process."""

    def close(self) -> None:
        """Nothing to do."""


class FolderStates(MemoryStates):
    """A file for each job, in a folder that one process at a time uses."""

    def __init__(self, folder: Path) -> None:
        """Take the folder.

        Raises:
            JobsFolderError: another process uses the folder, or it cannot be written to.
        """
        self._folder = folder
        self._claim = _claim(folder)

    def load(self) -> list[Job]:
        """All that are there."""
        found = []
        for file in self._folder.glob("*.json"):
            try:
                found.append(Job.model_validate_json(file.read_bytes()))
            except ValidationError:
                logger.exception("%s is no job's state: left alone", file)
        return found

    def save(self, job: Job) -> None:
        """Write the file."""
        file = self._file(job.id)
        try:
            write_atomically(file, job.model_dump_json(indent=1).encode())
        except OSError:
            logger.exception("%s cannot be written: the state is in memory only", file)

    def forget(self, job_id: str) -> None:
        """Remove the file."""
        self._file(job_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process use the folder."""
        self._claim.close()

    def _file(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"


class SmallTexts(Protocol):
    """Small texts by their keys, durable and shared: ``index.milvus_notes.Notes``."""

    def get(self, key: str) -> str | None:
        """The text under a key, or None."""
        ...

    def put_all(self, texts: dict[str, str]) -> None:
        """Keep some texts under their keys."""
        ...

    def delete(self, *keys: str) -> None:
        """Forget what is under some keys."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that start so, ascending."""
        ...

    def items(self, prefix: str = "") -> dict[str, str]:
        """All texts whose keys start so, by ascending key."""
        ...


class _Note(BaseModel):
    """A job as a note holds it."""

    model_config = ConfigDict(frozen=True)

    beat: datetime  #: when its replica was last heard of
    job: Job | None = None  #: None where it lies in parts
    parts: int = 0


class NotesStates(MemoryStates):
    """The notes of a gallery, which all replicas read and write.

    A thread writes: what a job does never waits for the server, and what could not be written is
    tried again.
    """

    def __init__(self, notes: SmallTexts) -> None:
        """Use ``notes``, which must stay open until ``close`` has returned."""
        self._notes = notes
        self._wake = threading.Condition()
        self._running: dict[str, Job] = {}  # this process's jobs that have not ended
        self._ended: dict[str, Job] = {}  # … that have, and are not written yet
        self._news = False
        self._closing = False
        self._failing = False
        self._cancel: Callable[[str], object] = lambda job_id: None
        self._thread = threading.Thread(target=self._work, name="job-states", daemon=True)
        self._thread.start()

    def watch_cancels(self, cancel: Callable[[str], object]) -> None:
        """As ``JobStates.watch_cancels``; looked for every two seconds."""
        self._cancel = cancel

    def begin(self, job: Job) -> None:
        """Write a job's first state at once."""
        self._write([job])
        self.save(job)

    def save(self, job: Job) -> None:
        """Have a state written: at once if the job has begun or ended, else with the next beat."""
        with self._wake:
            before = self._running.pop(job.id, None)
            (self._ended if job.ended else self._running)[job.id] = job
            if before is None or before.state != job.state:
                self._news = True
                self._wake.notify()

    def others(self) -> list[Job]:
        """The jobs of all replicas."""
        notes = self._notes.items(JOB)
        found = (self._read(key.removeprefix(JOB), text) for key, text in notes.items())
        return [job for job in found if job is not None]

    def other(self, job_id: str) -> Job | None:
        """As ``JobStates.other``."""
        text = self._notes.get(f"{JOB}{job_id}")
        return None if text is None else self._read(job_id, text)

    def cancel_other(self, job_id: str) -> None:
        """Leave a note, which the job's replica finds within seconds."""
        self._notes.put_all({f"{CANCEL}{job_id}": ""})

    def close(self) -> None:
        """Write what is not written yet, and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    # The thread

    def _work(self) -> None:
        while True:
            with self._wake:
                if not (self._news or self._closing):
                    self._wake.wait(BEAT_S if self._running or self._ended else None)
                closing, self._news = self._closing, False
                running, ended = list(self._running.values()), list(self._ended.values())
            try:
                self._beat(running, ended)
            except DsclError as error:
                if not self._failing or closing:
                    logger.warning("the states of jobs cannot be written now: %s", error)
                self._failing = True
            except Exception:
                logger.exception("the states of jobs cannot be written")
            else:
                self._failing = False
            if closing:
                return
            if self._failing:
                with self._wake:  # not at once again, whatever the news
                    self._wake.wait_for(lambda: self._closing, BEAT_S)

    def _beat(self, running: list[Job], ended: list[Job]) -> None:
        self._write(running + ended)
        with self._wake:
            for job in ended:
                self._ended.pop(job.id, None)
        if ended:
            self._notes.delete(*(f"{CANCEL}{job.id}" for job in ended))
            self._trim()
        if running:
            for key in self._notes.keys(CANCEL):
                job_id = key.removeprefix(CANCEL)
                if any(job.id == job_id for job in running):
                    self._cancel(job_id)

    def _write(self, jobs: Iterable[Job]) -> None:
        notes = {}
        for job in jobs:
            note = _Note(beat=datetime.now(UTC), job=job)
            text = note.model_dump_json()
            if len(text.encode()) > NOTE_BYTES:
                parts = _cut(job)
                for key, part in parts.items():  # first, so that who reads the note finds them
                    self._notes.put_all({key: part})
                text = _Note(beat=note.beat, parts=len(parts)).model_dump_json()
            notes[f"{JOB}{job.id}"] = text
        if notes:
            self._notes.put_all(notes)

    def _trim(self) -> None:
        """Forget the oldest jobs, whichever replica ran them."""
        ended = sorted(
            (job for job in self.others() if job.ended), key=lambda job: job.created, reverse=True
        )
        for job in ended[KEPT:]:
            parts = self._notes.keys(f"{PART}{job.id}/")
            self._notes.delete(f"{JOB}{job.id}", f"{CANCEL}{job.id}", *parts)

    # Reading

    def _read(self, job_id: str, text: str) -> Job | None:
        try:
            note = _Note.model_validate_json(text)
            job = note.job
            if job is None:
                parts = self._notes.items(f"{PART}{job_id}/")
                if len(parts) != note.parts:
                    return None  # it is being forgotten
                job = _joined(parts)
        except (ValidationError, ValueError, zlib.error):
            logger.exception("note %s%s is no job's state: left alone", JOB, job_id)
            return None
        if job.ended or datetime.now(UTC) - note.beat < timedelta(seconds=GONE_S):
            return job
        return job.model_copy(
            update={"state": "interrupted", "problem": interrupted(), "finished": note.beat}
        )


def interrupted() -> JobProblem:
    """Why a job did not end that the service has left."""
    return JobProblem(
        code="interrupted",
        detail="the service stopped before the job was through: send the request again. What was "
        "done is kept.",
    )


def _cut(job: Job) -> dict[str, str]:
    """A long state, packed, as notes."""
    packed = base64.b64encode(zlib.compress(job.model_dump_json().encode())).decode()
    return {
        f"{PART}{job.id}/{start // NOTE_BYTES:06}": packed[start : start + NOTE_BYTES]
        for start in range(0, len(packed), NOTE_BYTES)
    }


def _joined(parts: Mapping[str, str]) -> Job:
    packed = base64.b64decode("".join(parts[key] for key in sorted(parts)))
    return Job.model_validate_json(zlib.decompress(packed))


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
