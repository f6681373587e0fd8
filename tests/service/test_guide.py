"""docs/service.md names every setting and operation, and its curl lines work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from index import Gallery, Item
from service.app import create_app
from service.settings import Settings
from tests.service.api import wait_for
from tests.service.running import Server, serving

GUIDE = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"

#: Set by the supervisor, not by users.
INTERNAL = {"role", "state_folder"}

CURL_LINES = [line for line in GUIDE.splitlines() if line.startswith("curl ")]

#: The part of a line that says what is expected to be refused here.
REFUSED = {"/search/url": "url_search_off", "galleries/cars-2": "reload_refused"}


@pytest.fixture(scope="module")
def server(gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(gallery_folder, folder / "gallery")
    with Gallery.open(folder / "gallery", writable=True) as gallery:
        gallery.draw_map()  # which the line before has only begun
    with serving(folder / "gallery", folder) as server:
        yield server


@pytest.fixture(scope="module")
def folder(
    server: Server, items: list[Item], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Where the files lie that the lines name, and the id of a job."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(items[1].image, folder / "photo.jpg")
    shutil.copy(items[2].image, folder / "other.jpg")
    with zipfile.ZipFile(folder / "photos.zip", "w") as file:
        file.write(items[1].image, "audi/zipped.jpg")
    photo = {"file": items[1].image.read_bytes()}
    found = server.client.post("/search?include=vector&k=1", files=photo).json()["results"][0]
    (folder / "vector.json").write_text(json.dumps({"vector": found["vector"]}))
    job = server.client.post("/items/bulk", files={"file": (folder / "photos.zip").read_bytes()})
    # Drawn already, for the line that reads it does not wait for the one that draws it.
    wait_for(server.client, server.client.post("/map").json()["id"])
    return folder, job.json()["id"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("line", CURL_LINES)
def test_a_curl_line_works(line: str, server: Server, folder: tuple[Path, str]) -> None:
    files, job = folder
    command = line.partition("  #")[0].replace(ADDRESS, str(server.client.base_url).rstrip("/"))
    result = subprocess.run(
        ["bash", "-c", f"{command} --silent --show-error --noproxy '*' -w '\n%{{http_code}}'"],
        cwd=files,
        env={"JOB": job, "PATH": "/usr/bin:/bin:/usr/local/bin"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    body, _, status = result.stdout.rpartition(b"\n")
    assert result.returncode == 0, result.stderr
    refusals = [code for part, code in REFUSED.items() if part in line]
    if refusals:
        assert json.loads(body)["code"] == refusals[0]
    else:
        assert status.startswith(b"2"), body


def test_every_setting_is_in_the_table_with_its_default() -> None:
    table = GUIDE.partition("## Settings")[2].partition("## Every endpoint")[0]
    named = re.findall(r"^\| (`.+?) \| (.*?) \|", table, re.MULTILINE)
    names = {name for names, _ in named for name in re.findall(r"`(\w+)`", names)}
    assert names == set(Settings.model_fields) - INTERNAL
    settings = Settings(gallery=Path("gallery"))
    for listed, default in named:
        if (given := default.replace(",", "")).isdecimal():
            [name] = re.findall(r"`(\w+)`", listed)
            assert getattr(settings, name) == int(given), name


def test_every_operation_has_a_line() -> None:
    lines = "\n".join(CURL_LINES).replace("$JOB", "{job_id}")
    lines = re.sub(r"/items/\d+", "/items/{item_id}", lines).replace("/A4-1", "/{sku}")
    for path, methods in create_app(Settings(gallery=Path("gallery"))).openapi()["paths"].items():
        # A word ends here: /items is no line for /items/{item_id}.
        assert re.search(rf"8000{re.escape(path)}(?![\w/{{])", lines), path
        for method in {"put", "patch", "delete"} & set(methods):
            assert re.search(rf"-X {method.upper()} .*{re.escape(path)}(?![\w/])", lines), path
