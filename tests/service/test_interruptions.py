"""A service that is killed, stopped or told to stop a job: nothing acknowledged is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from index import Gallery
from service.bulk import CHUNK
from tests.service.api import count, send, wait_for
from tests.service.problem import check_problem
from tests.service.running import DEADLINE_S, eventually, serving
from tests.service.zips import photo_bytes, slow_photos, zip_of


def test_all_that_was_acknowledged_survives_a_kill_and_the_job_goes_on(
    tmp_path: Path, model_folder: Path
) -> None:
    gallery = tmp_path / "gallery"
    Gallery.create(gallery, model_folder).close()
    quick = {f"quick/{i}.jpg": photo_bytes(1000 + i) for i in range(CHUNK)}
    files = {**quick, **slow_photos(8)}
    acknowledged: dict[int, dict[str, Any]] = {}
    with serving(gallery, tmp_path) as server:
        api = server.client
        for seed in range(8):
            item = send(api, photo_bytes(seed), sku=f"s{seed}", attributes={"n": seed}).json()
            acknowledged[seed] = item
        gone = acknowledged.pop(0)
        assert api.delete(f"/items/{gone['id']}").status_code == 204
        url = f"/items/{acknowledged[1]['id']}"
        acknowledged[1] = api.patch(url, json={"label": "later"}).json()
        job = send(api, zip_of(files), path="/items/bulk").json()

        def part_done() -> bool | None:
            return api.get(f"/jobs/{job['id']}").json()["progress"]["done"] >= CHUNK or None

        eventually(part_done)
        server.process.kill()
        server.process.wait()
    with serving(gallery, tmp_path) as server:
        api = server.client
        for seed, item in acknowledged.items():
            assert api.get(f"/items/{item['id']}").json() == item
            assert api.get(item["image_url"]).content == photo_bytes(seed)
        check_problem(api.get(f"/items/{gone['id']}"), 404, "item_not_found")
        assert api.get(f"/jobs/{job['id']}").json()["state"] == "interrupted"
        assert count(api) == CHUNK + len(acknowledged)
        again = wait_for(api, send(api, zip_of(files), path="/items/bulk").json()["id"])
        assert again["state"] == "done"
        assert (again["result"]["added"], again["result"]["unchanged"]) == (8, CHUNK)
        assert count(api) == len(files) + len(acknowledged)
        # What the kill left without an item was swept, before the first change.
        stored = list((gallery / "photos").glob("*/*"))
        assert len(stored) == count(api)


def test_a_cancelled_job_stops_and_a_stopping_server_does_not_wait_for_watchers(
    tmp_path: Path, model_folder: Path
) -> None:
    gallery = tmp_path / "gallery"
    Gallery.create(gallery, model_folder).close()
    quick = {f"z/{i}.jpg": photo_bytes(i) for i in range(CHUNK)}  # they come last
    first, second = ({**slow_photos(8, start), **quick} for start in (0, 8))
    with serving(gallery, tmp_path) as server:
        api = server.client
        job = send(api, zip_of(first), path="/items/bulk").json()
        waiting = send(api, zip_of(first), path="/items/bulk").json()
        assert api.delete(f"/jobs/{waiting['id']}").json()["state"] == "cancelled"
        api.delete(f"/jobs/{job['id']}")
        assert wait_for(api, job["id"])["state"] == "cancelled"
        assert count(api) == CHUNK
        last = send(api, zip_of(second), path="/items/bulk").json()
        with api.stream("GET", f"/jobs/{last['id']}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: progress"
            server.process.terminate()
            for _ in lines:  # to its proper end: a stream that was cut off raises
                pass
        server.process.wait(DEADLINE_S)
    with serving(gallery, tmp_path) as server:
        assert server.client.get(f"/jobs/{last['id']}").json()["state"] == "interrupted"
