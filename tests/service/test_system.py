from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index import Gallery, Item, Model, ModelCard
from index.errors import GalleryError
from service.settings import Settings
from tests.service.problem import check_problem
from tests.service.running import Server, in_process


def test_model_is_the_card_and_the_size_of_the_gallery(
    client: httpx.Client, model_folder: Path, items: list[Item]
) -> None:
    answer = client.get("/model").json()
    assert answer.pop("items") == len(items)
    card = ModelCard.read(model_folder / "model.json")
    assert answer.pop("mapped") is False
    assert answer.pop("regions") is (card.regions is not None)
    assert ModelCard(**answer) == dataclasses.replace(card, regions=None)


def test_a_running_service_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/health/ready").json() == {"status": "ok"}


def test_the_service_runs_without_torch_and_training(server: Server) -> None:
    imports = [
        line.rsplit("|", 1)[1].strip()
        for line in server.output.read_text().splitlines()
        if line.startswith("import time:")
    ]
    assert "service.app" in imports  # so the list is one
    packages = {name.split(".")[0] for name in imports}
    assert packages.isdisjoint({"torch", "torchvision", "training"})


def test_it_is_alive_but_not_ready_until_the_gallery_is_open(
    gallery_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open = threading.Event()
    really_open = Gallery.open

    def open_late(path: Path, **options: Any) -> Gallery:
        assert may_open.wait(30)
        return really_open(path, **options)

    monkeypatch.setattr(Gallery, "open", open_late)

    async def run() -> None:
        async with in_process(Settings(gallery=gallery_folder)) as service:
            try:
                assert (await service.client.get("/health/live")).status_code == 200
                for path in ("/health/ready", "/items", "/model", "/evaluate"):
                    response = await service.client.get(path)
                    check_problem(response, 503, "not_ready")
                    assert int(response.headers["Retry-After"]) >= 1
            finally:
                may_open.set()
            await asyncio.wrap_future(service.engine.opened)
            assert (await service.client.get("/health/ready")).status_code == 200

    asyncio.run(run())


def test_a_gallery_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    async def run() -> None:
        async with in_process(Settings(gallery=tmp_path / "nowhere")) as service:
            with pytest.raises(GalleryError):
                await asyncio.wrap_future(service.engine.opened)
            response = await service.client.get("/health/ready")
            problem = check_problem(response, 503, "gallery_invalid")
            assert "nowhere is not a gallery" in problem["detail"]
            assert (await service.client.get("/health/live")).status_code == 200

    asyncio.run(run())


def test_full_workers_refuse_more_and_leave_health_and_items_alone(
    gallery_folder: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    really_embed = Model.embed

    def embed_late(model: Model, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert may_go_on.wait(30)
        return really_embed(model, pixels)

    async def run() -> None:
        async with in_process(
            Settings(gallery=gallery_folder, threads=2, queue_limit=1)
        ) as service:
            await asyncio.wrap_future(service.engine.opened)
            monkeypatch.setattr(Model, "embed", embed_late)

            async def search() -> httpx.Response:
                photo = {"file": items[0].image.read_bytes()}
                return await service.client.post("/search", files=photo)

            try:
                # Two run, one waits, one is refused: it alone is answered.
                tasks = [asyncio.create_task(search()) for _ in range(4)]
                [refused], taken = await asyncio.wait(
                    tasks, return_when=asyncio.FIRST_COMPLETED, timeout=30
                )
                check_problem(refused.result(), 503, "overloaded")
                assert int(refused.result().headers["Retry-After"]) >= 1
                for path in ("/health/live", "/health/ready", "/items", "/items/1/image"):
                    assert (await service.client.get(path)).status_code == 200
                assert len(taken) == 3 and not any(task.done() for task in taken)
            finally:
                may_go_on.set()
            for task in taken:
                assert (await task).json()["results"][0]["id"] == items[0].id
            assert (await search()).status_code == 200

    asyncio.run(run())
