"""Each endpoint as a ``Call``: what to send, and how to read the answer. Sends nothing itself.

The two clients differ only in how they wait; what they say to the service is decided here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from index.errors import InvalidArgumentError
from index.photos import AttributeValue
from service.schemas import (
    BatchResponse,
    EvaluationRequest,
    EvaluationResponse,
    ExplainResponse,
    FieldsResponse,
    Health,
    ItemChange,
    ItemPage,
    ItemResponse,
    Job,
    JobList,
    MapResponse,
    ModelResponse,
    SearchResponse,
)
from service.schemas.search import Include

__all__ = ["Call", "Photo", "SearchOptions"]

T = TypeVar("T")
Answer = TypeVar("Answer", bound=BaseModel)

#: An encoded photo, or the path of its file.
Photo = bytes | str | Path

Where = Mapping[str, Any]
Attributes = Mapping[str, AttributeValue]


class SearchOptions(TypedDict, total=False):
    """How results are chosen; the same for every kind of query."""

    k: int  #: how many items, 10 unless told
    where: Where | None  #: only items that this filter matches
    threshold: float | None  #: leave out scores below this
    group_by: str | None  #: only the best of each value of this field
    offset: int  #: leave out the first so many
    include: Sequence[Include] | None  #: what each result carries


@dataclass(frozen=True)
class Upload:
    """A file of a form."""

    field: str
    source: Photo


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request, which can be sent again, and the reading of its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] = field(default_factory=dict)
    uploads: Sequence[Upload] = ()
    #: Whether doing it twice does no harm.
    repeatable: bool = True

    @contextmanager
    def arguments(self) -> Iterator[dict[str, Any]]:
        """The arguments of ``httpx.Client.request``; files are open meanwhile.

        Raises:
            InvalidArgumentError: a file cannot be read.
        """
        given: dict[str, Any] = {"method": self.method, "url": self.path, "params": self.params}
        with ExitStack() as files:
            if self.json is not None:
                given["json"] = self.json
            if self.uploads:
                given["files"] = [_part(upload, files) for upload in self.uploads]
                given["data"] = self.form
            yield given


def _part(upload: Upload, files: ExitStack) -> tuple[str, tuple[str, bytes | BinaryIO]]:
    if isinstance(upload.source, bytes):
        return upload.field, ("upload", upload.source)
    path = Path(upload.source)
    try:
        return upload.field, (path.name, files.enter_context(path.open("rb")))
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror or error}.") from error


def _as(model: type[Answer]) -> Callable[[httpx.Response], Answer]:
    def read(response: httpx.Response) -> Answer:
        return model.model_validate_json(response.content)

    return read


def _nothing(response: httpx.Response) -> None:
    del response


def _content(response: httpx.Response) -> bytes:
    return response.content


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None; what is left out is the service's default."""
    return {name: value for name, value in values.items() if value is not None}


def _json(name: str, value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{name} cannot be sent as JSON ({error}): use strings, numbers, booleans, None, lists "
            "and dicts."
        ) from error


def _options(options: SearchOptions) -> dict[str, Any]:
    return _given({**options, "where": _json("where", options.get("where"))})


# Searching


def search(photo: Photo, options: SearchOptions) -> Call[SearchResponse]:
    """``POST /search``."""
    return Call(
        method="POST",
        path="search",
        params=_options(options),
        uploads=[Upload("file", photo)],
        read=_as(SearchResponse),
    )


def search_batch(photos: Sequence[Photo], options: SearchOptions) -> Call[BatchResponse]:
    """``POST /search/batch``."""
    if not photos:
        raise InvalidArgumentError("a batch search needs at least one photo.")
    return Call(
        method="POST",
        path="search/batch",
        params=_options(options),
        uploads=[Upload("files", photo) for photo in photos],
        read=_as(BatchResponse),
    )


def search_vector(vector: Sequence[float], options: SearchOptions) -> Call[SearchResponse]:
    """``POST /search/vector``."""
    return Call(
        method="POST",
        path="search/vector",
        params=_options(options),
        json={"vector": [float(value) for value in vector]},
        read=_as(SearchResponse),
    )


def search_url(url: str, options: SearchOptions) -> Call[SearchResponse]:
    """``POST /search/url``."""
    return Call(
        method="POST",
        path="search/url",
        params=_options(options),
        json={"url": url},
        read=_as(SearchResponse),
    )


def similar_items(item_id: int, options: SearchOptions) -> Call[SearchResponse]:
    """``GET /items/{id}/similar``."""
    return Call(
        method="GET",
        path=f"items/{item_id}/similar",
        params=_options(options),
        read=_as(SearchResponse),
    )


def explain(query: Photo | int, result: int) -> Call[ExplainResponse]:
    """``POST /explain``."""
    if isinstance(query, int):
        params, uploads = {"result": result, "item": query}, []
    else:
        params, uploads = {"result": result}, [Upload("file", query)]
    return Call(
        method="POST",
        path="explain",
        params=params,
        uploads=uploads,
        read=_as(ExplainResponse),
    )


# Items


def list_items(*, where: Where | None, offset: int, limit: int) -> Call[ItemPage]:
    """``GET /items``."""
    return Call(
        method="GET",
        path="items",
        params=_given({"where": _json("where", where), "offset": offset, "limit": limit}),
        read=_as(ItemPage),
    )


def get_item(item_id: int) -> Call[ItemResponse]:
    """``GET /items/{id}``."""
    return Call(method="GET", path=f"items/{item_id}", read=_as(ItemResponse))


def get_item_by_sku(sku: str) -> Call[ItemResponse]:
    """``GET /items/by-sku/{sku}``."""
    return Call(method="GET", path=_by_sku(sku), read=_as(ItemResponse))


def item_image(item_id: int) -> Call[bytes]:
    """``GET /items/{id}/image``."""
    return Call(method="GET", path=f"items/{item_id}/image", read=_content)


def item_thumbnail(item_id: int, *, size: int | None) -> Call[bytes]:
    """``GET /items/{id}/thumbnail``."""
    return Call(
        method="GET",
        path=f"items/{item_id}/thumbnail",
        params=_given({"size": size}),
        read=_content,
    )


def list_fields(*, where: Where | None, values: int | None) -> Call[FieldsResponse]:
    """``GET /fields``."""
    return Call(
        method="GET",
        path="fields",
        params=_given({"where": _json("where", where), "values": values}),
        read=_as(FieldsResponse),
    )


def add_item(
    photo: Photo, *, label: str | None, attributes: Attributes | None, sku: str | None
) -> Call[ItemResponse]:
    """``POST /items``."""
    return Call(
        method="POST",
        path="items",
        form=_given({"label": label, "attributes": _json("attributes", attributes), "sku": sku}),
        uploads=[Upload("file", photo)],
        read=_as(ItemResponse),
        repeatable=False,
    )


def put_item_by_sku(
    sku: str, photo: Photo, *, label: str | None, attributes: Attributes | None
) -> Call[ItemResponse]:
    """``PUT /items/by-sku/{sku}``."""
    return Call(
        method="PUT",
        path=_by_sku(sku),
        form=_given({"label": label, "attributes": _json("attributes", attributes)}),
        uploads=[Upload("file", photo)],
        read=_as(ItemResponse),
    )


def change_item(item_id: int, change: ItemChange) -> Call[ItemResponse]:
    """``PATCH /items/{id}``."""
    return Call(
        method="PATCH",
        path=f"items/{item_id}",
        json=change.model_dump(mode="json", exclude_unset=True),
        read=_as(ItemResponse),
    )


def remove_item(item_id: int) -> Call[None]:
    """``DELETE /items/{id}``."""
    return Call(method="DELETE", path=f"items/{item_id}", read=_nothing, repeatable=False)


def add_items(archive: Path | str) -> Call[Job]:
    """``POST /items/bulk``."""
    return Call(
        method="POST", path="items/bulk", uploads=[Upload("file", Path(archive))], read=_as(Job)
    )


# Evaluation and jobs


def evaluate(wanted: EvaluationRequest) -> Call[EvaluationResponse | Job]:
    """``POST /evaluate``."""
    return Call(
        method="POST",
        path="evaluate",
        json=wanted.model_dump(mode="json", exclude_unset=True),
        read=_evaluation,
    )


def evaluate_upload(
    archive: Path | str, wanted: EvaluationRequest
) -> Call[EvaluationResponse | Job]:
    """``POST /evaluate/upload``."""
    if wanted.query_where is not None:
        raise InvalidArgumentError(
            "query_where chooses among the gallery's items, and here the queries are the photos of "
            "the zip: leave it out."
        )
    given = wanted.model_dump(mode="json", exclude_unset=True)
    return Call(
        method="POST",
        path="evaluate/upload",
        params=_given({**given, "gallery_where": _json("gallery_where", wanted.gallery_where)}),
        uploads=[Upload("file", Path(archive))],
        read=_evaluation,
    )


def draw_map(*, anew: bool) -> Call[Job]:
    """``POST /map``."""
    return Call(method="POST", path="map", params=_given({"anew": anew or None}), read=_as(Job))


def get_map(colour: str | None, where: Where | None) -> Call[MapResponse]:
    """``GET /map``."""
    params = _given({"colour": colour, "where": _json("where", where)})
    return Call(method="GET", path="map", params=params, read=_as(MapResponse))


def list_jobs() -> Call[JobList]:
    """``GET /jobs``."""
    return Call(method="GET", path="jobs", read=_as(JobList))


def get_job(job_id: str) -> Call[Job]:
    """``GET /jobs/{id}``."""
    return Call(method="GET", path=f"jobs/{quote(job_id, safe='')}", read=_as(Job))


def cancel_job(job_id: str) -> Call[Job]:
    """``DELETE /jobs/{id}``."""
    return Call(method="DELETE", path=f"jobs/{quote(job_id, safe='')}", read=_as(Job))


def _evaluation(response: httpx.Response) -> EvaluationResponse | Job:
    if response.status_code == HTTPStatus.ACCEPTED:
        return Job.model_validate_json(response.content)
    return EvaluationResponse.model_validate_json(response.content)


# The service itself


def model() -> Call[ModelResponse]:
    """``GET /model``."""
    return Call(method="GET", path="model", read=_as(ModelResponse))


def ready() -> Call[Health]:
    """``GET /health/ready``."""
    return Call(method="GET", path="health/ready", read=_as(Health))


def _by_sku(sku: str) -> str:
    return f"items/by-sku/{quote(sku, safe='')}"
