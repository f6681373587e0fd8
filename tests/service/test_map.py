"""``/map``: drawn by a job, kept with the gallery, told with the values of a field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from index import Gallery, build, list_photos
from index.gallery_map import FILE
from service.client import Client
from tests.photos import encoded, picture
from tests.service.api import send, wait_for
from tests.service.problem import check_problem
from tests.service.running import Server, serving


@pytest.fixture
def folder(model_folder: Path, photos: Path, tmp_path: Path) -> Path:
    with Gallery.create(tmp_path / "gallery", model_folder) as gallery:
        build(gallery, list_photos(photos))
    return tmp_path / "gallery"


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(folder, tmp_path) as server:
        yield server


def drawn(api: httpx.Client, **query: Any) -> dict[str, Any]:
    started = api.post("/map", params=query)
    assert started.status_code == 202
    assert started.headers["Location"] == f"/jobs/{started.json()['id']}"
    return wait_for(api, started.json()["id"])


def all_items(api: httpx.Client) -> list[dict[str, Any]]:
    return list(api.get("/items", params={"limit": 100}).json()["items"])


def test_there_is_none_before_it_was_drawn(server: Server) -> None:
    check_problem(server.client.get("/map"), 404, "map_missing")
    assert server.client.get("/model").json()["mapped"] is False


def test_every_item_has_a_place_and_the_value_of_the_field(server: Server, folder: Path) -> None:
    api = server.client
    job = drawn(api)
    items = all_items(api)
    assert job["state"] == "done" and job["kind"] == "draw_map"
    assert job["result"] == {"points": len(items), "items": len(items)}
    assert (folder / FILE).exists()
    answer = api.get("/map", params={"colour": "label"}).json()
    assert answer["ids"] == [item["id"] for item in items]
    assert len(answer["x"]) == len(answer["y"]) == len(items)
    assert all(0 <= value <= 65_535 for value in answer["x"] + answer["y"])
    assert (answer["items"], answer["missing"]) == (len(items), 0)
    legend, codes = answer["colours"]["legend"], answer["colours"]["codes"]
    assert [legend[code]["value"] for code in codes] == [item["label"] for item in items]
    counts = Counter(item["label"] for item in items)
    assert {entry["value"]: entry["count"] for entry in legend} == counts
    assert legend[-1]["value"] is None  # the photo without a label
    assert api.get("/model").json()["mapped"] is True


def test_without_a_colour_there_is_no_legend(server: Server) -> None:
    drawn(server.client)
    assert server.client.get("/map").json()["colours"] is None


def test_a_filter_leaves_its_items_where_they_are(server: Server) -> None:
    api = server.client
    drawn(api)
    whole = api.get("/map").json()
    some = api.get("/map", params={"where": '{"label": "audi"}'}).json()
    places = dict(zip(whole["ids"], zip(whole["x"], whole["y"], strict=True), strict=True))
    assert some["ids"] == [item["id"] for item in all_items(api) if item["label"] == "audi"]
    assert list(zip(some["x"], some["y"], strict=True)) == [places[id_] for id_ in some["ids"]]


def test_what_has_come_is_counted_and_what_has_gone_is_not_shown(server: Server) -> None:
    api = server.client
    drawn(api)
    first = all_items(api)[0]["id"]
    new = send(api, encoded(picture(99), "PNG"), label="audi").json()["id"]
    api.delete(f"/items/{first}")
    answer = api.get("/map").json()
    assert answer["missing"] == 1
    assert first not in answer["ids"] and new not in answer["ids"]
    drawn(api)
    answer = api.get("/map").json()
    assert answer["missing"] == 0 and new in answer["ids"]


def test_the_map_outlives_the_service(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path) as server:
        drawn(server.client)
        before = server.client.get("/map").json()
    with serving(folder, tmp_path) as server:
        assert server.client.get("/map").json() == before


def test_a_read_only_service_draws_for_itself(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--read-only") as server:
        assert drawn(server.client)["state"] == "done"
        assert server.client.get("/map").status_code == 200
    assert not (folder / FILE).exists()


def test_an_empty_gallery_is_told_so(model_folder: Path, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "empty", model_folder).close()
    with serving(tmp_path / "empty", tmp_path) as server:
        job = drawn(server.client)
    assert job["state"] == "failed"
    assert "the gallery is empty" in job["problem"]["detail"]


def test_an_unknown_field_is_an_error(server: Server) -> None:
    drawn(server.client)
    check_problem(server.client.get("/map", params={"colour": "wheels"}), 422, "filter_invalid")


def test_the_client_draws_and_reads_it(server: Server) -> None:
    with Client(str(server.client.base_url)) as client:
        client.wait(client.draw_map())
        found = client.map("label", where={"label": "audi"})
    assert len(found.ids) == 4
    assert found.colours is not None and found.colours.legend[0].value == "audi"
