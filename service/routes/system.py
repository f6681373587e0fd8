"""The model, and whether the service is alive and ready."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from index import Gallery
from service.dependencies import EngineDep
from service.errors import problems
from service.schemas import Health, ModelResponse
from service.security import require

router = APIRouter(tags=["system"])


@router.get(
    "/model",
    operation_id="model",
    dependencies=[Depends(require("read"))],
    responses=problems(503),
)
async def model(engine: EngineDep) -> ModelResponse:
    """The card of the model that embeds photos here, and the size of the gallery."""
    return await engine.read(_model)


@router.get("/health/live", operation_id="live")
async def live() -> Health:
    """Whether the process answers. Never waits for work that is going on."""
    return Health()


@router.get("/health/ready", operation_id="ready", responses=problems(503))
async def ready(engine: EngineDep) -> Health:
    """Whether searches will be answered: the gallery is open and the model warm.

    Until then, and for good if the gallery cannot be opened, 503 with the reason. So, too, while
    the Milvus server of a gallery does not answer.
    """
    if engine.gallery.is_remote:  # raises unless it is open
        await engine.read(Gallery.expect_server)
    return Health()


def _model(gallery: Gallery) -> ModelResponse:
    return ModelResponse.of(
        gallery.model.card, items=len(gallery), mapped=gallery.map() is not None
    )
