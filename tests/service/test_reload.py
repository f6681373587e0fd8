"""Another gallery goes live, and back, while requests go on."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from index import Gallery, build, list_photos
from tests.service.problem import check_problem
from tests.service.running import Server, eventually, serving
from tests.service.zips import photo_bytes
from tests.tiny_model import make_model_folder


@pytest.fixture
def other_gallery(tmp_path: Path, photos: Path) -> Path:
    """The same photos by another model."""
    model = make_model_folder(tmp_path / "other model", seed=1)
    with Gallery.create(tmp_path / "other", model) as gallery:
        build(gallery, list_photos(photos))
    return tmp_path / "other"


def model_of(server: Server) -> str:
    return str(server.client.get("/model").json()["sha256"])


def under_load(server: Server, act: Callable[[], None]) -> tuple[set[str], list[str]]:
    """The models that answered while ``act`` went on, and what was not answered."""
    stop = threading.Event()
    models: set[str] = set()
    failures: list[str] = []

    def search() -> None:
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            while not stop.is_set():
                response = client.post("/search?k=3", files={"file": photo_bytes(3)})
                if response.status_code != 200 or len(response.json()["results"]) != 3:
                    failures.append(response.text)
                else:
                    models.add(response.json()["model"]["sha256"])

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: models or failures or None)
        act()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return models, failures


@pytest.mark.parametrize("workers", [1, 2])
def test_another_model_goes_live_and_back_without_a_failed_request(
    gallery_folder: Path, other_gallery: Path, tmp_path: Path, workers: int
) -> None:
    with serving(gallery_folder, tmp_path, "--workers", str(workers)) as server:
        first = model_of(server)

        def to(gallery: Path) -> str:
            answer = server.client.post("/admin/reload", json={"gallery": str(gallery)})
            assert answer.status_code == 200, answer.text
            assert answer.json()["changed"]
            return str(answer.json()["model_sha256"])

        def everywhere(model: str) -> bool | None:
            """Whether all processes have followed: eight connections in a row say so."""
            for _ in range(8):
                with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
                    if client.get("/model").json()["sha256"] != model:
                        return None
            return True

        def there_and_back() -> None:
            second = to(other_gallery)
            assert second != first
            eventually(lambda: everywhere(second))
            assert to(gallery_folder) == first
            eventually(lambda: everywhere(first))

        models, failures = under_load(server, there_and_back)
        assert not failures
        assert len(models) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_serves_what_has_taken_the_folders_place(
    gallery_folder: Path, other_gallery: Path, tmp_path: Path, workers: int
) -> None:
    gallery = tmp_path / "gallery"
    shutil.copytree(gallery_folder, gallery)
    with serving(gallery, tmp_path, "--workers", str(workers)) as server:
        first = model_of(server)
        gallery.rename(tmp_path / "old")
        other_gallery.rename(gallery)

        def hang_up() -> None:
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: model_of(server) != first or None)

        _, failures = under_load(server, hang_up)
        assert not failures


def test_what_cannot_be_served_is_refused_and_the_old_one_goes_on(
    gallery_folder: Path, tmp_path: Path
) -> None:
    with serving(gallery_folder, tmp_path) as server:
        before = model_of(server)
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "empty", tmp_path / "not there"):
            answer = server.client.post("/admin/reload", json={"gallery": str(path)})
            problem = check_problem(answer, 422, "reload_refused")
            assert "is not a gallery" in problem["detail"]
        assert model_of(server) == before
        again = server.client.post("/admin/reload")
        assert again.status_code == 200
        assert not again.json()["changed"]
