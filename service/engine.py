"""``Engine``: the open gallery and the threads that work on it. Knows nothing of HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from index import Evaluation, Gallery, Item
from index.errors import ItemNotFoundError
from service.batching import WorkerPool
from service.errors import NotReadyError
from service.settings import Settings

__all__ = ["Engine", "Neighbour", "TimedEvaluation"]

P = ParamSpec("P")
T = TypeVar("T")

#: Times a search starts over because a writer removed one of its results meanwhile.
SEARCH_RETRIES = 3


@dataclass(frozen=True)
class Neighbour:
    """An item near a query. ``score`` is their cosine similarity in [−1, 1]."""

    item: Item
    score: float


@dataclass(frozen=True)
class TimedEvaluation:
    """An evaluation and the milliseconds it took."""

    evaluation: Evaluation
    took_ms: float


class Engine:
    """One gallery, served.

    Photos, catalog reads and evaluations have threads of their own, so that neither a queue of
    photos nor a long evaluation holds up the pictures of a result page.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: The gallery, or why it cannot be opened.
        self.opened: Future[Gallery] = Future()
        self._photos = WorkerPool(
            "photo", workers=settings.workers, queue_limit=settings.queue_limit
        )
        self._reads = WorkerPool("read", workers=2, queue_limit=1000)
        self._evaluations = WorkerPool("evaluate", workers=1, queue_limit=8)

    async def open(self) -> None:
        """Open the gallery and warm the model up; ``opened`` tells how it went."""
        try:
            self.opened.set_result(await self._reads.run(self._open))
        except Exception as error:
            self.opened.set_exception(error)

    def close(self) -> None:
        """Stop the threads and close the gallery."""
        for pool in (self._photos, self._reads, self._evaluations):
            pool.close()
        if self.opened.done() and self.opened.exception() is None:
            self.opened.result().close()

    @property
    def gallery(self) -> Gallery:
        """The open gallery.

        Raises:
            NotReadyError: it is not open yet.
            DsclError: it could not be opened.
        """
        if not self.opened.done():
            raise NotReadyError("the gallery is being opened: try again in a second.")
        return self.opened.result()

    async def search(self, photo: bytes, k: int) -> list[Neighbour]:
        """The k items nearest to an encoded photo, nearest first, ties by id.

        Raises:
            ImageError: the photo cannot be used.
            OverloadedError: too many photos wait already.
        """
        return await self._photos.run(_search, self.gallery, photo, k)

    async def evaluate(self, ks: Sequence[int]) -> TimedEvaluation:
        """recall@K of the gallery as it is now, for each K of ``ks``.

        Raises:
            InvalidArgumentError: no two items share a label.
            OverloadedError: too many evaluations wait already.
        """
        return await self._evaluations.run(_evaluate, self.gallery, ks)

    async def read(
        self, call: Callable[Concatenate[Gallery, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``call(gallery, …)`` on a thread for short reads of catalog and files."""
        return await self._reads.run(call, self.gallery, *args, **kwargs)

    def _open(self) -> Gallery:
        gallery = Gallery.open(self.settings.gallery)
        card = gallery.model.card
        gallery.model.embed(np.zeros((1, 3, card.height, card.width), np.uint8))
        return gallery


def _search(gallery: Gallery, photo: bytes, k: int) -> list[Neighbour]:
    query = gallery.model.embed(gallery.model.prepare(photo)[None])
    for _ in range(SEARCH_RETRIES):
        # A writer may remove a result between the search and the look into the catalog.
        with suppress(ItemNotFoundError):
            return _neighbours(gallery, query, k)
    return _neighbours(gallery, query, k)


def _neighbours(gallery: Gallery, query: NDArray[np.float32], k: int) -> list[Neighbour]:
    ids, scores = gallery.search(query, k)
    items = gallery.get(ids[0].tolist())
    return [Neighbour(item, score) for item, score in zip(items, scores[0].tolist(), strict=True)]


def _evaluate(gallery: Gallery, ks: Sequence[int]) -> TimedEvaluation:
    start = time.perf_counter()
    evaluation = gallery.evaluate(ks)
    return TimedEvaluation(evaluation, (time.perf_counter() - start) * 1000)
