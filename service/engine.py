"""``Engine``: the open gallery and the threads that work on it. Knows nothing of HTTP."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from index import Gallery
from index.address import GalleryAddress
from index.errors import DsclError, StoreError
from service.batching import WorkerPool
from service.errors import NotReadyError
from service.job_states import FolderStates, JobsFolderError, JobStates, MemoryStates, NotesStates
from service.jobs import Jobs
from service.photo_store import PhotoStore
from service.served import RetiredError, Served
from service.settings import Settings
from service.writer import Writer

__all__ = ["Engine", "GalleryReadOnlyError", "ReloadRefusedError", "Reloaded"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class GalleryReadOnlyError(DsclError):
    """A change was asked of a service that may not change its gallery."""

    code = "gallery_read_only"


class ReloadRefusedError(DsclError):
    """A gallery that cannot take the place of the one that is served; that one goes on."""

    code = "reload_refused"


@dataclass(frozen=True)
class Reloaded:
    """What a reload did."""

    gallery: GalleryAddress
    changed: bool  #: False where the gallery there is the one that was served already
    items: int
    model_name: str
    model_sha256: str
    previous_model_sha256: str
    seconds: float


class Engine:
    """One gallery, served; another can take its place while requests go on.

    Photos, catalog reads, changes and evaluations have threads of their own, so that neither a
    queue of photos nor a long evaluation holds up the pictures of a result page.
    """

    def __init__(
        self, settings: Settings, *, announce: Callable[[GalleryAddress], None] | None = None
    ) -> None:
        """Open nothing yet.

        Args:
            settings: of the service.
            announce: called after a reload with the gallery that is served now, for the other
                processes of the service.
        """
        self.settings = settings
        self._announce = announce
        #: The gallery first opened, or why it cannot be.
        self.opened: Future[Gallery] = Future()
        self._served: Served | None = None
        self._writer: Writer | None = None  # None where nothing may be changed
        self._jobs: Jobs | None = None
        self._photos = WorkerPool(
            "photo", workers=settings.threads, queue_limit=settings.queue_limit
        )
        self._reads = WorkerPool("read", workers=2, queue_limit=1000)
        # They wait for a network, so there are more, and a store that hangs holds up no list.
        self._fetches = WorkerPool("fetch", workers=8, queue_limit=1000)
        # One after another: there is one writer.
        self._writes = WorkerPool("write", workers=1, queue_limit=settings.queue_limit)
        self._evaluations = WorkerPool("evaluate", workers=1, queue_limit=8)
        self._reloads = WorkerPool("reload", workers=1, queue_limit=8)

    async def open(self) -> None:
        """Open the gallery and warm the model up; ``opened`` tells how it went."""
        try:
            gallery = await self._reads.run(self._open_first)
        except Exception as error:
            self.opened.set_exception(error)
        else:
            self.opened.set_result(gallery)

    def close(self) -> None:
        """Stop the jobs and the threads, and close the gallery."""
        if self._jobs is not None:
            self._jobs.close()
        for pool in (
            self._photos,
            self._reads,
            self._fetches,
            self._writes,
            self._evaluations,
            self._reloads,
        ):
            pool.close()
        if self._writer is not None:
            self._writer.close()
        if self._served is not None:
            self._served.retire()

    @property
    def gallery(self) -> Gallery:
        """The open gallery. Work on it under a ``lease``, or it may be closed meanwhile.

        Raises:
            NotReadyError: it is not open yet.
            DsclError: it could not be opened.
        """
        return self._now().gallery

    @property
    def jobs(self) -> Jobs:
        """The jobs of the open gallery. Raises as ``gallery``."""
        self._now()
        assert self._jobs is not None  # set before the gallery is
        return self._jobs

    @contextmanager
    def lease(self) -> Iterator[Gallery]:
        """The gallery, which stays open meanwhile. Raises as ``gallery``."""
        with ExitStack() as held:
            gallery = None
            while gallery is None:
                try:
                    gallery = held.enter_context(self._now().lease())
                except RetiredError:
                    continue  # replaced between the two calls
            yield gallery

    @contextmanager
    def changing(self) -> Iterator[Gallery]:
        """The gallery, open for changes.

        Raises:
            GalleryReadOnlyError: this service does not change its gallery.
            GalleryLockedError: another process does so now.
            NotReadyError, DsclError: as ``gallery``.
        """
        self._now()
        if self._writer is None:
            raise GalleryReadOnlyError(
                "this service only reads its gallery: ask one that was started without --read-only."
            )
        with self._writer.lease() as gallery:
            yield gallery

    async def photo(
        self, call: Callable[Concatenate[Gallery, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``call(gallery, …)`` on one of the threads that decode, embed and search.

        Raises:
            OverloadedError: too many photos wait already. So in the methods below.
        """
        return await self._on(self._photos, call, *args, **kwargs)

    async def read(
        self, call: Callable[Concatenate[Gallery, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``call(gallery, …)`` on a thread for short reads of catalog and files."""
        return await self._on(self._reads, call, *args, **kwargs)

    async def fetch(
        self, call: Callable[Concatenate[Gallery, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``call(gallery, …)`` on a thread for photos that lie in a store, not on this machine."""
        return await self._on(self._fetches, call, *args, **kwargs)

    async def write(
        self, call: Callable[Concatenate[Gallery, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``call(gallery, …)`` on the thread for changes, with the gallery open for them.

        Raises:
            DsclError: as ``changing``.
        """
        self._now()

        def changing() -> T:
            with self.changing() as gallery:
                return call(gallery, *args, **kwargs)

        return await self._writes.run(changing)

    async def evaluate(
        self, call: Callable[Concatenate[Gallery, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``call(gallery, …)`` on the thread for evaluations, which run one after another."""
        return await self._on(self._evaluations, call, *args, **kwargs)

    async def reload(
        self, path: GalleryAddress | None = None, *, announce: bool = True
    ) -> Reloaded:
        """Serve another gallery, or the one that has taken its place in the same folder.

        It is opened and warmed up beside the one that serves; requests under way end on the old
        one, which is closed after the last of them.

        Args:
            path: the gallery; default: where the present one is.
            announce: tell the other processes of the service.

        Raises:
            ReloadRefusedError: it cannot be opened, or jobs are running; the old one goes on.
            NotReadyError: nothing is open yet.
        """
        self._now()
        done = await self._reloads.run(self._reload, path)
        # Also where nothing changed here: another process may still serve what was there before.
        if announce and self._announce is not None:
            self._announce(done.gallery)
        return done

    def end_watching(self) -> None:
        """End the streams that tell of jobs: a service that stops would wait for them."""
        if self._jobs is not None:
            self._jobs.end_watching()

    # Inside

    def _now(self) -> Served:
        if self._served is None:
            if not self.opened.done():
                raise NotReadyError("the gallery is being opened: try again in a second.")
            self.opened.result()  # raises why not
            raise NotReadyError("the service is stopping: ask another, or try again later.")
        return self._served

    async def _on(
        self,
        pool: WorkerPool,
        call: Callable[Concatenate[Gallery, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._now()  # refuse before the queue, not after it

        def leased() -> T:
            with self.lease() as gallery:
                return call(gallery, *args, **kwargs)

        return await pool.run(leased)

    def _open_first(self) -> Gallery:
        gallery = self._open(self.settings.gallery)
        self._take_up(gallery)
        return gallery

    def _open(self, path: GalleryAddress) -> Gallery:
        """A gallery that is ready to search."""
        gallery = Gallery.open(path, runtime=self.settings.runtime)
        try:
            gallery.model.max_pixels = self.settings.max_pixels
            card = gallery.model.card
            gallery.model.embed(np.zeros((1, 3, card.height, card.width), np.uint8))
        except BaseException:
            gallery.close()
            raise
        return gallery

    def _take_up(self, gallery: Gallery) -> None:
        """Make ``gallery`` the one that is served."""
        path = gallery.path
        swept = False

        def open_to_change() -> Gallery:
            nonlocal swept
            writable = Gallery.open(path, writable=True, runtime=self.settings.runtime)
            if not swept:
                try:
                    PhotoStore.of(writable).sweep(writable)
                except StoreError as error:  # labels can be changed all the same
                    logger.warning("%s What a crash may have left there stays.", error)
                else:
                    swept = True
            return writable

        self._writer = Writer(open_to_change) if self.settings.writes else None
        self._jobs = Jobs(self._job_states(gallery))
        self._served = Served(gallery)

    def _job_states(self, gallery: Gallery) -> JobStates:
        if not self.settings.writes:
            return MemoryStates()
        if gallery.notes is not None:
            return NotesStates(gallery.notes)
        assert isinstance(gallery.path, Path)  # or it would have notes
        try:
            return FolderStates(gallery.path / "jobs")
        except JobsFolderError as error:
            logger.warning("%s Jobs are kept in memory.", error)
            return MemoryStates()

    def _reload(self, path: GalleryAddress | None) -> Reloaded:
        began = time.monotonic()
        before = self._now()
        old = before.gallery
        path = old.path if path is None else path
        if old.is_at(path):
            return _told(old, old.model.sha256, changed=False, seconds=0.0)
        if self.jobs.busy:
            raise ReloadRefusedError(
                "jobs are running on the gallery that is served: wait for them, or cancel them."
            )
        try:
            gallery = self._open(path)
        except DsclError as error:
            raise ReloadRefusedError(f"{error} The gallery that is served goes on.") from error
        self.jobs.close()
        writer = self._writer
        self._take_up(gallery)
        before.retire()
        if writer is not None:
            writer.close()
        return _told(gallery, old.model.sha256, changed=True, seconds=time.monotonic() - began)


def _told(gallery: Gallery, previous: str, *, changed: bool, seconds: float) -> Reloaded:
    return Reloaded(
        gallery=gallery.path,
        changed=changed,
        items=len(gallery),
        model_name=gallery.model.card.name,
        model_sha256=gallery.model.sha256,
        previous_model_sha256=previous,
        seconds=round(seconds, 3),
    )
