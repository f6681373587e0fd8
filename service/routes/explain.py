"""``/explain``: which parts of two photos make them similar."""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, File, Query, UploadFile
from numpy.typing import NDArray

from index.errors import InvalidArgumentError
from index.images import Area
from index.regions import heat
from service.dependencies import EngineDep
from service.errors import problems
from service.explaining import explain as explain_photos
from service.routes.item_paths import MAX_INTEGER
from service.schemas import (
    ExplainResponse,
    ModelReference,
    PhotoArea,
    PhotoRegions,
    RegionPair,
)
from service.security import require

__all__ = ["router"]

router = APIRouter(tags=["search"], dependencies=[Depends(require("read"))])

#: Digits after the point: more are rounding of float32.
DIGITS = 6


@router.post(
    "/explain", operation_id="explain", responses=problems(404, 409, 410, 413, 415, 422, 503)
)
async def explain(
    engine: EngineDep,
    result: Annotated[
        int, Query(ge=1, le=MAX_INTEGER, description="The id of an item that was found.")
    ],
    item: Annotated[
        int | None,
        Query(ge=1, le=MAX_INTEGER, description="The id of the item that was searched by."),
    ] = None,
    file: Annotated[
        UploadFile | None, File(description="Or the photo that was searched by.")
    ] = None,
) -> ExplainResponse:
    """Show which parts of a query and of a result make them similar.

    The query is a photo or, by `item`, an item of the gallery. The score is taken apart over the
    positions of the model's last feature map; `regions` of `GET /model` tells whether the model can
    (`regions_missing`, 409).

    `curl -F file=@photo.jpg 'http://127.0.0.1:8000/explain?result=3'`
    """
    if (file is None) == (item is None):
        raise InvalidArgumentError(
            "an explanation needs the query once: send a photo as `file`, or name an item by "
            f"`item`; this request has {'neither' if file is None else 'both'}."
        )
    query = item if file is None else await file.read()
    assert query is not None  # by the check above
    start = time.perf_counter()
    found = await engine.photo(explain_photos, query, result)
    explanation = found.explanation
    return ExplainResponse(
        model=ModelReference(name=found.model_name, sha256=found.model_sha256),
        score=round(min(1.0, max(-1.0, explanation.score)), DIGITS),
        query=_regions(explanation.query, found.query_area),
        result=_regions(explanation.result, found.result_area),
        pairs=[
            RegionPair(
                query=pair.query,
                result=pair.result,
                contribution=round(pair.contribution, DIGITS),
            )
            for pair in explanation.pairs
        ],
        took_ms=round((time.perf_counter() - start) * 1000, 2),
    )


def _regions(contributions: NDArray[np.float32], area: Area) -> PhotoRegions:
    return PhotoRegions(
        area=PhotoArea(**{side: round(at, DIGITS) for side, at in area._asdict().items()}),
        contributions=_rows(contributions),
        heat=_rows(heat(contributions)),
    )


def _rows(grid: NDArray[np.float32]) -> list[list[float]]:
    rows: list[list[float]] = grid.astype(np.float64).round(DIGITS).tolist()
    return rows
