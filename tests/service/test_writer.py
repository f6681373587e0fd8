"""The service and other processes change one gallery in turns."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from index import Gallery
from index.errors import GalleryLockedError
from index.lock import WriterLock
from service.writer import Writer
from tests.service.api import nearest, send
from tests.service.problem import check_problem
from tests.service.running import eventually, run_dscl, serving
from tests.service.zips import photo_bytes


@pytest.fixture
def gallery(gallery_folder: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("jobs")
    return Path(shutil.copytree(gallery_folder, tmp_path / "gallery", ignore=ignored))


def free(gallery: Path) -> bool | None:
    try:
        WriterLock.acquire(gallery).release()
    except GalleryLockedError:
        return None
    return True


def test_while_another_changes_the_gallery_changes_are_refused_and_searches_go_on(
    gallery: Path, tmp_path: Path
) -> None:
    with serving(gallery, tmp_path) as server:
        with WriterLock.acquire(gallery):
            problem = check_problem(send(server.client, photo_bytes(1)), 409, "gallery_locked")
            assert "is being changed by process" in problem["detail"]
            assert nearest(server.client, photo_bytes(1))["score"] < 0.999
        added = send(server.client, photo_bytes(1))
        assert added.status_code == 201
        assert nearest(server.client, photo_bytes(1))["id"] == added.json()["id"]


def test_some_seconds_after_its_last_change_the_service_lets_others_change(
    gallery: Path, tmp_path: Path
) -> None:
    with serving(gallery, tmp_path) as server:
        kept = send(server.client, photo_bytes(1), label="by http").json()
        assert free(gallery) is None
        eventually(lambda: free(gallery))
        removed = run_dscl("index", "remove", "--gallery", gallery, str(kept["id"]))
        assert removed.returncode == 0, removed.stderr
        check_problem(server.client.get(f"/items/{kept['id']}"), 404, "item_not_found")
        assert send(server.client, photo_bytes(2)).status_code == 201


def test_read_only_changes_nothing(gallery: Path, tmp_path: Path) -> None:
    with serving(gallery, tmp_path, "--read-only") as server:
        check_problem(send(server.client, photo_bytes(1)), 409, "gallery_read_only")
        check_problem(server.client.delete("/items/1"), 409, "gallery_read_only")
        assert server.client.get("/items/1").status_code == 200
        assert free(gallery)
    assert not (gallery / "jobs").exists()


def test_a_writer_opens_once_for_changes_that_overlap_and_closes_after_the_last(
    gallery: Path,
) -> None:
    opened = []

    def open_gallery() -> Gallery:
        opened.append(Gallery.open(gallery, writable=True))
        return opened[-1]

    writer = Writer(open_gallery)
    with writer.lease() as first:
        with writer.lease() as second:
            assert second is first
        writer.close()  # not before its last change has ended
        assert free(gallery) is None
        first.remove([1])
    assert free(gallery)
    assert len(opened) == 1
