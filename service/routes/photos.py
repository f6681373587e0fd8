"""``/items/{id}/image`` and ``/thumbnail``: the photos of items, with what caches need."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse

from index import Gallery
from index.errors import ImageError
from index.stores import PhotoPath, is_remote, read_photo, stamp_of
from service.dependencies import EngineDep
from service.errors import problems
from service.media_types import HEAD_BYTES, media_type
from service.routes.item_paths import ItemId
from service.security import require
from service.thumbnails import LARGEST, SMALLEST, Thumbnails

__all__ = ["router"]

router = APIRouter(prefix="/items", tags=["items"], dependencies=[Depends(require("read"))])

#: By content, so that it serves any gallery of this process.
thumbnails = Thumbnails()


@router.get(
    "/{item_id:item}/image",
    operation_id="item_image",
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
    headers = _headers(photo.etag)
    if _known(request, photo.etag):
        return Response(status_code=304, headers=headers)
    if isinstance(photo, _StoredPhoto):
        data = await engine.fetch(_fetched, photo)
        # Ranges would be no gain: the photo is here whole before its first byte is sent.
        kind = media_type(data[:HEAD_BYTES])
        return Response(data, media_type=kind, headers={**headers, "Accept-Ranges": "none"})
    return FileResponse(
        photo.path, media_type=photo.media_type, stat_result=photo.stat, headers=headers
    )


@router.get(
    "/{item_id:item}/thumbnail",
    operation_id="item_thumbnail",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {}}, "description": "A JPEG, upright."},
        304: {"description": "Unchanged since the `If-None-Match` given."},
        **problems(404, 410, 413, 415, 422, 503),
    },
)
async def item_thumbnail(
    request: Request,
    engine: EngineDep,
    item_id: ItemId,
    size: Annotated[
        int, Query(ge=SMALLEST, le=LARGEST, description="The longer side in pixels.")
    ] = 256,
) -> Response:
    """An item's photo, scaled down. `image_missing` (410) if the file is gone."""
    [item] = await engine.read(Gallery.get, [item_id])
    etag = f'"{item.sha256[:16]}-{size}"'
    headers = _headers(etag)
    if _known(request, etag):
        return Response(status_code=304, headers=headers)
    on_a_thread = engine.fetch if is_remote(item.image) else engine.read
    data = await on_a_thread(_thumbnail, item_id, size)
    return Response(data, media_type="image/jpeg", headers=headers)


@dataclass(frozen=True)
class _Photo:
    path: Path
    stat: os.stat_result
    media_type: str
    etag: str


@dataclass(frozen=True)
class _StoredPhoto:
    """A photo that lies in a store; what is under its name never changes."""

    item_id: int
    place: PhotoPath
    etag: str


def _photo(gallery: Gallery, item_id: int) -> _Photo | _StoredPhoto:
    """The file of an item; its path comes from the catalog, never from a request."""
    [item] = gallery.get([item_id])
    image = item.image
    if is_remote(image):
        etag = f'"{item.sha256[:16]}-{item.mtime_ns:x}-{item.size:x}"'
        return _StoredPhoto(item_id, image, etag)
    try:
        with image.open("rb") as file:
            stat = os.fstat(file.fileno())
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise _missing(item_id, error) from error
    return _Photo(
        path=image,
        stat=stat,
        media_type=media_type(head),
        etag=f'"{item.sha256[:16]}-{stat.st_mtime_ns:x}-{stat.st_size:x}"',
    )


def _fetched(_: Gallery, photo: _StoredPhoto) -> bytes:
    try:
        return read_photo(photo.place)
    except OSError as error:
        raise _missing(photo.item_id, error) from error


def _thumbnail(gallery: Gallery, item_id: int, size: int) -> bytes:
    [item] = gallery.get([item_id])
    try:
        stamp_of(item.image)
    except OSError as error:
        raise _missing(item_id, error) from error
    return thumbnails.get(item.image, item.sha256, size)


def _missing(item_id: int, error: OSError) -> ImageError:
    reason = error.strerror or "no such object"
    return ImageError(
        "image_missing",
        f"the photo of item {item_id} cannot be read ({reason}): the file was moved or "
        "deleted after it was indexed. Put it back, or remove the item.",
    )


def _headers(etag: str) -> dict[str, str]:
    # An id is never given to another photo, but a gallery made anew counts from 1 again: so a
    # cache asks each time, and is answered by the tag alone.
    return {"ETag": etag, "Cache-Control": "private, no-cache"}


def _known(request: Request, etag: str) -> bool:
    """Whether the caller has this version already."""
    given = request.headers.get("If-None-Match", "").split(",")
    tags = {tag.strip().removeprefix("W/") for tag in given}
    return etag in tags or "*" in tags
