"""The same ``PhotoStore`` over a folder, fsspec's memory, and an S3 API over HTTP."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from index import Gallery, Item
from index.care import check
from index.errors import DuplicateExternalIdError, StoreError
from index.stores import PhotoPath, is_remote, open_store, read_photo
from index.transfer import export_items, import_items
from service import changing, kept_files
from service.archives import Archive, ArchiveLimits
from service.bulk import add_archive
from service.changing import Description
from service.photo_store import UNNAMED_S, PhotoStore
from service.settings import Settings
from tests.s3_server import environment_of, new_bucket, s3_server, talking_to
from tests.service.problem import check_problem
from tests.service.running import in_process, serving
from tests.service.zips import photo_bytes, zip_of

PLAIN = Description(None, {}, None)
KINDS = ["folder", "memory", "s3"]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "output.txt") as address, talking_to(address):
        yield address


@pytest.fixture
def place_of(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], PhotoPath]:
    def place(kind: str) -> PhotoPath:
        if kind == "folder":
            return tmp_path / "photos"
        if kind == "memory":
            return open_store(f"memory://{uuid.uuid4().hex}")
        return open_store(f"s3://{new_bucket(request.getfixturevalue('endpoint'))}/cars")

    return place


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, place_of: Callable[[str], PhotoPath]) -> PhotoPath:
    return place_of(request.param)


@contextmanager
def keeping_photos_at(place: PhotoPath) -> Iterator[None]:
    """Galleries keep the photos they are sent at ``place``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gallery, "photos_folder", property(lambda gallery: place))
        yield


@pytest.fixture
def gallery(tmp_path: Path, model_folder: Path, place: PhotoPath) -> Iterator[Gallery]:
    with (
        keeping_photos_at(place),
        Gallery.create(tmp_path / "gallery", model_folder) as gallery,
    ):
        yield gallery


def add(gallery: Gallery, seed: int, described: Description = PLAIN) -> Item:
    return changing.add(gallery, changing.embed(gallery, photo_bytes(seed)), described)


def kept(place: PhotoPath) -> set[str]:
    """The names of what lies at ``place``, by means other than the store's own."""
    if not is_remote(place):
        return {file.relative_to(place).as_posix() for file in place.glob("*/*")}
    root = place.path.rstrip("/") + "/"
    place.fs.invalidate_cache()
    return {name.removeprefix(root) for name in place.fs.find(place.path)}


def test_the_same_photo_twice_is_two_files_that_go_one_by_one(gallery: Gallery) -> None:
    place = gallery.photos_folder
    store = PhotoStore.of(gallery)
    one, two = add(gallery, 1), add(gallery, 1)
    assert one.path != two.path and kept(place) == {one.path, two.path}
    assert store.paths_of(one.sha256) == sorted([one.path, two.path])
    assert store.paths_of("0" * 64) == []
    assert store.holds(one) and gallery.ids_by_path([two.image]) == {two.image: two.id}
    assert read_photo(two.image) == photo_bytes(1) and len(photo_bytes(1)) == two.size
    changing.remove(gallery, one.id)
    assert kept(place) == {two.path} and read_photo(two.image) == photo_bytes(1)
    store.tidy(gallery, [two.path, one.path, "00/never"])
    assert kept(place) == {two.path}


def test_a_refused_item_leaves_no_photo(gallery: Gallery) -> None:
    described = Description(None, {}, "sku-1")
    first = add(gallery, 1, described)
    with pytest.raises(DuplicateExternalIdError) as refused:
        add(gallery, 2, described)
    assert str(gallery.photos_folder) not in str(refused.value)
    assert kept(gallery.photos_folder) == {first.path}
    item, created = changing.upsert(
        gallery, "sku-1", changing.embed(gallery, photo_bytes(2)), described
    )
    assert not created and kept(gallery.photos_folder) == {item.path}


def test_a_gallery_opened_anew_finds_its_photos_and_is_sound(gallery: Gallery) -> None:
    item = add(gallery, 1)
    with Gallery.open(gallery.path) as again:
        assert again.get([item.id]) == [item] and PhotoStore.of(again).holds(item)
        assert again.files(item.root) == {item.path: (item.size, item.mtime_ns)}
    report = check(gallery.path, photos=True)
    assert (report.problems, report.notes) == ([], [])


def test_an_export_brings_the_place_of_the_photos_along(
    gallery: Gallery, model_folder: Path, tmp_path: Path
) -> None:
    item = add(gallery, 1)
    export_items(gallery.path, tmp_path / "export")
    with Gallery.create(tmp_path / "other", model_folder) as other:
        import_items(other, tmp_path / "export")
        [copy] = other.items()
        assert (copy.image, copy.sha256) == (item.image, item.sha256)
        assert read_photo(copy.image) == photo_bytes(1)
        import_items(other, tmp_path / "export")
        assert len(other) == 1


def test_a_zip_sent_again_adds_nothing_and_stores_nothing(gallery: Gallery) -> None:
    files = {f"{label}/{i}.jpg": photo_bytes(i) for i, label in enumerate(["a", "a", "b"])}
    files |= {"b/again.jpg": files["a/0.jpg"], "b/bad.jpg": b"no photo", "b/empty.png": b""}

    def added() -> tuple[int, ...]:
        with Archive(io.BytesIO(zip_of(files)), ArchiveLimits()) as archive:
            result = add_archive(
                gallery,
                archive,
                archive.photos(),
                workers=2,
                progress=lambda done, total, stage: None,
                cancelled=lambda: False,
            )
        return tuple(
            result[name] for name in ("added", "updated", "unchanged", "duplicates", "skipped")
        )

    assert added() == (4, 0, 0, 1, 2)
    items = gallery.items()
    assert kept(gallery.photos_folder) == {item.path for item in items}
    assert added() == (0, 0, 4, 0, 2)
    assert gallery.items() == items
    assert kept(gallery.photos_folder) == {item.path for item in items}


def test_sweeping_removes_old_files_of_no_item_and_nothing_else(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = add(gallery, 1)
    store = PhotoStore.of(gallery)
    unnamed = store.put(photo_bytes(2))  # as by another service, which will name it in a moment
    assert store.sweep(gallery) == 0
    assert kept(gallery.photos_folder) == {item.path, unnamed.path}
    later = time.time_ns() + int((UNNAMED_S + 60) * 1e9)
    monkeypatch.setattr(kept_files.time, "time", lambda: later / 1e9)
    monkeypatch.setattr(kept_files.time, "time_ns", lambda: later)
    assert store.sweep(gallery, older_than_s=2 * UNNAMED_S) == 0
    assert store.sweep(gallery) == 1
    assert kept(gallery.photos_folder) == {item.path}


def test_a_photo_that_is_named_while_a_sweep_looks_stays(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PhotoStore.of(gallery)
    files = Gallery.files

    def named_meanwhile(asked: Gallery, root: PhotoPath) -> dict[str, tuple[int, int]]:
        add(asked, 3)
        named = files(asked, root)
        add(asked, 4)
        return named

    monkeypatch.setattr(Gallery, "files", named_meanwhile)
    assert store.sweep(gallery, older_than_s=0) == 0
    assert kept(gallery.photos_folder) == {item.path for item in gallery.items()}
    assert len(gallery) == 2


def test_a_photo_that_cannot_be_removed_is_left_to_a_sweep(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = add(gallery, 1)
    with monkeypatch.context() as patch:
        for files in (kept_files.ObjectFiles, kept_files.FolderFiles):
            patch.setattr(files, "remove", refuse)
        changing.remove(gallery, item.id)
    assert gallery.items() == [] and kept(gallery.photos_folder) == {item.path}
    assert PhotoStore.of(gallery).sweep(gallery, older_than_s=0) == 1


def refuse(*words: object) -> None:
    raise StoreError("no answer.")


#: Puts a photo ten times, each as soon as the other process may, and removes all of its own but
#: the last.
WRITER = """
import sys
from index.stores import open_store
from service.photo_store import PhotoStore
store = PhotoStore(open_store(sys.argv[1]), shared=True)
data = open(sys.argv[2], "rb").read()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(9):
    store._files.remove(store.put(data).path)
print(store.put(data).path, flush=True)
"""


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_two_processes_that_put_the_same_photo_at_once_keep_one_each(
    kind: str, place_of: Callable[[str], PhotoPath], tmp_path: Path, endpoint: str
) -> None:
    place = place_of(kind)
    (tmp_path / "photo.jpg").write_bytes(photo_bytes(1))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place), str(tmp_path / "photo.jpg")],
            env={**os.environ, **environment_of(endpoint)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    paths = [writer.communicate(timeout=60)[0].strip() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(set(paths)) == 2 and kept(place) == set(paths)
    assert all(read_photo(place / path) == photo_bytes(1) for path in paths)


# Over HTTP


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_the_service_serves_photos_of_a_store(
    kind: str, place_of: Callable[[str], PhotoPath], tmp_path: Path, model_folder: Path
) -> None:
    place = place_of(kind)
    Gallery.create(tmp_path / "gallery", model_folder).close()

    async def talk() -> None:
        async with in_process(Settings(gallery=tmp_path / "gallery")) as service:
            await asyncio.wrap_future(service.engine.opened)
            client = service.client
            answers = [
                await client.post("/items", files={"file": photo_bytes(seed)}) for seed in (1, 2)
            ]
            assert [answer.status_code for answer in answers] == [201, 201]
            one, two = (answer.json()["id"] for answer in answers)

            image = await client.get(f"/items/{one}/image")
            assert (image.status_code, image.content) == (200, photo_bytes(1))
            assert image.headers["Content-Type"] == "image/jpeg"
            assert image.headers["Cache-Control"] == "private, no-cache"
            headers = {"If-None-Match": image.headers["ETag"]}
            again = await client.get(f"/items/{one}/image", headers=headers)
            assert (again.status_code, again.content) == (304, b"")
            assert (await client.get(f"/items/{two}/image", headers=headers)).status_code == 200
            ranged = await client.get(f"/items/{one}/image", headers={"Range": "bytes=0-9"})
            assert (ranged.status_code, ranged.content) == (200, photo_bytes(1))

            small = await client.get(f"/items/{one}/thumbnail?size=32")
            assert small.status_code == 200 and small.headers["Content-Type"] == "image/jpeg"
            similar = await client.get(f"/items/{one}/similar")
            assert [each["id"] for each in similar.json()["results"]] == [two]

            [path] = [item.path for item in service.engine.gallery.get([one])]
            place.fs.rm_file((place / path).path)
            for what in ("image", "thumbnail?size=48"):
                gone = check_problem(await client.get(f"/items/{one}/{what}"), 410, "image_missing")
                assert f"item {one}" in gone["detail"] and path not in gone["detail"]
            assert (await client.delete(f"/items/{two}")).status_code == 204
            assert kept(place) == set()

    with keeping_photos_at(place):
        asyncio.run(talk())


def test_a_store_that_is_gone_is_a_problem_with_its_code_and_the_rest_goes_on(
    tmp_path: Path, model_folder: Path
) -> None:
    with s3_server(tmp_path / "output.txt") as address, talking_to(address):
        place = open_store(f"s3://{new_bucket(address)}")
        with keeping_photos_at(place):
            Gallery.create(tmp_path / "gallery", model_folder).close()
            with Gallery.open(tmp_path / "gallery", writable=True) as gallery:
                item = add(gallery, 1)

    async def talk() -> None:
        async with in_process(Settings(gallery=tmp_path / "gallery")) as service:
            await asyncio.wrap_future(service.engine.opened)
            client = service.client
            for what in ("image", "thumbnail"):
                answer = await client.get(f"/items/{item.id}/{what}")
                check_problem(answer, 503, "store_unreachable")
            answer = await client.post("/items", files={"file": photo_bytes(2)})
            problem = check_problem(answer, 503, "store_unreachable")
            assert str(place).rstrip("/") in problem["detail"]
            assert (await client.get("/items")).json()["total"] == 1
            changed = await client.patch(f"/items/{item.id}", json={"label": "audi"})
            assert changed.status_code == 200
            assert (await client.delete(f"/items/{item.id}")).status_code == 204

    with talking_to(address), keeping_photos_at(place):
        asyncio.run(talk())


def test_a_gallery_folder_keeps_its_photos_in_itself_and_serves_them_as_files(
    tmp_path: Path, model_folder: Path
) -> None:
    Gallery.create(tmp_path / "gallery", model_folder).close()
    with serving(tmp_path / "gallery", tmp_path) as server:
        client: httpx.Client = server.client
        item_id = client.post("/items", files={"file": photo_bytes(1)}).json()["id"]
        [file] = (tmp_path / "gallery" / "photos").glob("*/*")
        assert file.read_bytes() == photo_bytes(1) and len(file.stem) == 64
        part = client.get(f"/items/{item_id}/image", headers={"Range": "bytes=2-9"})
        assert (part.status_code, part.content) == (206, photo_bytes(1)[2:10])
        assert client.delete(f"/items/{item_id}").status_code == 204
        assert not file.exists()
