"""``/map``: drawn by a job, kept with the gallery, told with the values of a field."""

from __future__ import annotations

import itertools
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


@pytest.mark.parametrize("options", [[], ["--read-only"]])
def test_a_map_drawn_through_one_of_several_processes_is_shown_by_all(
    folder: Path, tmp_path: Path, options: list[str]
) -> None:
    with serving(folder, tmp_path, "--workers", "2", *options) as server:
        assert drawn(server.client)["state"] == "done"
        for _ in range(6):  # each on a connection of its own, to whichever process takes it
            with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
                assert client.get("/map").status_code == 200


def described_by(folder: Path, values: list[float | None]) -> None:
    """Give the gallery's items, in their order, a number each."""
    with Gallery.open(folder, writable=True) as gallery:
        for item, value in zip(gallery.items(limit=100), values, strict=True):
            gallery.update(item.id, attributes={"price": value})


def colours(api: httpx.Client) -> dict[str, Any]:
    drawn(api)
    told: dict[str, Any] = api.get("/map", params={"colour": "price"}).json()["colours"]
    return told


def test_few_numbers_are_coloured_from_low_to_high(folder: Path, tmp_path: Path) -> None:
    values = [[30.0, 10.0, 20.0][i % 3] for i in range(25)]
    described_by(folder, [None, *values])
    with serving(folder, tmp_path) as server:
        told = colours(server.client)
    assert told["ordered"]
    assert [(each["value"], each["count"]) for each in told["legend"]] == [
        (10, 8), (20, 8), (30, 9), (None, 1)
    ]  # fmt: skip
    assert told["codes"] == [3, *([10, 20, 30].index(value) for value in values)]


def test_many_numbers_are_ranges_with_about_as_many_items_each(
    folder: Path, tmp_path: Path
) -> None:
    values = [float((7 * i) % 26) ** 3 for i in range(26)]  # each once, and far from even
    described_by(folder, list(values))
    with serving(folder, tmp_path) as server:
        told = colours(server.client)
    legend = told["legend"]
    assert len(legend) == 8 and all(3 <= each["count"] <= 4 for each in legend)
    for value, code in zip(values, told["codes"], strict=True):
        assert legend[code]["low"] <= value <= legend[code]["high"]
    for below, above in itertools.pairwise(legend):
        assert below["high"] < above["low"]


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
