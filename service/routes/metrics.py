"""``/metrics``: what Prometheus reads."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse, Response

from index import Gallery
from service.dependencies import EngineDep
from service.errors import problems
from service.metrics import MEDIA_TYPE, GalleryFacts, exposition
from service.security import require

router = APIRouter(tags=["system"], dependencies=[Depends(require("read"))])


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=PlainTextResponse,
    responses=problems(401, 403, 429),
)
async def metrics(engine: EngineDep) -> Response:
    """Figures for Prometheus, in its text format.

    Requests, their latency and that of each stage, queues, the gallery's size and measured recall,
    the model. While no gallery is open, its figures are left out.
    """
    opened = engine.opened
    ready = opened.done() and opened.exception() is None
    facts = await engine.read(_facts) if ready else None
    return Response(exposition(facts), media_type=MEDIA_TYPE)


def _facts(gallery: Gallery) -> GalleryFacts:
    card = gallery.model.card
    return GalleryFacts(
        items=len(gallery),
        recall=gallery.index_info().recall,
        model_name=card.name,
        model_sha256=card.sha256,
    )
