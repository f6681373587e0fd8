"""``create_app``: settings → the ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from index.errors import DsclError
from service.engine import Engine
from service.errors import MEDIA_TYPE, install_error_handlers
from service.generation import Generation
from service.middleware import install_middleware
from service.routes import (
    admin,
    evaluate,
    explain,
    fields,
    items,
    jobs,
    map,
    metrics,
    page,
    photos,
    search,
    system,
)
from service.settings import Settings
from service.tracing import telemetry
from service.url_fetch import UrlFetcher

__all__ = ["create_app"]

DESCRIPTION = """
Find the items of a gallery nearest to a photo, and measure how well that works.

A **score** is the cosine similarity of two embeddings, in [−1, 1]; higher is nearer. Every error is
a [problem](https://www.rfc-editor.org/rfc/rfc9457) with a stable `code`.
"""

#: Seconds between two looks for a gallery that another process has begun to serve.
FOLLOW_INTERVAL_S = 0.2

logger = logging.getLogger(__name__)


class Application(FastAPI):
    """FastAPI whose OpenAPI document also names what stands around the routes."""

    #: Whether a key may be left out: there are none that it could be.
    key_is_optional = False

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        done = self.openapi_schema is not None
        document = super().openapi()
        if done:
            return document
        for operations in document["paths"].values():
            for operation in operations.values():
                responses = operation["responses"]
                for status in _refusals(operation):
                    responses.setdefault(status, REFUSAL)
                if self.key_is_optional and "security" in operation:
                    operation["security"] = [{}, *operation["security"]]
                for status, response in responses.items():
                    if status >= "400" and "content" in response:
                        response["content"] = REFUSAL["content"]
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        _mark_files(document["components"]["schemas"])
        return document


#: How protocol and middleware answer what they refuse.
REFUSAL = {
    "description": "Refused before it was looked at",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def _mark_files(schema: Any) -> None:
    """Call what is uploaded "binary", too, as before OpenAPI 3.1: generators of clients know that.

    By ``contentMediaType`` alone, they take a file for text.
    """
    if isinstance(schema, dict):
        if "contentMediaType" in schema:
            schema["format"] = "binary"
        schema = schema.values()
    elif not isinstance(schema, list):
        return
    for part in schema:
        _mark_files(part)


def _refusals(operation: dict[str, Any]) -> list[str]:
    """Statuses by which the protocol and the middleware can answer an operation."""
    statuses = ["400", "431"]
    if "requestBody" in operation:
        statuses += ["408", "413"]
    if "security" in operation:
        statuses += ["401", "403", "429"]
    return statuses


def create_app(settings: Settings) -> FastAPI:
    """The service for one gallery.

    The gallery is opened after the application has started to answer: until then, and if it cannot
    be opened, every route that needs it and ``/health/ready`` answer 503 with the reason.
    ``app.state.engine.opened`` tells how that went.

    Raises:
        KeysInvalidError: access keys that cannot be used.
        TracingMissingError: tracing without the extra ``otel``.
    """
    generation = None if settings.state_folder is None else Generation(settings.state_folder)
    engine = Engine(settings, announce=None if generation is None else generation.publish)
    fetcher = None
    if settings.url_search:
        fetcher = UrlFetcher(timeout_s=settings.url_timeout_s, max_bytes=settings.url_max_bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(engine.open())
        following = None
        if generation is not None:
            following = asyncio.create_task(_follow(engine, generation))
        yield
        if following is not None:
            following.cancel()
        await opening
        engine.close()
        if fetcher is not None:
            fetcher.close()

    app = Application(
        title="Car image retrieval",
        version=version("dscl-retrieval"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        telemetry=telemetry(settings.trace),
    )
    app.key_is_optional = not settings.has_keys
    app.state.engine = engine
    app.state.url_fetcher = fetcher
    install_middleware(app, settings)
    install_error_handlers(app)
    app.include_router(search.photo_router)
    # /items/by-sku/… must be met before /items/{item_id}/similar, which is a search.
    for module in (
        items,
        photos,
        search,
        explain,
        fields,
        jobs,
        evaluate,
        map,
        system,
        metrics,
        admin,
        page,
    ):
        app.include_router(module.router)
    app.mount("/web", page.PageFiles())
    return app


async def _follow(engine: Engine, generation: Generation) -> None:
    """Serve what another process of this service has begun to serve."""
    while True:
        await asyncio.sleep(FOLLOW_INTERVAL_S)
        if (gallery := generation.news()) is not None:
            try:
                await engine.reload(gallery, announce=False)
            except DsclError as error:
                logger.error("this process goes on with the gallery it had: %s", error)
