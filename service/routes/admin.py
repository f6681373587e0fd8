"""``/admin``: what only the owner of a service may do."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from index.address import parse_address
from service.dependencies import EngineDep
from service.errors import problems
from service.schemas import ReloadRequest, ReloadResponse
from service.security import require

__all__ = ["router"]

router = APIRouter(prefix="/admin", tags=["system"], dependencies=[Depends(require("admin"))])


@router.post("/reload", operation_id="reload", responses=problems(422, 503))
async def reload(engine: EngineDep, wanted: ReloadRequest | None = None) -> ReloadResponse:
    """Serve another gallery, of the same model or another, without a failed request.

    It is opened beside the one that is served and takes its place; requests under way end on the
    old one. If it cannot be opened, the old one goes on and the answer, `reload_refused`, says why.
    SIGHUP does the same as a request without a body.
    """
    done = await engine.reload(
        None if wanted is None or wanted.gallery is None else parse_address(wanted.gallery)
    )
    return ReloadResponse(
        changed=done.changed,
        items=done.items,
        model_name=done.model_name,
        model_sha256=done.model_sha256,
        previous_model_sha256=done.previous_model_sha256,
        seconds=done.seconds,
    )
