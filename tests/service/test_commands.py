from __future__ import annotations

import re
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from index import Gallery, Model, NewItem
from tests.service.running import Server, eventually, run_dscl, serving
from tests.tiny_model import make_model_folder


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_it_prints_address_settings_size_and_model(server: Server, model_folder: Path) -> None:
    printed = eventually(lambda: text if "Ready" in (text := server.output.read_text()) else None)
    address = str(server.client.base_url).rstrip("/")
    card = Model.load(model_folder).card
    ready = re.search(r"^Ready at .*", printed, re.MULTILINE)
    assert ready
    for fact in (address, "26 items", card.name, card.sha256[:12]):
        assert fact in ready[0]
    for name, value in {"max_upload_bytes": 2_000_000, "queue_limit": 64, "threads": 2}.items():
        assert re.search(rf"^  {name} +{value}$", printed, re.MULTILINE)


def test_it_is_ready_on_10_000_items_within_3_seconds_of_cpu(
    model_folder: Path, tmp_path: Path
) -> None:
    vectors = np.random.default_rng(0).normal(size=(10_000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Gallery.create(tmp_path / "gallery", model_folder) as gallery:
        gallery.add(
            [
                NewItem(
                    root=tmp_path,
                    path=f"{n}.jpg",
                    sha256="0" * 64,
                    size=1,
                    mtime_ns=1,
                    label=None,
                    attributes={},
                    vector=vector,
                )
                for n, vector in enumerate(vectors)
            ]
        )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with serving(tmp_path / "gallery", tmp_path) as server:
        assert server.client.get("/model").json()["items"] == 10_000
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time, because other work on the machine stretches the wall clock.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_it_listens_on_loopback_only(server: Server) -> None:
    assert server.client.base_url.host == "127.0.0.1"
    assert server.client.base_url.port is not None
    with socket.create_server(("127.0.0.2", server.client.base_url.port)):
        pass  # the port is free on every other address


def test_a_taken_port_is_an_error(gallery_folder: Path, taken_port: int) -> None:
    result = run_dscl("serve", "--gallery", gallery_folder, "--port", taken_port)
    assert result.returncode == 1
    assert f"port {taken_port} on 127.0.0.1 is taken" in result.stderr
    assert "--next-port" in result.stderr


def test_the_next_free_port_is_used_and_told(
    gallery_folder: Path, taken_port: int, tmp_path: Path
) -> None:
    options = ("--port", str(taken_port), "--next-port")
    with serving(gallery_folder, tmp_path, *options) as server:
        port = server.client.base_url.port
        assert port is not None and port > taken_port
        assert f"Port {taken_port} is taken: using {port}." in server.output.read_text()


def test_a_host_that_others_reach_needs_consent(gallery_folder: Path) -> None:
    result = run_dscl("serve", "--gallery", gallery_folder, "--host", "0.0.0.0")
    assert result.returncode == 1
    assert "0.0.0.0" in result.stderr and "--insecure" in result.stderr


def test_an_address_of_another_machine_is_an_error(gallery_folder: Path) -> None:
    options = ("--host", "192.0.2.1", "--insecure")  # TEST-NET-1: nobody's
    result = run_dscl("serve", "--gallery", gallery_folder, *options)
    assert result.returncode == 1
    assert "cannot listen on 192.0.2.1" in result.stderr


def test_without_a_gallery_it_asks_for_one() -> None:
    result = run_dscl("serve")
    assert result.returncode == 1
    assert "gallery" in result.stderr and "DSCL_GALLERY" in result.stderr


def test_a_folder_that_is_no_gallery_is_an_error(tmp_path: Path) -> None:
    result = run_dscl("serve", "--gallery", tmp_path, "--port", "0")
    assert result.returncode == 1
    assert f"{tmp_path} is not a gallery" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_gallery_built_with_another_model_is_refused(
    gallery_folder: Path, tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    shutil.copytree(gallery_folder, gallery)
    shutil.rmtree(gallery / "model")
    make_model_folder(gallery / "model", seed=1)
    before = (gallery / "catalog.sqlite").read_bytes()

    result = run_dscl("serve", "--gallery", gallery, "--port", "0")

    assert result.returncode == 1
    assert "was built with model" in result.stderr and "tiny-16-1" in result.stderr
    assert (gallery / "catalog.sqlite").read_bytes() == before


def test_it_ends_on_a_signal_and_frees_the_port(gallery_folder: Path, tmp_path: Path) -> None:
    with serving(gallery_folder, tmp_path) as server:
        url = server.client.base_url
        assert server.client.get("/health/live").status_code == 200
    assert url.port is not None
    with pytest.raises(httpx.ConnectError):
        httpx.get(str(url), trust_env=False)
    with socket.create_server((url.host, url.port)):
        pass
