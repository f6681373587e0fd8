"""``/explain``: where the score of two photos comes from, over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index import Gallery, Item, Model, build, list_photos
from service.client import Client, ServiceError
from tests.service.running import Server, serving
from tests.tiny_model import make_model_folder


def explain(client: httpx.Client, photo: bytes | None = None, **params: Any) -> dict[str, Any]:
    files = None if photo is None else {"file": photo}
    response = client.post("/explain", params=params, files=files)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def total(grid: list[list[float]]) -> float:
    return float(np.sum(grid))


@pytest.fixture(scope="module")
def without_regions(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service whose model was exported before models could show regions."""
    folder = tmp_path_factory.mktemp("plain")
    model = make_model_folder(folder / "model", regions=False)
    with Gallery.create(folder / "cars", model) as gallery:
        build(gallery, list_photos(photos))
    with serving(folder / "cars", folder) as server:
        yield server


def test_contributions_of_query_and_result_add_up_to_the_score_of_the_search(
    client: httpx.Client, items: list[Item]
) -> None:
    photo = items[3].image.read_bytes()
    hits = client.post("/search", params={"k": 4}, files={"file": photo}).json()["results"]
    for hit in hits:
        answer = explain(client, photo, result=hit["id"])
        assert answer["score"] == pytest.approx(hit["score"], abs=1e-4)
        for side in ("query", "result"):
            assert total(answer[side]["contributions"]) == pytest.approx(hit["score"], abs=1e-4)


def test_an_item_explains_as_its_photo_does(client: httpx.Client, items: list[Item]) -> None:
    by_item = explain(client, item=items[0].id, result=items[5].id)
    by_photo = explain(client, items[0].image.read_bytes(), result=items[5].id)
    for answer in (by_item, by_photo):
        del answer["took_ms"]
    assert by_item == by_photo


def test_the_score_is_the_cosine_of_the_models_own_vectors(
    client: httpx.Client, items: list[Item], vectors: NDArray[np.float32]
) -> None:
    for i, j in ((0, 1), (2, 20), (7, 9)):
        answer = explain(client, item=items[i].id, result=items[j].id)
        assert answer["score"] == pytest.approx(float(vectors[i] @ vectors[j]), abs=1e-4)


def test_heat_is_painted_from_nothing_to_one_over_the_part_that_the_model_sees(
    client: httpx.Client, items: list[Item]
) -> None:
    answer = explain(client, item=items[0].id, result=items[1].id)
    for side in ("query", "result"):
        heat = np.array(answer[side]["heat"])
        contributions = np.array(answer[side]["contributions"])
        assert heat.shape == contributions.shape == (4, 4)
        assert heat.min() >= 0
        assert heat.max() == 1
        assert heat.argmax() == contributions.argmax()
        assert answer[side]["area"] == {"left": 0, "top": 0, "right": 1, "bottom": 1}


def test_pairs_name_cells_of_both_grids(client: httpx.Client, items: list[Item]) -> None:
    pairs = explain(client, item=items[0].id, result=items[1].id)["pairs"]
    assert 1 <= len(pairs) <= 5
    for pair in pairs:
        assert all(0 <= at < 4 for at in (*pair["query"], *pair["result"]))
        assert pair["contribution"] > 0


@pytest.mark.parametrize("both", [False, True])
def test_the_query_is_needed_once(client: httpx.Client, items: list[Item], both: bool) -> None:
    params = {"result": 1} | ({"item": 2} if both else {})
    files = {"file": items[0].image.read_bytes()} if both else None
    answer = client.post("/explain", params=params, files=files)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_argument"
    assert ("both" if both else "neither") in answer.json()["detail"]


def test_unknown_items_and_broken_photos_are_named(client: httpx.Client, items: list[Item]) -> None:
    gone = client.post("/explain", params={"item": 1, "result": 99_999})
    assert (gone.status_code, gone.json()["code"]) == (404, "item_not_found")
    photo = items[0].image.read_bytes()[:300]
    broken = client.post("/explain", params={"result": 1}, files={"file": photo})
    assert (broken.status_code, broken.json()["code"]) == (422, "image_truncated")


def test_an_item_whose_file_is_gone_is_named(
    model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    with Gallery.create(tmp_path / "cars", model_folder) as gallery:
        build(gallery, list_photos(tmp_path / "photos"))
        [item] = gallery.items(limit=1)
    item.image.unlink()
    with serving(tmp_path / "cars", tmp_path) as server:
        answer = server.client.post("/explain", params={"item": item.id, "result": item.id + 1})
    assert (answer.status_code, answer.json()["code"]) == (410, "image_missing")


def test_a_model_that_cannot_says_so_and_the_card_tells_beforehand(
    client: httpx.Client, without_regions: Server
) -> None:
    plain = without_regions.client
    answer = plain.post("/explain", params={"item": 1, "result": 2})
    assert (answer.status_code, answer.json()["code"]) == (409, "regions_missing")
    assert plain.get("/model").json()["regions"] is False
    assert client.get("/model").json()["regions"] is True


def test_the_client_explains(server: Server, without_regions: Server, items: list[Item]) -> None:
    with Client(str(server.client.base_url)) as client:
        by_item = client.explain(items[0].id, items[1].id)
        by_path = client.explain(items[0].image, items[1].id)
    assert by_item.query == by_path.query
    assert by_item.score == pytest.approx(total(by_item.query.contributions), abs=1e-4)
    with (
        Client(str(without_regions.client.base_url)) as plain,
        pytest.raises(ServiceError, match="cannot show similar regions"),
    ):
        plain.explain(1, 2)


def test_answers_are_those_of_the_model_without_the_service(
    client: httpx.Client, items: list[Item], model_folder: Path
) -> None:
    reader = Model.load(model_folder).regions()
    assert reader is not None
    model = Model.load(model_folder)
    left, right = reader.shares(np.stack([model.prepare(i.image) for i in (items[0], items[1])]))
    unit = right.sum(axis=(0, 1))
    unit /= np.linalg.norm(unit)
    expected = left @ unit / np.linalg.norm(left.sum(axis=(0, 1)))
    answer = explain(client, item=items[0].id, result=items[1].id)
    np.testing.assert_allclose(answer["query"]["contributions"], expected, rtol=0, atol=2e-6)
