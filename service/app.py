"""``create_app``: settings → the ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from service.engine import Engine
from service.errors import MEDIA_TYPE, install_error_handlers
from service.middleware import BodyLimit, RequestScope
from service.routes import evaluate, items, page, search, system
from service.settings import Settings

__all__ = ["create_app"]

DESCRIPTION = """
Find the items of a gallery nearest to a photo, and measure how well that works.

A **score** is the cosine similarity of two embeddings, in [−1, 1]; higher is nearer. Every error is
a [problem](https://www.rfc-editor.org/rfc/rfc9457) with a stable `code`.
"""


class Application(FastAPI):
    """FastAPI whose OpenAPI document names the media type of errors."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    content = response.get("content", {})
                    if status >= "400" and "application/json" in content:
                        content[MEDIA_TYPE] = content.pop("application/json")
        return document


def create_app(settings: Settings) -> FastAPI:
    """The service for one gallery.

    The gallery is opened after the application has started to answer: until then, and if it cannot
    be opened, every route that needs it and ``/health/ready`` answer 503 with the reason.
    ``app.state.engine.opened`` tells how that went.
    """
    engine = Engine(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(engine.open())
        yield
        await opening
        engine.close()

    app = Application(
        title="Car image retrieval",
        version=version("dscl-retrieval"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.engine = engine
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    app.add_middleware(RequestScope)  # added last: around everything else
    install_error_handlers(app)
    for module in (search, items, evaluate, system, page):
        app.include_router(module.router)
    app.mount("/web", page.PageFiles())
    return app
