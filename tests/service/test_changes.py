"""Changes over HTTP, with a real server: what was acknowledged, what was refused."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from index import Gallery, build, list_photos
from tests.service.api import count, nearest, send
from tests.service.problem import check_problem
from tests.service.running import Server, serving
from tests.service.zips import photo_bytes, zip_of

INVENTED = "0" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("changes")
    shutil.copytree(photos, folder / "indexed")
    with Gallery.create(folder / "gallery", model_folder) as gallery:
        build(gallery, list_photos(folder / "indexed"))
    return folder


@pytest.fixture(scope="module")
def changing(folder: Path) -> Iterator[Server]:
    with serving(folder / "gallery", folder) as server:
        yield server


@pytest.fixture(scope="module")
def api(changing: Server) -> httpx.Client:
    return changing.client


def test_an_added_photo_is_found_at_once_with_what_is_known_about_it(api: httpx.Client) -> None:
    data = photo_bytes(100)
    response = send(api, data, label="lada", attributes={"year": 1980, "rusty": True}, sku="L/1 ä")
    assert response.status_code == 201
    item = response.json()
    assert (item["label"], item["sku"]) == ("lada", "L/1 ä")
    assert item["attributes"] == {"year": 1980, "rusty": True}
    assert api.get(response.headers["Location"]).json() == item
    assert api.get("/items/by-sku/L%2F1%20%C3%A4").json() == item
    assert api.get(item["image_url"]).content == data
    hit = nearest(api, data)
    assert hit["id"] == item["id"] and hit["score"] == pytest.approx(1, abs=1e-5)


def test_a_sku_that_is_there_is_a_conflict_and_changes_nothing(api: httpx.Client) -> None:
    first = send(api, photo_bytes(101), sku="twice").json()
    before = count(api)
    check_problem(send(api, photo_bytes(102), sku="twice"), 409, "duplicate_external_id")
    other = send(api, photo_bytes(102)).json()
    response = api.patch(f"/items/{other['id']}", json={"sku": "twice"})
    check_problem(response, 409, "duplicate_external_id")
    assert api.get("/items/by-sku/twice").json() == first
    assert count(api) == before + 1


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ('{"door": "many"}', "attribute_type"),
        ('{"id": 7}', "invalid_argument"),
        ('{"x": [1]}', "invalid_argument"),
        ('{"x": {}}', "invalid_argument"),
        ('{"x": NaN}', "invalid_argument"),
        ('{"x": 99999999999999999999}', "invalid_argument"),
        ('{"": 1}', "invalid_argument"),
        ('{"a\\"b": 1}', "invalid_argument"),
        ("[1]", "invalid_argument"),
        ("no json", "invalid_argument"),
    ],
)
def test_attributes_that_cannot_be_stored_are_refused(
    api: httpx.Client, folder: Path, attributes: str, code: str
) -> None:
    send(api, photo_bytes(103), path="/items/by-sku/doors", method="PUT", attributes={"door": 4})
    before = count(api)
    files = {"file": photo_bytes(104)}
    for method, path in (("POST", "/items"), ("PUT", "/items/by-sku/new")):
        response = api.request(method, path, files=files, data={"attributes": attributes})
        problem = check_problem(response, 422, code)
        assert str(folder) not in problem["detail"]
    assert count(api) == before


def test_what_is_no_photo_is_refused(api: httpx.Client) -> None:
    before = count(api)
    check_problem(send(api, b""), 422, "image_empty")
    check_problem(send(api, b"no photo"), 415, "image_unreadable")
    check_problem(api.post("/items"), 422, "file_missing")
    assert count(api) == before


def test_putting_by_sku_creates_then_replaces_and_may_be_repeated(api: httpx.Client) -> None:
    def put(seed: int, **form: Any) -> httpx.Response:
        return send(api, photo_bytes(seed), path="/items/by-sku/image", method="PUT", **form)

    created = put(110, label="a", attributes={"year": 1, "seats": 2})
    assert created.status_code == 201
    item = created.json()
    again = put(110, label="a", attributes={"year": 1, "seats": 2})
    assert (again.status_code, again.json()) == (200, item)
    described = put(110, attributes={"year": 2}).json()
    assert (described["id"], described["label"]) == (item["id"], None)
    assert described["attributes"] == {"year": 2}
    replaced = put(111).json()
    assert replaced["id"] != item["id"] and replaced["sku"] == "image"
    check_problem(api.get(f"/items/{item['id']}"), 404, "item_not_found")
    assert nearest(api, photo_bytes(111))["id"] == replaced["id"]


def test_patching_changes_what_is_given_and_null_takes_away(api: httpx.Client) -> None:
    item = send(api, photo_bytes(120), label="a", attributes={"x": 1, "y": 2}, sku="p").json()
    url = f"/items/{item['id']}"
    changed = api.patch(url, json={"attributes": {"x": 3}}).json()
    assert changed == {**item, "attributes": {"x": 3, "y": 2}}
    changed = api.patch(url, json={"label": None, "sku": "q", "attributes": {"y": None}}).json()
    assert changed == {**item, "label": None, "sku": "q", "attributes": {"x": 3}}
    assert api.patch(url, json={}).json() == changed == api.get(url).json()
    for bad in ({"colour": 1}, {"label": 7}, {"sku": ""}, {"attributes": {"x": "text"}}, []):
        assert api.patch(url, json=bad).status_code == 422
    assert api.get(url).json() == changed


def test_a_removed_item_is_gone_with_its_photo_but_indexed_folders_stay(
    api: httpx.Client, folder: Path
) -> None:
    kept = folder / "gallery" / "photos"
    item = send(api, photo_bytes(130)).json()
    files = set(kept.rglob("*.jpg"))
    assert api.delete(f"/items/{item['id']}").status_code == 204
    assert len(files - set(kept.rglob("*.jpg"))) == 1
    for method in ("GET", "DELETE", "PATCH"):
        response = api.request(
            method, f"/items/{item['id']}", json={} if method[0] == "P" else None
        )
        check_problem(response, 404, "item_not_found")
    assert nearest(api, photo_bytes(130))["id"] != item["id"]
    first = api.get("/items", params={"limit": 1}).json()["items"][0]
    before = set((folder / "indexed").rglob("*.jpg"))
    assert api.delete(f"/items/{first['id']}").status_code == 204
    assert set((folder / "indexed").rglob("*.jpg")) == before


def test_a_filter_narrows_the_list_and_the_counts(api: httpx.Client) -> None:
    for number in range(3):
        send(api, photo_bytes(140 + number), label="w", attributes={"wheels": number + 3})
    where = json.dumps({"label": "w", "wheels": {"gte": 4}})
    page = api.get("/items", params={"where": where, "limit": 1, "offset": 1}).json()
    assert page["total"] == 2
    assert [item["attributes"]["wheels"] for item in page["items"]] == [5]
    answer = api.get("/fields", params={"where": where, "values": 1}).json()
    assert answer["total"] == 2
    fields = {field["name"]: field for field in answer["fields"]}
    assert fields["label"]["values"] == [{"value": "w", "count": 2}]
    assert fields["wheels"] == {
        "name": "wheels",
        "type": "number",
        "values": [{"value": 4, "count": 1}],
        "more": True,
    }


@pytest.mark.parametrize("where", ["no json", "[]", "7", '{"nofield": 1}', '{"not":' * 2000])
@pytest.mark.parametrize("path", ["/items", "/fields"])
def test_a_filter_that_cannot_be_understood_is_refused(
    api: httpx.Client, path: str, where: str
) -> None:
    check_problem(api.get(path, params={"where": where}), 422, "filter_invalid")


def test_a_thumbnail_is_small_and_known_by_its_tag(api: httpx.Client) -> None:
    item = send(api, photo_bytes(150, "PNG")).json()
    url = item["thumbnail_url"]
    response = api.get(url, params={"size": 32})
    assert response.headers["Content-Type"] == "image/jpeg"
    assert response.content.startswith(b"\xff\xd8\xff")
    tag = response.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = api.get(url, params={"size": 32}, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert api.get(url, params={"size": 33}, headers={"If-None-Match": tag}).status_code == 200
    assert "no-cache" in response.headers["Cache-Control"]
    for size in ("15", "1025", "x"):
        check_problem(api.get(url, params={"size": size}), 422, "invalid_argument")
    check_problem(api.get("/items/999999/thumbnail"), 404, "item_not_found")


def test_a_zip_is_added_as_a_job_whose_events_tell_its_progress(api: httpx.Client) -> None:
    files = {f"zip-{i % 2}/{i}.jpg": photo_bytes(200 + i) for i in range(70)}
    files["zip-0/bad.jpg"] = b"no photo"
    before = count(api)
    response = send(api, zip_of(files), path="/items/bulk")
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["Location"] == f"/jobs/{job['id']}"
    events = []
    with api.stream("GET", f"/jobs/{job['id']}/events") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))))
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["done"]
    done = [data["progress"]["done"] for _, data in events]
    assert done == sorted(done) and done[-1] == 71
    last = events[-1][1]
    assert last["state"] == "done" and last == api.get(f"/jobs/{job['id']}").json()
    assert (last["result"]["added"], last["result"]["skipped"]) == (70, 1)
    assert last["result"]["problems"][0]["path"] == "zip-0/bad.jpg"
    assert last in api.get("/jobs").json()["jobs"]
    assert count(api) == before + 70
    assert nearest(api, photo_bytes(233))["label"] == "zip-1"


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        ({"../1.jpg": b"1"}, 422, "archive_unsafe"),
        ({"items.csv": b"path\n../1.jpg\n", "1.jpg": b"1"}, 422, "data_invalid"),
        ({"items.csv": b"path,id\n1.jpg,2\n", "1.jpg": b"1"}, 422, "data_invalid"),
        ({"items.csv": b"path,label\n1.jpg,\xff\n", "1.jpg": b"1"}, 422, "data_invalid"),
        ({"items.csv": b"path,not\n1.jpg,2\n", "1.jpg": b"1"}, 422, "invalid_argument"),
        ({"notes.txt": b"1"}, 422, "archive_invalid"),
        ({f"{i}.jpg": bytes(1_900_000) for i in range(10)}, 413, "archive_too_large"),
    ],
)
def test_a_zip_that_cannot_be_trusted_never_becomes_a_job(
    api: httpx.Client, folder: Path, files: dict[str, bytes], status: int, code: str
) -> None:
    before = api.get("/jobs").json()
    problem = check_problem(send(api, zip_of(files), path="/items/bulk"), status, code)
    for ours in (str(folder), tempfile.gettempdir()):
        assert ours not in problem["detail"]
    assert api.get("/jobs").json() == before


def test_what_is_no_zip_is_refused(api: httpx.Client) -> None:
    check_problem(send(api, b"PK", path="/items/bulk"), 422, "archive_invalid")


def test_an_unknown_job_is_not_found(api: httpx.Client) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        check_problem(api.request(method, f"/jobs/{INVENTED}{path}"), 404, "job_not_found")
