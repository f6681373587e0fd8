"""``/map``: the gallery in two dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from numpy.typing import NDArray

from index import Gallery
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

#: Values of a field that have a colour of their own.
COLOURS = 20


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
    counts = Counter(value for value in values if value is not None)
    frequent = [value for value, _ in counts.most_common(COLOURS)]
    # By type as well: 1 and true are one key to a dict.
    codes: dict[tuple[type, AttributeValue], int] = {
        (type(value), value): code for code, value in enumerate(frequent)
    }
    others = len(frequent)
    coded = [codes.get((type(value), value), others) for value in values]
    legend = [LegendEntry(value=value, count=counts[value]) for value in frequent]
    if rest := coded.count(others):
        legend.append(LegendEntry(value=None, count=rest))
    return MapColours(field=field, legend=legend, codes=coded)
