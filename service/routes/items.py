"""``/items``: what the gallery holds, and changes to it. Their photos are in ``photos``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, File, Form, Query, Response, UploadFile
from fastapi import Path as PathParameter
from pydantic import Json

from index import Gallery, Item
from index.attributes import new_types
from index.items import KEEP
from service import changing
from service.archives import Archive, ArchiveLimits, detached
from service.bulk import add_archive
from service.changing import Description
from service.dependencies import EngineDep
from service.engine import Engine
from service.errors import problems
from service.jobs import Progress
from service.routes.item_paths import MAX_INTEGER, ItemId, image_url, thumbnail_url
from service.schemas import ItemChange, ItemPage, ItemResponse, Job
from service.schemas.items import Attributes
from service.security import require
from service.where import WhereDep

__all__ = ["ItemId", "item_response", "router"]

router = APIRouter(prefix="/items", tags=["items"])

READ = [Depends(require("read"))]
WRITE = [Depends(require("write"))]

Sku = Annotated[str, PathParameter(min_length=1, description="Your own name for the item.")]
PhotoFile = Annotated[
    UploadFile, File(description="One still photo: JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF.")
]
LabelField = Annotated[str | None, Form(description="Its class.", examples=["audi-a4-2011"])]
SkuField = Annotated[
    str | None, Form(description="Your own name for it, unique.", examples=["A4-2011-0042"])
]
AttributesField = Annotated[
    Json[Attributes] | None,
    Form(
        description="A JSON object of strings, numbers, booleans and nulls.",
        examples=['{"year": 2011, "colour": "red"}'],
    ),
]


def item_response(item: Item) -> ItemResponse:
    """An item as the interface shows it."""
    return ItemResponse.of(item, image_url=image_url(item.id), thumbnail_url=thumbnail_url(item.id))


@router.get("", operation_id="list_items", dependencies=READ, responses=problems(422, 503))
async def list_items(
    engine: EngineDep,
    where: WhereDep,
    offset: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Items to skip.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500, description="Items to return.")] = 50,
) -> ItemPage:
    """List the gallery, or the items that a filter matches, in the order of ids."""
    total = await engine.read(Gallery.count, where)
    items = await engine.read(Gallery.items, offset=offset, limit=limit, where=where)
    return ItemPage(total=total, offset=offset, items=[item_response(item) for item in items])


@router.post(
    "",
    status_code=201,
    operation_id="add_item",
    dependencies=WRITE,
    responses=problems(409, 413, 415, 422, 503),
)
async def add_item(
    response: Response,
    engine: EngineDep,
    file: PhotoFile,
    label: LabelField = None,
    attributes: AttributesField = None,
    sku: SkuField = None,
) -> ItemResponse:
    """Add a photo. Searches find it as soon as this has answered, and it survives a crash.

    With a `sku` a repeated request is refused (`duplicate_external_id`, 409), never doubled.

    `curl -F file=@photo.jpg -F label=audi-a4 -F 'attributes={"year": 2011}' …/items`
    """
    photo = await engine.photo(changing.embed, await file.read())
    item = await engine.write(changing.add, photo, Description(label, attributes or {}, sku))
    return _created(response, item)


@router.post(
    "/bulk",
    status_code=202,
    operation_id="add_items",
    dependencies=WRITE,
    responses=problems(409, 413, 422, 503),
)
async def add_items(
    response: Response,
    engine: EngineDep,
    file: Annotated[UploadFile, File(description="A zip of photos.")],
) -> Job:
    """Add the photos of a zip, as a job.

    Their folders are their labels (`audi-a4/1.jpg` → `audi-a4`), unless there is an `items.csv` at
    the top: a header with `path`, optionally `label` and `sku`, and attributes; then only what it
    lists is added. Photos that cannot be read are skipped and listed in the job's result.

    A job that was stopped goes on when the same zip is sent again: what is there already is not
    added twice.

    `cd photos && zip -qr ../photos.zip . && curl -F file=@../photos.zip …/items/bulk`
    """
    job = await engine.write(_start_bulk, engine, detached(file))
    response.headers["Location"] = f"/jobs/{job.id}"
    return job


@router.get(
    "/by-sku/{sku:path}",
    operation_id="get_item_by_sku",
    dependencies=READ,
    responses=problems(404, 422, 503),
)
async def get_item_by_sku(engine: EngineDep, sku: Sku) -> ItemResponse:
    """The item with a `sku`."""
    [item] = await engine.read(Gallery.get_external, [sku])
    return item_response(item)


@router.put(
    "/by-sku/{sku:path}",
    operation_id="put_item_by_sku",
    dependencies=WRITE,
    responses={
        201: {"model": ItemResponse, "description": "There was no item with this `sku`."},
        **problems(409, 413, 415, 422, 503),
    },
)
async def put_item_by_sku(
    response: Response,
    engine: EngineDep,
    sku: Sku,
    file: PhotoFile,
    label: LabelField = None,
    attributes: AttributesField = None,
) -> ItemResponse:
    """Make the item with a `sku` be this photo with this label and these attributes.

    May be repeated. The same photo keeps the item's id; another photo gets a new one.
    """
    photo = await engine.photo(changing.embed, await file.read())
    described = Description(label, attributes or {}, sku)
    item, created = await engine.write(changing.upsert, sku, photo, described)
    if not created:
        return item_response(item)
    response.status_code = 201
    return _created(response, item)


@router.get(
    "/{item_id:item}", operation_id="get_item", dependencies=READ, responses=problems(404, 422, 503)
)
async def get_item(engine: EngineDep, item_id: ItemId) -> ItemResponse:
    """One item."""
    [item] = await engine.read(Gallery.get, [item_id])
    return item_response(item)


@router.patch(
    "/{item_id:item}",
    operation_id="change_item",
    dependencies=WRITE,
    responses=problems(404, 409, 422, 503),
)
async def change_item(engine: EngineDep, item_id: ItemId, wanted: ItemChange) -> ItemResponse:
    """Change what is known about an item. Its id and its photo stay."""
    given = wanted.model_fields_set
    item = await engine.write(
        changing.change,
        item_id,
        label=wanted.label if "label" in given else KEEP,
        attributes=wanted.attributes,
        external_id=wanted.sku if "sku" in given else KEEP,
    )
    return item_response(item)


@router.delete(
    "/{item_id:item}",
    status_code=204,
    operation_id="remove_item",
    dependencies=WRITE,
    responses=problems(404, 409, 422, 503),
)
async def remove_item(engine: EngineDep, item_id: ItemId) -> None:
    """Remove an item. Its photo goes too if it came by HTTP; indexed folders are left alone."""
    await engine.write(changing.remove, item_id)


def _created(response: Response, item: Item) -> ItemResponse:
    response.headers["Location"] = f"/items/{item.id}"
    return item_response(item)


def _start_bulk(gallery: Gallery, engine: Engine, file: BinaryIO) -> Job:
    archive = Archive(file, ArchiveLimits(file_bytes=engine.settings.max_upload_bytes))
    try:
        photos = archive.photos()
        # Before anything is added, rather than in the middle of it.
        new_types(gallery.fields(), ((photo.path, photo.attributes) for photo in photos))

        def work(progress: Progress, cancelled: Callable[[], bool]) -> dict[str, Any]:
            with archive, engine.changing() as current:
                return add_archive(
                    current,
                    archive,
                    photos,
                    workers=engine.settings.threads,
                    progress=progress,
                    cancelled=cancelled,
                )

        return engine.jobs.start("add_items", work)
    except BaseException:
        archive.close()
        raise
