"""A client that a program makes from the interface's description works against the service."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from index import Gallery, Item, build, list_photos
from tests.photos import encoded, picture
from tests.service.running import DEADLINE_S, Server, serving
from tests.service.zips import photo_bytes, zip_of

PACKAGE = "dscl_generated_client"


@pytest.fixture(scope="module")
def server(
    model_folder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("generated")
    with Gallery.create(folder / "gallery", model_folder) as gallery:
        build(gallery, list_photos(photos))
    with serving(folder / "gallery", folder) as server:
        yield server


@pytest.fixture(scope="module")
def generated(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the client, which can be imported meanwhile."""
    folder = tmp_path_factory.mktemp("client")
    description = folder / "openapi.json"
    description.write_text(json.dumps(server.client.get("/openapi.json").json()))
    command = shutil.which("openapi-python-client", path=str(Path(sys.executable).parent))
    assert command is not None, "the extra dev brings it"
    made = subprocess.run(
        [
            *(command, "generate", "--path", description),
            *("--output-path", folder / PACKAGE, "--meta", "none"),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield folder / PACKAGE
    finally:
        sys.path.remove(str(folder))


def part(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


@pytest.fixture
def client(server: Server, generated: Path) -> Any:
    return part("client").AuthenticatedClient(base_url=str(server.client.base_url), token="none")


def upload(photo: bytes) -> Any:
    return part("types").File(
        payload=io.BytesIO(photo), file_name="photo.png", mime_type="image/png"
    )


def test_it_finds_an_item_by_its_photo(client: Any, items: list[Item]) -> None:
    body = part("models").BodySearch(file=upload(items[3].image.read_bytes()))
    found = part("api.search.search").sync(client=client, body=body, k=2)
    assert len(found.results) == 2
    assert (found.results[0].id, found.results[0].label) == (items[3].id, items[3].label)
    assert found.results[0].score == pytest.approx(1, abs=1e-6)


def test_it_searches_by_several_photos(client: Any, items: list[Item]) -> None:
    body = part("models").BodySearchBatch(
        files=[upload(item.image.read_bytes()) for item in items[:2]]
    )
    found = part("api.search.search_batch").sync(client=client, body=body, k=1)
    assert [answer.results[0].id for answer in found.answers] == [item.id for item in items[:2]]


def test_it_adds_changes_and_removes_an_item(client: Any) -> None:
    models = part("models")
    body = models.BodyAddItem(file=upload(encoded(picture(77), "PNG")), label="opel")
    added = part("api.items.add_item").sync(client=client, body=body)
    assert added.label == "opel"
    change = models.ItemChange(label="fiat")
    changed = part("api.items.change_item").sync(added.id, client=client, body=change)
    assert (changed.id, changed.label) == (added.id, "fiat")
    gone = part("api.items.remove_item").sync_detailed(added.id, client=client)
    assert gone.status_code == 204


def test_it_adds_many_by_a_job(client: Any) -> None:
    archive = zip_of({f"seat/{i}.jpg": photo_bytes(500 + i) for i in range(3)})
    body = part("models").BodyAddItems(file=upload(archive))
    job = part("api.items.add_items").sync(client=client, body=body)
    assert part("api.jobs.get_job").sync(job.id, client=client).kind == job.kind


def test_it_evaluates(client: Any) -> None:
    evaluated = part("api.evaluation.evaluate_default").sync(client=client)
    assert evaluated.to_dict()["recall"]["1"] > 0


def test_a_problem_is_one_of_its_answers(client: Any) -> None:
    body = part("models").BodySearch(file=upload(b"no photo"))
    problem = part("api.search.search").sync(client=client, body=body)
    assert type(problem).__name__ == "Problem"
    assert problem.status >= 400 and problem.code and problem.detail
