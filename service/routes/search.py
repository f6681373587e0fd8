"""Searches: by a photo, several photos, a vector, an item of the gallery, or a photo's address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Request, Response, UploadFile
from pydantic_core import to_json

from index.errors import DsclError
from service.dependencies import EngineDep
from service.engine import Engine
from service.errors import STATUS, problems
from service.metrics import observe_stage
from service.routes.item_paths import ItemId, image_url, thumbnail_url
from service.routes.photo_route import photo_route
from service.schemas import (
    BatchAnswer,
    BatchResponse,
    Hit,
    ModelReference,
    PhotoProblem,
    SearchResponse,
    UrlQuery,
    VectorQuery,
)
from service.search_parameters import SearchOptions, SearchOptionsDep, search_options
from service.searching import (
    Found,
    Neighbour,
    search_photo,
    search_photo_or_refuse,
    search_similar,
    search_vector,
)
from service.security import require
from service.tracing import record_stage
from service.url_fetch import UrlFetcher
from service.where import where_parameter

__all__ = ["TooManyFilesError", "UrlSearchOffError", "photo_router", "router"]

router = APIRouter(tags=["search"], dependencies=[Depends(require("read"))])

#: The one search that nearly all requests are: the framework tries one route after the other.
photo_router = APIRouter(tags=["search"], dependencies=[Depends(require("read"))])


class TooManyFilesError(DsclError):
    """More photos in one request than the service takes."""

    code = "too_many_files"


class UrlSearchOffError(DsclError):
    """A search by URL where the service fetches nothing."""

    code = "url_search_off"


async def url_fetcher(request: Request) -> UrlFetcher:
    """What fetches photos.

    Raises:
        UrlSearchOffError: the service was started without it.
    """
    fetcher: UrlFetcher | None = request.app.state.url_fetcher
    if fetcher is None:
        raise UrlSearchOffError(
            "this service fetches nothing by URL: send the photo itself to POST /search, or start "
            "the service with --url-search (DSCL_URL_SEARCH=1)."
        )
    return fetcher


async def search(
    engine: EngineDep,
    options: SearchOptionsDep,
    file: Annotated[
        UploadFile,
        File(description="One still photo: JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF."),
    ],
) -> SearchResponse:
    """Find the items nearest to a photo.

    The photo is turned upright by its EXIF orientation and embedded by the gallery's model. A
    `score` is the cosine similarity in [−1, 1]: higher is nearer, and a photo that is in the
    gallery finds itself with 1. Results come nearest first, ties by ascending id.

    `curl -F file=@photo.jpg 'http://127.0.0.1:8000/search?k=5'`
    """
    photo = await file.read()
    start = time.perf_counter()
    found = await engine.photo(search_photo, photo, options)
    return _response(found, options, start)


async def search_shortly(
    request: Request, photo: bytes, *, where: str | None = None, **parameters: Any
) -> Response:
    """The same for a request that ``photo_route`` has read."""
    engine: Engine = request.app.state.engine
    options = await search_options(engine, await where_parameter(where), **parameters)
    start = time.perf_counter()
    found = await engine.photo(search_photo, photo, options)
    _observe(found)
    answer = {
        "model": {"name": found.model_name, "sha256": found.model_sha256},
        "results": [_told(near, options) for near in found.neighbours],
        "took_ms": _milliseconds_since(start),
    }
    return Response(to_json(answer), media_type="application/json")


photo_router.add_api_route(
    "/search",
    search,
    methods=["POST"],
    operation_id="search",
    response_model_exclude_unset=True,
    responses=problems(413, 415, 422, 503),
    route_class_override=photo_route(search_shortly),
)


@router.post(
    "/search/batch",
    operation_id="search_batch",
    response_model_exclude_unset=True,
    responses=problems(413, 422, 503),
)
async def search_batch(
    engine: EngineDep,
    options: SearchOptionsDep,
    files: Annotated[
        list[UploadFile],
        File(
            description="Still photos, up to the service's `max_files` (16 unless set otherwise)."
        ),
    ],
) -> BatchResponse:
    """Find the items nearest to each of several photos.

    A photo that cannot be used gets a `problem` in its place and harms no other.

    `curl -F files=@1.jpg -F files=@2.jpg 'http://127.0.0.1:8000/search/batch?k=5'`
    """
    limit = engine.settings.max_files
    if len(files) > limit:
        raise TooManyFilesError(
            f"the form has {len(files)} photos: this service takes up to {limit} in one request."
        )
    photos = [await file.read() for file in files]
    start = time.perf_counter()
    answers = await _of_one_model(engine, photos, options)
    for found in answers:
        _observe(found)
    return BatchResponse(
        model=_model(answers[0]),
        answers=[
            _answer(file.filename, found, options)
            for file, found in zip(files, answers, strict=True)
        ],
        took_ms=_milliseconds_since(start),
    )


@router.post(
    "/search/vector",
    operation_id="search_vector",
    response_model_exclude_unset=True,
    responses=problems(413, 422, 503),
)
async def search_by_vector(
    engine: EngineDep, options: SearchOptionsDep, query: VectorQuery
) -> SearchResponse:
    """Find the items nearest to an embedding that the gallery's model made elsewhere.

    It must have unit length, as `include=vector` gives it.
    """
    start = time.perf_counter()
    found = await engine.photo(search_vector, query.vector, options)
    return _response(found, options, start)


@router.post(
    "/search/url",
    operation_id="search_url",
    response_model_exclude_unset=True,
    responses=problems(403, 413, 415, 422, 503),
)
async def search_url(
    engine: EngineDep,
    options: SearchOptionsDep,
    fetcher: Annotated[UrlFetcher, Depends(url_fetcher)],
    query: UrlQuery,
) -> SearchResponse:
    """Find the items nearest to a photo on the public internet.

    Off unless the service was started with `url_search` (`url_search_off`, 403). Redirects are
    followed; addresses that are not public are refused (`url_forbidden`, 403).
    """
    start = time.perf_counter()
    photo = await fetcher.fetch(query.url)
    found = await engine.photo(search_photo, photo, options)
    return _response(found, options, start)


@router.get(
    "/items/{item_id:item}/similar",
    operation_id="similar_items",
    response_model_exclude_unset=True,
    responses=problems(404, 422, 503),
)
async def similar_items(
    engine: EngineDep, options: SearchOptionsDep, item_id: ItemId
) -> SearchResponse:
    """Find the items nearest to an item of the gallery; it is not among them."""
    start = time.perf_counter()
    found = await engine.photo(search_similar, item_id, options)
    return _response(found, options, start)


async def _of_one_model(
    engine: EngineDep, photos: Sequence[bytes], options: SearchOptions
) -> list[Found]:
    """An answer for each photo; once more if another model went live meanwhile."""
    while True:
        tasks = [
            asyncio.ensure_future(engine.photo(search_photo_or_refuse, photo, options))
            for photo in photos
        ]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one failed, the others are of no use
                task.cancel()
        if len({found.model_sha256 for found in answers}) == 1:
            return answers


def _response(found: Found, options: SearchOptions, start: float) -> SearchResponse:
    _observe(found)
    return SearchResponse(
        model=_model(found),
        results=_hits(found, options),
        took_ms=_milliseconds_since(start),
    )


def _answer(name: str | None, found: Found, options: SearchOptions) -> BatchAnswer:
    if found.refused is None:
        return BatchAnswer(file=name, results=_hits(found, options))
    code = found.refused.code
    problem = PhotoProblem(status=STATUS[code], code=code, detail=str(found.refused))
    return BatchAnswer(file=name, problem=problem)


def _hits(found: Found, options: SearchOptions) -> list[Hit]:
    return [Hit(**_told(near, options)) for near in found.neighbours]


def _told(near: Neighbour, options: SearchOptions) -> dict[str, Any]:
    """The fields of a ``Hit``: those that were asked for, and no others."""
    item = near.item
    told: dict[str, Any] = {
        "id": item.id,
        "score": near.score,
        "sku": item.external_id,
        "label": item.label,
    }
    if "attributes" in options.include:
        told["attributes"] = item.attributes
    if "image" in options.include:
        told["image_url"] = image_url(item.id)
        told["thumbnail_url"] = thumbnail_url(item.id)
    if near.vector is not None:
        told["vector"] = near.vector.tolist()
    return told


def _model(found: Found) -> ModelReference:
    return ModelReference(name=found.model_name, sha256=found.model_sha256)


def _observe(found: Found) -> None:
    for stage, seconds in found.seconds.items():
        observe_stage(stage, seconds)
        record_stage(stage, seconds)


def _milliseconds_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)
