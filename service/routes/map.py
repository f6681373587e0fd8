"""``/map``: the gallery in two dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from numpy.typing import NDArray

from index import Gallery
from index.attributes import OWN_FIELDS
from index.errors import DsclError
from index.photos import AttributeValue
from service.dependencies import EngineDep
from service.errors import problems
from service.jobs import JobCancelledError, Progress
from service.schemas import Job, LegendEntry, MapColours, MapResponse, ModelReference
from service.security import require
from service.where import WhereDep

__all__ = ["MapMissingError", "router"]

router = APIRouter(prefix="/map", tags=["map"], dependencies=[Depends(require("read"))])

#: Values of a field that have a colour of their own, and numbers that do; of more numbers, ranges.
COLOURS = 100
NUMBERS = 12
RANGES = 8


class MapMissingError(DsclError):
    """A map that nobody has drawn."""

    code = "map_missing"


@router.post("", status_code=202, operation_id="draw_map", responses=problems(422, 503))
async def draw_map(
    request: Request,
    response: Response,
    engine: EngineDep,
    anew: Annotated[
        bool, Query(description="Also where few items have come: nothing of the last map remains.")
    ] = False,
) -> Job:
    """Draw the map, or put into it what has come since, as a job.

    It is kept with the gallery. The job's `result` tells how many `points` are on it.

    `curl -X POST …/map`
    """
    keep = engine.settings.writes

    def work(progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
        def tell(done: int, total: int, stage: str) -> None:
            if cancelled():
                raise JobCancelledError(f"cancelled while {stage}; the map is as it was.")
            progress(done, total, stage)

        with engine.lease() as gallery:
            drawn = gallery.draw_map(anew=anew, keep=keep, progress=tell)
        return {"points": len(drawn.ids), "items": drawn.items}

    job = await engine.read(lambda _: engine.jobs.start("draw_map", work))
    response.headers["Location"] = str(request.app.url_path_for("get_job", job_id=job.id))
    return job


@router.get("", operation_id="map", responses=problems(404, 422, 503))
async def get_map(
    engine: EngineDep,
    where: WhereDep,
    colour: Annotated[
        str | None,
        Query(
            min_length=1,
            description="Also the values of this field: `label`, `sku` or an attribute.",
            examples=["label"],
        ),
    ] = None,
) -> MapResponse:
    """Where the items, or those that `where` matches, are on the map.

    Before it was drawn (`POST /map`) there is none (`map_missing`, 404).
    """
    return await engine.read(_on_the_map, where, colour)


def _on_the_map(
    gallery: Gallery, where: Mapping[str, Any] | None, colour: str | None
) -> MapResponse:
    drawn = gallery.map()
    if drawn is None:
        raise MapMissingError("this gallery's map has not been drawn: POST /map draws it.")
    ids = gallery.ids(where)
    there, positions = drawn.positions_of(ids)
    return MapResponse(
        model=ModelReference(name=gallery.model.card.name, sha256=gallery.model.sha256),
        created=drawn.created,
        items=len(gallery),
        missing=int(np.count_nonzero(ids > drawn.last_id)),
        ids=there.tolist(),
        x=positions[:, 0].tolist(),
        y=positions[:, 1].tolist(),
        colours=None if colour is None else _colours(gallery, there, colour),
    )


def _colours(gallery: Gallery, ids: NDArray[np.int64], field: str) -> MapColours:
    values = gallery.values_of(ids.tolist(), field)
    if ({**OWN_FIELDS, **gallery.fields()})[field] == "number":
        entries, codes = _numbers(values)
    else:
        entries, codes = _words(values)
    # Those without a colour of their own come last, as one.
    others = int(np.count_nonzero(codes < 0))
    if others:
        codes = np.where(codes < 0, len(entries), codes)
        entries = [*entries, LegendEntry(value=None, count=others)]
    return MapColours(
        field=field,
        ordered=any(entry.low is not None for entry in entries),
        legend=entries,
        codes=codes.tolist(),
    )


def _words(values: Sequence[AttributeValue]) -> tuple[list[LegendEntry], NDArray[np.int64]]:
    """The most frequent values, and for each item its place among them; −1 for all others."""
    counts = Counter(value for value in values if value is not None)
    frequent = counts.most_common(COLOURS)
    codes: dict[AttributeValue, int] = {value: code for code, (value, _) in enumerate(frequent)}
    return (
        [LegendEntry(value=value, count=count) for value, count in frequent],
        np.fromiter((codes.get(value, -1) for value in values), np.int64, len(values)),
    )


def _numbers(values: Sequence[AttributeValue]) -> tuple[list[LegendEntry], NDArray[np.int64]]:
    """Numbers from low to high or, where they are many, ranges of about as many items each."""
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    known = ~np.isnan(numbers)
    lows = distinct = np.unique(numbers[known])
    if len(distinct) > NUMBERS:
        shares = np.quantile(numbers[known], np.arange(RANGES) / RANGES, method="higher")
        lows = np.unique(shares)
    codes = np.where(known, np.searchsorted(lows, numbers, side="right") - 1, -1)
    entries = []
    for code, low in enumerate(lows.tolist()):
        within = numbers[codes == code]
        high = float(within.max())
        # A year is 2011 and not 2011.0.
        one = None if low < high else int(low) if low.is_integer() else low
        entries.append(LegendEntry(value=one, low=low, high=high, count=len(within)))
    return entries, codes
