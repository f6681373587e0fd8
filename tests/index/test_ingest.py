from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from index import Gallery, Model, build, ingest, list_photos
from index.errors import AttributeTypeError, GalleryError, InvalidArgumentError
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
    counts = (1, 0) if what == "content" else (0, 1)
    assert ((report.added, report.updated), report.unchanged) == (counts, 11)
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


# The same content under several paths


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """The number of photos in each forward pass."""
    counts: list[int] = []
    embed = Model.embed

    def counting(self, pixels):
        counts.append(len(pixels))
        return embed(self, pixels)

    monkeypatch.setattr(Model, "embed", counting)
    return counts


def copy_photo(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


@pytest.mark.parametrize("together", [True, False])
def test_the_same_bytes_are_embedded_once_and_share_a_vector(
    gallery, photos, embedded, monkeypatch, together
):
    monkeypatch.setattr(ingest, "BATCH", 5)
    photos = photos.resolve()
    if not together:
        build(gallery, list_photos(photos), workers=2)
    copies = [
        copy_photo(photos / "car-0" / "1.jpg", photos / f"car-{i}" / "copy.jpg") for i in (0, 2)
    ]
    report = build(gallery, list_photos(photos), workers=2)
    assert report.added == (14 if together else 2)
    assert {each.path for each in report.duplicates} == set(map(str, copies))
    assert {each.same_as for each in report.duplicates} == {str(photos / "car-0" / "1.jpg")}
    assert sum(embedded) == 12
    vectors = vectors_by_path(gallery)
    for path in copies:
        assert vectors[str(path)] == vectors[str(photos / "car-0" / "1.jpg")]
    assert {each.label for each in gallery.items() if each.image in copies} == {"car-0", "car-2"}
    again = build(gallery, list_photos(photos), workers=2)
    assert (again.unchanged, again.duplicates) == (14, [])


def test_duplicates_are_left_out_when_asked(gallery, photos):
    photos = photos.resolve()
    copy = copy_photo(photos / "car-0" / "1.jpg", photos / "car-2" / "copy.jpg")
    for added in (12, 0):
        report = build(gallery, list_photos(photos), workers=2, skip_duplicates=True)
        assert (report.added, len(gallery)) == (added, 12)
        assert [each.path for each in report.duplicates] == [str(copy)]
    assert copy not in {each.image for each in gallery.items()}


@pytest.mark.parametrize("skip_duplicates", [True, False])
def test_a_photo_that_moved_is_no_duplicate(gallery, photos, embedded, skip_duplicates):
    build(gallery, list_photos(photos), workers=1)
    moved = photos.resolve() / "car-9" / "0.jpg"
    moved.parent.mkdir()
    (photos / "car-1" / "0.jpg").rename(moved)
    report = build(
        gallery, list_photos(photos), workers=1, skip_duplicates=skip_duplicates, prune=True
    )
    assert (report.added, report.unchanged, report.removed) == (1, 11, 1)
    assert report.duplicates == []
    assert sum(embedded) == 12
    assert sorted(each.image for each in gallery.items()) == sorted(photos.resolve().rglob("*.jpg"))


def test_a_copy_of_a_photo_that_changes_meanwhile_keeps_its_own_content(
    gallery, photos, monkeypatch
):
    """The item whose vector could be shared is replaced before the copy is stored."""
    monkeypatch.setattr(ingest, "BATCH", 1)
    build(gallery, list_photos(photos), workers=1)
    original = photos.resolve() / "car-0" / "0.jpg"
    copy = copy_photo(original, photos.resolve() / "car-0" / "1-copy.jpg")
    write_photo(original, seed=999)
    report = build(gallery, list_photos(photos), workers=1)
    assert report.added == 2
    vectors = vectors_by_path(gallery)
    for path in (original, copy):
        expected = gallery.model.embed(gallery.model.prepare(path)[None])[0]
        assert np.allclose(vectors[str(path)], expected, rtol=0, atol=1e-6)


# What somebody wrote down


def write_table(photos: Path, text: str) -> list[Photo]:
    (photos / "cars.csv").write_text(text)
    return list_photos(photos / "cars.csv")


def described(gallery: Gallery) -> dict[str, tuple]:
    return {
        f"{each.image.parent.name}/{each.image.name}": (
            each.label, each.attributes.get("year"), each.external_id
        )
        for each in gallery.items()
    }  # fmt: skip


def test_a_table_corrects_items_whose_photo_has_not_changed(gallery, photos, embedded):
    build(gallery, list_photos(photos), workers=1)
    before = gallery.items()
    rows = "path,label,year,sku\ncar-0/0.jpg,audi,1999,A0\ncar-0/1.jpg,car-0,,\ncar-1/0.jpg,,,B\n"
    report = build(gallery, write_table(photos, rows), workers=1)
    assert (report.added, report.updated, report.unchanged) == (0, 2, 1)
    assert sum(embedded) == 12
    assert [each.id for each in gallery.items()] == [each.id for each in before]
    expected = {f"car-{i}/{j}.jpg": (f"car-{i}", None, None) for i in range(3) for j in range(4)}
    expected |= {"car-0/0.jpg": ("audi", 1999, "A0"), "car-1/0.jpg": (None, None, "B")}
    assert described(gallery) == expected
    # Neither the folders nor a table without these columns undo that.
    build(gallery, list_photos(photos), workers=1)
    build(gallery, write_table(photos, "path,colour\ncar-0/0.jpg,blue\n"), workers=1)
    assert described(gallery) == expected


def test_a_new_photo_under_an_old_path_keeps_what_was_written_down(gallery, photos):
    build(gallery, write_table(photos, "path,label,year,sku\ncar-0/0.jpg,audi,1999,A\n"), workers=1)
    write_photo(photos / "car-0" / "0.jpg", seed=999)
    report = build(gallery, list_photos(photos), workers=1)
    assert report.added == 12
    assert described(gallery)["car-0/0.jpg"] == ("audi", 1999, "A")


def test_an_item_is_replaced_by_its_sku_wherever_its_photo_is(gallery, photos):
    build(gallery, write_table(photos, "path,sku\ncar-0/0.jpg,A\ncar-0/1.jpg,B\n"), workers=1)
    build(gallery, write_table(photos, "path,sku\ncar-2/3.jpg,A\n"), workers=1)
    assert described(gallery) == {
        "car-0/1.jpg": (None, None, "B"),
        "car-2/3.jpg": (None, None, "A"),
    }


@pytest.mark.parametrize("batch", [1, 64])
def test_skus_that_were_exchanged_are_exchanged(gallery, photos, monkeypatch, batch):
    monkeypatch.setattr(ingest, "BATCH", batch)
    rows = "path,label,sku\ncar-0/0.jpg,a,{}\ncar-0/1.jpg,b,{}\ncar-0/2.jpg,c,{}\n"
    build(gallery, write_table(photos, rows.format("A", "B", "C")), workers=1)
    vectors = vectors_by_path(gallery)
    report = build(gallery, write_table(photos, rows.format("B", "A", "D")), workers=1)
    assert (report.added, report.updated) == (0, 3)
    assert {name: sku for name, (_, _, sku) in described(gallery).items()} == {
        "car-0/0.jpg": "B",
        "car-0/1.jpg": "A",
        "car-0/2.jpg": "D",
    }
    assert vectors_by_path(gallery) == vectors


def test_an_attribute_of_another_type_is_refused_and_names_the_photo(gallery, photos):
    build(gallery, write_table(photos, "path,year\ncar-0/0.jpg,1999\n"), workers=1)
    for path in ("car-0/0.jpg", "car-0/1.jpg"):
        with pytest.raises(AttributeTypeError, match=r"'year': 'new' is a string.*number"):
            build(gallery, write_table(photos, f"path,year\n{path},new\n"), workers=1)
    assert described(gallery) == {"car-0/0.jpg": (None, 1999, None)}


# Photos that are gone


def test_items_of_photos_that_are_gone_stay_unless_pruning_is_asked(gallery, photos, tmp_path):
    elsewhere = write_photo(tmp_path / "elsewhere" / "0.jpg", seed=901)
    build(gallery, [*list_photos(photos), *list_photos(elsewhere)], workers=1)
    elsewhere.unlink()
    for name in ("0.jpg", "2.jpg"):
        (photos / "car-1" / name).unlink()
    report = build(gallery, list_photos(photos), workers=1)
    assert (report.unchanged, report.removed, len(gallery)) == (10, 0, 13)
    report = build(gallery, list_photos(photos), workers=1, prune=True)
    assert (report.unchanged, report.removed, len(gallery)) == (10, 2, 11)
    left = {each.image for each in gallery.items()}
    assert left == {*photos.resolve().rglob("*.jpg"), elsewhere.resolve()}


def test_pruning_leaves_photos_that_a_table_does_not_list(gallery, photos):
    build(gallery, list_photos(photos), workers=1)
    rows = write_table(photos, "path\ncar-0/0.jpg\n")
    assert build(gallery, rows, workers=1, prune=True).removed == 0
    assert len(gallery) == 12


def test_a_photo_named_twice_is_stored_once_as_said_last(gallery, photos):
    [named] = write_table(photos, "path,label\ncar-0/0.jpg,audi\n")
    report = build(gallery, [*list_photos(photos), named], workers=2)
    assert (report.added, len(gallery)) == (12, 12)
    assert described(gallery)["car-0/0.jpg"][0] == "audi"


def test_no_photo_is_no_work(gallery):
    report = build(gallery, list[Photo](), workers=1)
    assert (report.added, report.unchanged, report.skipped) == (0, 0, [])
