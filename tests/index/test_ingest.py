from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from index import Gallery, Model, build, ingest, list_photos
from index.errors import GalleryError, InvalidArgumentError
from index.files import sha256_file
from index.photos import Photo
from tests.photos import BROKEN, write_class_folders, write_photo
from tests.tiny_model import make_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_class_folders(tmp_path / "photos")


@pytest.fixture
def gallery(tmp_path, model):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        yield gallery


def vectors_by_path(gallery: Gallery) -> dict[str, list[float]]:
    """Vectors as a search sees them: the score of each item for each axis."""
    dim = gallery.model.card.dim
    table: dict[str, list[float]] = {str(each.image): [0.0] * dim for each in gallery.items()}
    paths = {each.id: str(each.image) for each in gallery.items()}
    for axis, query in enumerate(np.eye(dim, dtype=np.float32)):
        ids, scores = gallery.search(query, 1000)
        for item_id, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True):
            table[paths[item_id]][axis] = score
    return table


def test_class_folders_become_labelled_items_with_the_models_vectors(gallery, photos):
    report = build(gallery, list_photos(photos), workers=1)
    assert (report.added, report.unchanged, report.skipped) == (12, 0, [])
    items = gallery.items()
    assert [each.image for each in items] == sorted(photos.resolve().rglob("*.jpg"))
    vectors = vectors_by_path(gallery)
    for each in items:
        assert each.label == each.image.parent.name
        assert each.sha256 == sha256_file(each.image)
        expected = gallery.model.embed(gallery.model.prepare(each.image)[None])[0]
        assert np.allclose(vectors[str(each.image)], expected, rtol=0, atol=1e-6)


def test_attributes_are_stored(gallery, photos):
    (photos / "cars.csv").write_text("path,label,year\ncar-0/0.jpg,audi,1999\n")
    build(gallery, list_photos(photos / "cars.csv"), workers=1)
    [stored] = gallery.items()
    assert (stored.label, stored.attributes) == ("audi", {"year": 1999})


def test_broken_photos_are_skipped_and_listed_whatever_their_kind(gallery, photos):
    codes = {}
    for name, (data, code) in BROKEN.items():
        path = photos.resolve() / "car-1" / f"broken-{name}.jpg"
        path.write_bytes(data)
        codes[str(path)] = code
    told = []
    report = build(gallery, list_photos(photos), workers=2, progress=told.append)
    assert (report.added, report.unchanged) == (12, 0)
    assert [skipped.path for skipped in report.skipped] == sorted(codes)
    assert {skipped.path: skipped.code for skipped in report.skipped} == codes
    assert all(len(skipped.reason) > 30 for skipped in report.skipped)
    assert len(gallery) == 12
    assert sum(told) == 12 + len(BROKEN)


def test_photos_that_went_since_they_were_listed_are_skipped(gallery, photos):
    listed = list_photos(photos)
    (photos / "car-0" / "0.jpg").unlink()
    shutil.rmtree(photos / "car-1")
    (photos / "car-2" / "0.jpg").unlink()
    (photos / "car-2" / "0.jpg").mkdir()
    report = build(gallery, listed, workers=1)
    assert {skipped.code for skipped in report.skipped} == {"image_missing"}
    assert (report.added, len(report.skipped), len(gallery)) == (6, 6, 6)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always UTF-8")
def test_a_name_that_is_not_utf8_is_skipped_and_can_be_printed(gallery, photos):
    os.rename(photos / "car-0" / "0.jpg", os.fsencode(photos / "car-0") + b"/caf\xe9.jpg")  # noqa: PTH104
    report = build(gallery, list_photos(photos), workers=1)
    [skipped] = report.skipped
    assert skipped.code == "path_not_utf8"
    assert skipped.path.encode().endswith(rb"caf\udce9.jpg")
    assert report.added == len(gallery) == 11


def test_running_again_leaves_everything_as_it_is(gallery, photos):
    (photos / "broken.jpg").write_bytes(b"")
    build(gallery, list_photos(photos), workers=1)
    before = gallery.items()
    report = build(gallery, list_photos(photos), workers=1)
    assert (report.added, report.unchanged, len(report.skipped)) == (0, 12, 1)
    assert gallery.items() == before


@pytest.mark.parametrize("what", ["content", "modification time"])
def test_a_photo_that_changed_is_replaced(gallery, photos, what):
    build(gallery, list_photos(photos), workers=1)
    before = gallery.items()
    path = photos.resolve() / "car-1" / "2.jpg"
    stamp = path.stat()
    if what == "content":
        write_photo(path, seed=999)
        assert path.stat().st_size != stamp.st_size
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    else:
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    report = build(gallery, list_photos(photos), workers=1)
    assert (report.added, report.unchanged) == (1, 11)
    assert len(gallery) == 12
    *others, replaced = gallery.items()
    assert others == [each for each in before if each.image != path]
    assert replaced.image == path
    expected = gallery.model.embed(gallery.model.prepare(path)[None])[0]
    assert np.allclose(vectors_by_path(gallery)[str(path)], expected, rtol=0, atol=1e-6)


def test_new_photos_are_added_to_those_there(gallery, photos):
    build(gallery, list_photos(photos), workers=1)
    write_photo(photos / "car-9" / "0.jpg", seed=999)
    report = build(gallery, list_photos(photos), workers=1)
    assert (report.added, report.unchanged, len(gallery)) == (1, 12, 13)


@pytest.mark.parametrize("stop_after", [1, 5, 7, 11])
def test_stopped_and_run_again_it_gives_the_gallery_of_one_run(
    tmp_path, model, photos, monkeypatch, stop_after
):
    monkeypatch.setattr(ingest, "BATCH", 4)
    (photos / "car-1" / "broken.jpg").write_bytes(b"")
    listed = list_photos(photos)
    with Gallery.create(tmp_path / "whole", model) as whole:
        build(whole, listed, workers=2)

        dealt_with = 0

        def interrupt(count: int) -> None:
            nonlocal dealt_with
            dealt_with += count
            if dealt_with == stop_after:
                raise KeyboardInterrupt

        with Gallery.create(tmp_path / "parts", model) as parts:
            with pytest.raises(KeyboardInterrupt):
                build(parts, listed, workers=2, progress=interrupt)
            stored = len(parts)
            assert stop_after - 4 - 1 <= stored <= stop_after
            assert stored % 4 == 0
            report = build(parts, listed, workers=2)
            assert (report.added, report.unchanged) == (12 - stored, stored)
            assert parts.items() == whole.items()
            assert vectors_by_path(parts) == vectors_by_path(whole)


def test_the_number_of_workers_changes_nothing(tmp_path, model, photos):
    (photos / "car-1" / "broken.jpg").write_bytes(b"")
    results = []
    for workers in (1, 2, 7, None):
        with Gallery.create(tmp_path / f"by-{workers}", model) as gallery:
            report = build(gallery, list_photos(photos), workers=workers)
            results.append((report, gallery.items(), vectors_by_path(gallery)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_worker_is_refused(gallery, photos, workers):
    with pytest.raises(InvalidArgumentError, match=f"workers is {workers}: expected at least 1"):
        build(gallery, list_photos(photos), workers=workers)


def test_an_error_that_is_no_photos_fault_is_not_hidden(gallery, photos):
    gallery.close()
    with Gallery.open(gallery.path) as reader, pytest.raises(GalleryError, match="writable"):
        build(reader, list_photos(photos), workers=2)


def test_no_photo_is_no_work(gallery):
    report = build(gallery, list[Photo](), workers=1)
    assert (report.added, report.unchanged, report.skipped) == (0, 0, [])
