"""``Client`` and ``AsyncClient``: the service as Python methods."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack
from urllib.parse import urlsplit

import httpx

from index.errors import InvalidArgumentError
from service.client import calls
from service.client.calls import Attributes, Call, Photo, SearchOptions, Where
from service.client.errors import JobError, ServiceError, UnreachableError
from service.client.retries import Outcome, Retries
from service.schemas import (
    BatchResponse,
    EvaluationRequest,
    EvaluationResponse,
    ExplainResponse,
    FieldsResponse,
    Health,
    ItemChange,
    ItemPage,
    ItemResponse,
    Job,
    JobList,
    MapResponse,
    ModelResponse,
    SearchResponse,
)

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")

#: Seconds without a byte from the service before an attempt is given up.
TIMEOUT_S = 60.0

#: Seconds between looks at a job.
POLL_S = 0.5


class Client:
    """The service at an address, from one thread or several.

    ::

        with Client("http://127.0.0.1:8000", key="dscl_…") as client:
            for hit in client.search("photo.jpg", k=5, where={"make": "BMW"}).results:
                print(hit.score, hit.label)

    The methods are called like the operations of the OpenAPI document. A photo is its bytes or the
    path of its file; ``options`` are those of ``SearchOptions``, as keywords.

    Every method raises ``ServiceError`` when the service refuses and ``UnreachableError`` when
    there is no answer; what passes by itself (a full queue, a restart, a rate limit) is tried again
    first, see ``Retries``.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: where the service is, such as ``http://127.0.0.1:8000``.
            key: the access key, where the service asks for one.
            timeout_s: seconds without a byte from the service before an attempt is given up.
            retries: when a call is made again.

        Raises:
            InvalidArgumentError: ``url`` is no http(s) address, or ``timeout_s`` not above 0.
        """
        self.retries = retries or Retries()
        self._url = _checked(url)
        self._http = httpx.Client(
            base_url=self._url, headers=_headers(key), timeout=_timeout(timeout_s)
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        for made in itertools.count(1):
            outcome: Outcome
            with call.arguments() as arguments:
                try:
                    outcome = self._http.request(**arguments)
                except httpx.TransportError as error:
                    outcome = error
            pause = self.retries.pause(made, outcome, repeatable=call.repeatable)
            if pause is None:
                break
            time.sleep(pause)
        return _answer(call, outcome, self._url, made)

    # Searching

    def search(self, photo: Photo, **options: Unpack[SearchOptions]) -> SearchResponse:
        """The items nearest to a photo."""
        return self._run(calls.search(photo, options))

    def search_batch(
        self, photos: Sequence[Photo], **options: Unpack[SearchOptions]
    ) -> BatchResponse:
        """The items nearest to each of several photos; one that is damaged harms no other."""
        return self._run(calls.search_batch(photos, options))

    def search_vector(
        self, vector: Sequence[float], **options: Unpack[SearchOptions]
    ) -> SearchResponse:
        """The items nearest to an embedding (d,) of unit length that the gallery's model made."""
        return self._run(calls.search_vector(vector, options))

    def search_url(self, url: str, **options: Unpack[SearchOptions]) -> SearchResponse:
        """The items nearest to a photo on the web, where the service allows that."""
        return self._run(calls.search_url(url, options))

    def similar_items(self, item_id: int, **options: Unpack[SearchOptions]) -> SearchResponse:
        """The items nearest to one of the gallery, which is not among them."""
        return self._run(calls.similar_items(item_id, options))

    def explain(self, query: Photo | int, result: int) -> ExplainResponse:
        """Which parts of a photo, or of an item (its id), make it similar to a result (its id)."""
        return self._run(calls.explain(query, result))

    # Items

    def list_items(
        self, *, where: Where | None = None, offset: int = 0, limit: int = 50
    ) -> ItemPage:
        """A page of the items, or of those that a filter matches, in the order of ids."""
        return self._run(calls.list_items(where=where, offset=offset, limit=limit))

    def get_item(self, item_id: int) -> ItemResponse:
        """One item."""
        return self._run(calls.get_item(item_id))

    def get_item_by_sku(self, sku: str) -> ItemResponse:
        """The item that you call ``sku``."""
        return self._run(calls.get_item_by_sku(sku))

    def item_image(self, item_id: int) -> bytes:
        """An item's photo, the original file."""
        return self._run(calls.item_image(item_id))

    def item_thumbnail(self, item_id: int, *, size: int | None = None) -> bytes:
        """An item's photo as a JPEG whose longer side has ``size`` pixels."""
        return self._run(calls.item_thumbnail(item_id, size=size))

    def list_fields(
        self, *, where: Where | None = None, values: int | None = None
    ) -> FieldsResponse:
        """What items can be filtered and grouped by, with the ``values`` most frequent values."""
        return self._run(calls.list_fields(where=where, values=values))

    def add_item(
        self,
        photo: Photo,
        *,
        label: str | None = None,
        attributes: Attributes | None = None,
        sku: str | None = None,
    ) -> ItemResponse:
        """Add a photo; stored durably and found by searches when this returns.

        Where no answer came, it is not known whether the photo was added: ``put_item_by_sku`` can
        be repeated.
        """
        return self._run(calls.add_item(photo, label=label, attributes=attributes, sku=sku))

    def put_item_by_sku(
        self,
        sku: str,
        photo: Photo,
        *,
        label: str | None = None,
        attributes: Attributes | None = None,
    ) -> ItemResponse:
        """Make the item that you call ``sku`` be this photo, label and attributes."""
        return self._run(calls.put_item_by_sku(sku, photo, label=label, attributes=attributes))

    def change_item(self, item_id: int, change: ItemChange) -> ItemResponse:
        """Change what is known about an item; what ``change`` does not set stays."""
        return self._run(calls.change_item(item_id, change))

    def remove_item(self, item_id: int) -> None:
        """Take an item out of the gallery."""
        self._run(calls.remove_item(item_id))

    def add_items(self, archive: Path | str) -> Job:
        """Start to add the photos of a zip: its folders are labels, or it has an ``items.csv``."""
        return self._run(calls.add_items(archive))

    # Jobs

    def list_jobs(self) -> JobList:
        """Jobs that run or wait, and those that have ended of late; the newest first."""
        return self._run(calls.list_jobs())

    def get_job(self, job_id: str) -> Job:
        """A job as it is now."""
        return self._run(calls.get_job(job_id))

    def cancel_job(self, job_id: str) -> Job:
        """Stop a job at its next step."""
        return self._run(calls.cancel_job(job_id))

    # The service itself

    def model(self) -> ModelResponse:
        """The card of the model that embeds photos there, and the size of the gallery."""
        return self._run(calls.model())

    def ready(self) -> Health:
        """Return once searches are answered; a service that is just starting is waited for."""
        return self._run(calls.ready())

    # Map

    def draw_map(self, *, anew: bool = False) -> Job:
        """Start to draw the gallery's map, or to put into it what has come since: see ``wait``."""
        return self._run(calls.draw_map(anew=anew))

    def map(self, colour: str | None = None, *, where: Where | None = None) -> MapResponse:
        """Where items are on the map, and with ``colour`` the values of that field."""
        return self._run(calls.get_map(colour, where))

    # Evaluation

    def evaluate(self, wanted: EvaluationRequest | None = None) -> EvaluationResponse:
        """recall@K and its companions of the gallery, however long it takes.

        Raises:
            JobError: it became a job, as large ones do, and that did not come to its end.
        """
        return self._finished(self._run(calls.evaluate(wanted or EvaluationRequest())))

    def evaluate_upload(
        self, archive: Path | str, wanted: EvaluationRequest | None = None
    ) -> EvaluationResponse:
        """The same of the labelled photos in a zip, looked up in the gallery."""
        call = calls.evaluate_upload(archive, wanted or EvaluationRequest())
        return self._finished(self._run(call))

    def wait(
        self, job: Job, *, every_s: float = POLL_S, told: Callable[[Job], None] | None = None
    ) -> Job:
        """The job once it is done.

        Args:
            job: as ``add_items`` gives it.
            every_s: seconds between looks.
            told: called with the job after each look.

        Raises:
            JobError: it failed, was cancelled, or was interrupted by the service's end.
        """
        while not job.ended:
            time.sleep(every_s)
            job = self.get_job(job.id)
            if told is not None:
                told(job)
        return _done(job)

    def _finished(self, answer: EvaluationResponse | Job) -> EvaluationResponse:
        if isinstance(answer, Job):
            return EvaluationResponse.model_validate(self.wait(answer).result)
        return answer


class AsyncClient:
    """As ``Client``, for one event loop.

    ::

        async with AsyncClient("http://127.0.0.1:8000", key="dscl_…") as client:
            found = await client.search("photo.jpg", k=5)
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries | None = None,
    ) -> None:
        """As ``Client``."""
        self.retries = retries or Retries()
        self._url = _checked(url)
        self._http = httpx.AsyncClient(
            base_url=self._url, headers=_headers(key), timeout=_timeout(timeout_s)
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, call: Call[T]) -> T:
        for made in itertools.count(1):
            outcome: Outcome
            with call.arguments() as arguments:
                try:
                    outcome = await self._http.request(**arguments)
                except httpx.TransportError as error:
                    outcome = error
            pause = self.retries.pause(made, outcome, repeatable=call.repeatable)
            if pause is None:
                break
            await asyncio.sleep(pause)
        return _answer(call, outcome, self._url, made)

    # Searching

    async def search(self, photo: Photo, **options: Unpack[SearchOptions]) -> SearchResponse:
        """As ``Client.search``."""
        return await self._run(calls.search(photo, options))

    async def search_batch(
        self, photos: Sequence[Photo], **options: Unpack[SearchOptions]
    ) -> BatchResponse:
        """As ``Client.search_batch``."""
        return await self._run(calls.search_batch(photos, options))

    async def search_vector(
        self, vector: Sequence[float], **options: Unpack[SearchOptions]
    ) -> SearchResponse:
        """As ``Client.search_vector``."""
        return await self._run(calls.search_vector(vector, options))

    async def search_url(self, url: str, **options: Unpack[SearchOptions]) -> SearchResponse:
        """As ``Client.search_url``."""
        return await self._run(calls.search_url(url, options))

    async def similar_items(self, item_id: int, **options: Unpack[SearchOptions]) -> SearchResponse:
        """As ``Client.similar_items``."""
        return await self._run(calls.similar_items(item_id, options))

    async def explain(self, query: Photo | int, result: int) -> ExplainResponse:
        """As ``Client.explain``."""
        return await self._run(calls.explain(query, result))

    # Items

    async def list_items(
        self, *, where: Where | None = None, offset: int = 0, limit: int = 50
    ) -> ItemPage:
        """As ``Client.list_items``."""
        return await self._run(calls.list_items(where=where, offset=offset, limit=limit))

    async def get_item(self, item_id: int) -> ItemResponse:
        """As ``Client.get_item``."""
        return await self._run(calls.get_item(item_id))

    async def get_item_by_sku(self, sku: str) -> ItemResponse:
        """As ``Client.get_item_by_sku``."""
        return await self._run(calls.get_item_by_sku(sku))

    async def item_image(self, item_id: int) -> bytes:
        """As ``Client.item_image``."""
        return await self._run(calls.item_image(item_id))

    async def item_thumbnail(self, item_id: int, *, size: int | None = None) -> bytes:
        """As ``Client.item_thumbnail``."""
        return await self._run(calls.item_thumbnail(item_id, size=size))

    async def list_fields(
        self, *, where: Where | None = None, values: int | None = None
    ) -> FieldsResponse:
        """As ``Client.list_fields``."""
        return await self._run(calls.list_fields(where=where, values=values))

    async def add_item(
        self,
        photo: Photo,
        *,
        label: str | None = None,
        attributes: Attributes | None = None,
        sku: str | None = None,
    ) -> ItemResponse:
        """As ``Client.add_item``."""
        return await self._run(calls.add_item(photo, label=label, attributes=attributes, sku=sku))

    async def put_item_by_sku(
        self,
        sku: str,
        photo: Photo,
        *,
        label: str | None = None,
        attributes: Attributes | None = None,
    ) -> ItemResponse:
        """As ``Client.put_item_by_sku``."""
        return await self._run(
            calls.put_item_by_sku(sku, photo, label=label, attributes=attributes)
        )

    async def change_item(self, item_id: int, change: ItemChange) -> ItemResponse:
        """As ``Client.change_item``."""
        return await self._run(calls.change_item(item_id, change))

    async def remove_item(self, item_id: int) -> None:
        """As ``Client.remove_item``."""
        await self._run(calls.remove_item(item_id))

    async def add_items(self, archive: Path | str) -> Job:
        """As ``Client.add_items``."""
        return await self._run(calls.add_items(archive))

    # Jobs

    async def list_jobs(self) -> JobList:
        """As ``Client.list_jobs``."""
        return await self._run(calls.list_jobs())

    async def get_job(self, job_id: str) -> Job:
        """As ``Client.get_job``."""
        return await self._run(calls.get_job(job_id))

    async def cancel_job(self, job_id: str) -> Job:
        """As ``Client.cancel_job``."""
        return await self._run(calls.cancel_job(job_id))

    # The service itself

    async def model(self) -> ModelResponse:
        """As ``Client.model``."""
        return await self._run(calls.model())

    async def ready(self) -> Health:
        """As ``Client.ready``."""
        return await self._run(calls.ready())

    # Map

    async def draw_map(self, *, anew: bool = False) -> Job:
        """As ``Client.draw_map``."""
        return await self._run(calls.draw_map(anew=anew))

    async def map(self, colour: str | None = None, *, where: Where | None = None) -> MapResponse:
        """As ``Client.map``."""
        return await self._run(calls.get_map(colour, where))

    # Evaluation

    async def evaluate(self, wanted: EvaluationRequest | None = None) -> EvaluationResponse:
        """As ``Client.evaluate``."""
        return await self._finished(await self._run(calls.evaluate(wanted or EvaluationRequest())))

    async def evaluate_upload(
        self, archive: Path | str, wanted: EvaluationRequest | None = None
    ) -> EvaluationResponse:
        """As ``Client.evaluate_upload``."""
        call = calls.evaluate_upload(archive, wanted or EvaluationRequest())
        return await self._finished(await self._run(call))

    async def wait(
        self, job: Job, *, every_s: float = POLL_S, told: Callable[[Job], None] | None = None
    ) -> Job:
        """As ``Client.wait``."""
        while not job.ended:
            await asyncio.sleep(every_s)
            job = await self.get_job(job.id)
            if told is not None:
                told(job)
        return _done(job)

    async def _finished(self, answer: EvaluationResponse | Job) -> EvaluationResponse:
        if isinstance(answer, Job):
            return EvaluationResponse.model_validate((await self.wait(answer)).result)
        return answer


def _checked(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise InvalidArgumentError(
            f"{url!r} is no address of a service: expected one like http://127.0.0.1:8000."
        )
    return url


def _timeout(seconds: float) -> float:
    if not seconds > 0:
        raise InvalidArgumentError(f"timeout_s is {seconds}; expected a number above 0.")
    return seconds


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _answer(call: Call[T], outcome: Outcome, url: str, made: int) -> T:
    if isinstance(outcome, httpx.TransportError):
        tried = f" after {made} attempts" if made > 1 else ""
        raise UnreachableError(
            f"no answer from {url}{tried}: {str(outcome) or type(outcome).__name__}. Does "
            "`dscl serve` run there, and is the address right?"
        ) from outcome
    if not outcome.is_success:
        raise ServiceError.of(outcome)
    return call.read(outcome)


def _done(job: Job) -> Job:
    if job.state != "done":
        raise JobError(job)
    return job
