"""The model, and whether the service is alive and ready."""

from __future__ import annotations

from fastapi import APIRouter

from service.dependencies import EngineDep
from service.errors import problems
from service.schemas import Health, ModelResponse

router = APIRouter(tags=["system"])


@router.get("/model", responses=problems(503))
async def model(engine: EngineDep) -> ModelResponse:
    """The card of the model that embeds photos here, and the size of the gallery."""
    return ModelResponse.of(engine.gallery.model.card, await engine.read(len))


@router.get("/health/live")
async def live() -> Health:
    """Whether the process answers. Never waits for work that is going on."""
    return Health()


@router.get("/health/ready", responses=problems(503))
async def ready(engine: EngineDep) -> Health:
    """Whether searches will be answered: the gallery is open and the model warm.

    Until then, and for good if the gallery cannot be opened, 503 with the reason.
    """
    _ = engine.gallery  # raises unless it is open
    return Health()
