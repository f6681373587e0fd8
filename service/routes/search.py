"""``POST /search``: a photo → its nearest items."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, File, Query, Request, UploadFile

from index.errors import InvalidArgumentError
from service.dependencies import EngineDep
from service.errors import problems
from service.routes.items import image_url
from service.schemas import Hit, ModelReference, SearchResponse

router = APIRouter(tags=["search"])


async def result_count(
    engine: EngineDep,
    k: Annotated[
        int,
        Query(
            json_schema_extra={"minimum": 1},
            description="How many items to return, up to the service's `max_results` (1,000 unless "
            "set otherwise). A smaller gallery returns all it has.",
        ),
    ] = 10,
) -> int:
    """``k`` after a check against the settings."""
    # One check for both ends, so that one message names the value and the range.
    limit = engine.settings.max_results
    if not 1 <= k <= limit:
        raise InvalidArgumentError(f"k is {k}: this service returns 1 to {limit} results.")
    return k


@router.post("/search", responses=problems(413, 415, 422, 503))
async def search(
    request: Request,
    engine: EngineDep,
    k: Annotated[int, Depends(result_count)],
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
    neighbours = await engine.search(photo, k)
    took_ms = (time.perf_counter() - start) * 1000
    card = engine.gallery.model.card
    return SearchResponse(
        model=ModelReference(name=card.name, sha256=card.sha256),
        results=[
            Hit(
                id=near.item.id,
                score=near.score,
                label=near.item.label,
                attributes=near.item.attributes,
                image_url=image_url(request, near.item.id),
            )
            for near in neighbours
        ],
        took_ms=round(took_ms, 2),
    )
