from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from index import Gallery, Item, build, list_photos
from tests.service.problem import check_problem
from tests.service.running import serving


def test_pages_put_together_are_the_gallery(client: httpx.Client, items: list[Item]) -> None:
    seen = []
    for offset in range(0, len(items) + 7, 7):
        page = client.get("/items", params={"offset": offset, "limit": 7}).json()
        assert (page["total"], page["offset"]) == (len(items), offset)
        seen += page["items"]
    assert [(item["id"], item["label"]) for item in seen] == [
        (item.id, item.label) for item in items
    ]


def test_an_item_is_what_the_list_says(client: httpx.Client) -> None:
    for item in client.get("/items").json()["items"]:
        assert client.get(f"/items/{item['id']}").json() == item


@pytest.mark.parametrize("path", ["/items/999999", "/items/999999/image", f"/items/{2**63 - 1}"])
def test_an_unknown_item_is_not_found(client: httpx.Client, path: str) -> None:
    problem = check_problem(client.get(path), 404, "item_not_found")
    assert path.split("/")[2] in problem["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/items/0",
        f"/items/{2**63}",
        "/items?limit=0",
        "/items?limit=501",
        "/items?offset=-1",
        f"/items?offset={2**63}",
    ],
)
def test_numbers_out_of_range_are_refused(client: httpx.Client, path: str) -> None:
    problem = check_problem(client.get(path), 422, "invalid_argument")
    [error] = problem["errors"]
    assert error["field"] in ("path.item_id", "query.limit", "query.offset")


@pytest.mark.parametrize("path", ["-1", "one", "x/image", "9" * 5000, "..%2Fitems", "%00", "1e3"])
def test_what_is_no_number_is_no_item(client: httpx.Client, path: str) -> None:
    check_problem(client.get(f"/items/{path}"), 404, "not_found")


def test_an_image_is_the_original_file(client: httpx.Client, items: list[Item]) -> None:
    for item in items[:5]:
        response = client.get(f"/items/{item.id}/image")
        assert response.content == item.image.read_bytes()
        assert response.headers["Content-Type"] == "image/jpeg"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_an_image_known_to_the_client_is_not_sent_again(
    client: httpx.Client, items: list[Item]
) -> None:
    url = f"/items/{items[0].id}/image"
    tag = client.get(url).headers["ETag"]
    again = client.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(f"/items/{items[1].id}/image", headers={"If-None-Match": tag})
    assert other.status_code == 200


@pytest.fixture(scope="module")
def mixed_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo a format, each with the ending of another."""
    folder = tmp_path_factory.mktemp("mixed")
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8))
    for form in ("png", "webp", "avif", "gif", "bmp", "tiff"):
        image.save(folder / f"{form}.jpg", form)
    return folder


def test_the_content_type_is_the_contents_and_a_lost_file_is_gone(
    model_folder: Path, mixed_photos: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(mixed_photos, photos)
    with Gallery.create(tmp_path / "gallery", model_folder) as gallery:
        build(gallery, list_photos(photos))
        items = gallery.items()
    assert len(items) == 6
    with serving(tmp_path / "gallery", tmp_path) as server:
        for item in items:
            response = server.client.get(f"/items/{item.id}/image")
            assert response.headers["Content-Type"] == f"image/{item.image.stem}"

            item.image.unlink()
            response = server.client.get(f"/items/{item.id}/image")
            problem = check_problem(response, 410, "image_missing")
            assert f"item {item.id}" in problem["detail"]
            assert str(photos) not in problem["detail"]
