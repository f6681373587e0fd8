"""``/items``: what the gallery holds, and its photos."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from index import Gallery
from index.errors import ImageError
from service.dependencies import EngineDep
from service.errors import problems
from service.schemas import ItemPage, ItemResponse

router = APIRouter(prefix="/items", tags=["items"])

#: Ids and offsets are SQLite integers.
MAX_INTEGER = 2**63 - 1

ItemId = Annotated[int, PathParameter(ge=1, le=MAX_INTEGER, description="The item's id.")]


def image_url(request: Request, item_id: int) -> str:
    """Where an item's photo is, as a path on this service."""
    return str(request.app.url_path_for("item_image", item_id=item_id))


@router.get("", responses=problems(422, 503))
async def list_items(
    request: Request,
    engine: EngineDep,
    offset: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Items to skip.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500, description="Items to return.")] = 50,
) -> ItemPage:
    """List the gallery, in the order of ids."""
    total = await engine.read(len)
    items = await engine.read(Gallery.items, offset=offset, limit=limit)
    return ItemPage(
        total=total,
        offset=offset,
        items=[ItemResponse.of(item, image_url(request, item.id)) for item in items],
    )


@router.get("/{item_id}", responses=problems(404, 422, 503))
async def get_item(request: Request, engine: EngineDep, item_id: ItemId) -> ItemResponse:
    """One item."""
    [item] = await engine.read(Gallery.get, [item_id])
    return ItemResponse.of(item, image_url(request, item.id))


@router.get(
    "/{item_id}/image",
    response_class=FileResponse,
    responses={
        200: {"content": {"image/*": {}}, "description": "The photo as it was indexed."},
        304: {"description": "Unchanged since the `If-None-Match` given."},
        **problems(404, 410, 422, 503),
    },
)
async def item_image(request: Request, engine: EngineDep, item_id: ItemId) -> Response:
    """An item's photo, the original file. `image_missing` (410) if the file is gone."""
    photo = await engine.read(_photo, item_id)
    # An id is never given to another photo, but a gallery made anew counts from 1 again.
    headers = {"ETag": photo.etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("If-None-Match") == photo.etag:
        return Response(status_code=304, headers=headers)
    return FileResponse(
        photo.path, media_type=photo.media_type, stat_result=photo.stat, headers=headers
    )


@dataclass(frozen=True)
class _Photo:
    path: Path
    stat: os.stat_result
    media_type: str
    etag: str


def _photo(gallery: Gallery, item_id: int) -> _Photo:
    """The file of an item; its path comes from the catalog, never from a request."""
    [item] = gallery.get([item_id])
    try:
        with item.image.open("rb") as file:
            stat = os.fstat(file.fileno())
            head = file.read(12)
    except OSError as error:
        raise ImageError(
            "image_missing",
            f"the photo of item {item_id} cannot be read ({error.strerror}): the file was moved or "
            "deleted after it was indexed. Put it back, or remove the item.",
        ) from error
    return _Photo(
        path=item.image,
        stat=stat,
        media_type=_media_type(head),
        etag=f'"{item.sha256[:16]}-{stat.st_mtime_ns:x}-{stat.st_size:x}"',
    )


def _media_type(head: bytes) -> str:
    """The type of an image by its first 12 bytes; its file name may say anything."""
    if head.startswith(b"RIFF") and head[8:] == b"WEBP":
        return "image/webp"
    if head[4:] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    signatures = {
        b"\xff\xd8\xff": "image/jpeg",
        b"\x89PNG": "image/png",
        b"GIF8": "image/gif",
        b"BM": "image/bmp",
        b"II*\0": "image/tiff",
        b"MM\0*": "image/tiff",
    }
    for signature, media_type in signatures.items():
        if head.startswith(signature):
            return media_type
    return "application/octet-stream"
