from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import Gallery, Item, Model
from index.errors import AttributeTypeError, DuplicateExternalIdError
from service import changing
from service.archives import Archive, ArchiveLimits
from service.bulk import CHUNK, add_archive
from service.changing import Description
from service.jobs import JobCancelledError
from service.photo_store import PhotoStore
from tests.service.zips import photo_bytes, zip_of

PLAIN = Description(None, {}, None)


@pytest.fixture
def gallery(tmp_path: Path, model_folder: Path) -> Iterator[Gallery]:
    with Gallery.create(tmp_path / "gallery", model_folder) as gallery:
        yield gallery


def added(gallery: Gallery, files: dict[str, bytes], *, stop_after: int = 10**9) -> dict[str, Any]:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > stop_after

    with Archive(io.BytesIO(zip_of(files)), ArchiveLimits()) as archive:
        return add_archive(
            gallery,
            archive,
            archive.photos(),
            workers=2,
            progress=lambda done, total, stage: None,
            cancelled=cancelled,
        )


def counts(result: dict[str, Any]) -> tuple[int, int, int, int]:
    return result["added"], result["updated"], result["unchanged"], result["skipped"]


def stored_files(gallery: Gallery) -> set[Path]:
    return {path for path in PhotoStore.of(gallery).folder.rglob("*") if path.is_file()}


def check_whole(gallery: Gallery, model_folder: Path) -> list[Item]:
    """Every item has a file of its own with its content and its vector, and no file is left."""
    items = gallery.items(limit=500)
    model = Model.load(model_folder)
    assert {item.image for item in items} == stored_files(gallery)
    assert len({item.image for item in items}) == len(items)
    for item in items:
        [vector] = gallery.vectors([item.id])
        expected = model.embed(model.prepare(item.image.read_bytes())[None])[0]
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    return items


def test_a_zip_becomes_items_and_sent_again_changes_nothing(
    gallery: Gallery, model_folder: Path
) -> None:
    files = {f"{label}/{i}.jpg": photo_bytes(i) for i, label in enumerate(["a", "a", "b"])}
    files["b/again.jpg"] = files["a/0.jpg"]  # the same photo under two labels is two items
    assert counts(added(gallery, files)) == (4, 0, 0, 0)
    items = check_whole(gallery, model_folder)
    assert sorted(item.label or "" for item in items) == ["a", "a", "b", "b"]
    assert counts(added(gallery, files)) == (0, 0, 4, 0)
    assert check_whole(gallery, model_folder) == items


def test_photos_that_cannot_be_used_are_listed_by_the_senders_names_and_leave_no_file(
    gallery: Gallery, model_folder: Path
) -> None:
    files = {"a/ok.jpg": photo_bytes(1), "a/bad.jpg": b"no photo", "b/empty.png": b""}
    result = added(gallery, files)
    assert counts(result) == (1, 0, 0, 2)
    assert {(each["path"], each["code"]) for each in result["problems"]} == {
        ("a/bad.jpg", "image_unreadable"),
        ("b/empty.png", "image_empty"),
    }
    assert str(gallery.path) not in repr(result)
    check_whole(gallery, model_folder)


def test_a_cancelled_job_keeps_what_is_done_and_the_next_goes_on(
    gallery: Gallery, model_folder: Path
) -> None:
    files = {f"{i:03}.jpg": photo_bytes(i) for i in range(CHUNK + 10)}
    with pytest.raises(JobCancelledError):
        added(gallery, files, stop_after=1)
    before = check_whole(gallery, model_folder)
    assert len(before) == CHUNK
    assert counts(added(gallery, files)) == (10, 0, CHUNK, 0)
    after = check_whole(gallery, model_folder)
    assert after[:CHUNK] == before and len(after) == CHUNK + 10


def test_a_sku_of_the_list_replaces_its_item_unless_the_photo_is_the_same(
    gallery: Gallery, model_folder: Path
) -> None:
    def sent(seed: int, year: int) -> tuple[int, int, int, int]:
        table = f"path,label,sku,year\n1.jpg,audi,A1,{year}\n".encode()
        return counts(added(gallery, {"items.csv": table, "1.jpg": photo_bytes(seed)}))

    assert sent(1, 2010) == (1, 0, 0, 0)
    [first] = check_whole(gallery, model_folder)
    assert sent(1, 2011) == (0, 1, 0, 0)
    [same] = check_whole(gallery, model_folder)
    assert (same.id, same.attributes) == (first.id, {"year": 2011})
    assert sent(2, 2011) == (1, 0, 0, 0)
    [other] = check_whole(gallery, model_folder)
    assert other.id != first.id and other.external_id == "A1"


def test_a_photo_that_another_sku_has_becomes_an_item_beside_it(
    gallery: Gallery, model_folder: Path
) -> None:
    one = changing.embed(gallery, photo_bytes(1))
    changing.add(gallery, one, Description("x", {"year": 1}, "A1"))
    table = b"path,sku\n1.jpg,B2\n"
    assert counts(added(gallery, {"items.csv": table, "1.jpg": photo_bytes(1)})) == (1, 0, 0, 0)
    added(gallery, {"1.jpg": photo_bytes(1)})
    first, second, third = check_whole(gallery, model_folder)
    assert (first.external_id, first.attributes) == ("A1", {"year": 1})
    assert (second.external_id, third.external_id) == ("B2", None)


def test_a_photo_the_list_names_but_the_zip_lacks_is_skipped(gallery: Gallery) -> None:
    table = b"path\n1.jpg\ngone.jpg\n"
    result = added(gallery, {"items.csv": table, "1.jpg": photo_bytes(1)})
    assert counts(result) == (1, 0, 0, 1)
    assert result["problems"][0]["path"] == "gone.jpg"


def test_an_item_that_is_refused_leaves_neither_row_nor_file(
    gallery: Gallery, model_folder: Path
) -> None:
    photo = changing.embed(gallery, photo_bytes(1))
    changing.add(gallery, photo, Description("a", {"year": 2010}, "A1"))
    other = changing.embed(gallery, photo_bytes(2))
    with pytest.raises(DuplicateExternalIdError):
        changing.add(gallery, other, Description(None, {}, "A1"))
    for attempt in (changing.add, lambda g, p, d: changing.upsert(g, "A2", p, d)):
        with pytest.raises(AttributeTypeError) as caught:
            attempt(gallery, other, Description(None, {"year": "old"}, None))
        assert str(caught.value).startswith("the photo, attribute 'year'")
    [item] = check_whole(gallery, model_folder)
    assert item.external_id == "A1"


def test_upserting_the_same_photo_keeps_the_id_and_takes_the_new_description(
    gallery: Gallery, model_folder: Path
) -> None:
    photo = changing.embed(gallery, photo_bytes(1))
    first, new = changing.upsert(gallery, "A1", photo, Description("a", {"x": 1, "y": 2}, "A1"))
    assert new
    second, new = changing.upsert(gallery, "A1", photo, Description(None, {"y": 3}, "A1"))
    assert (second.id, second.label, second.attributes, new) == (first.id, None, {"y": 3}, False)
    other = changing.embed(gallery, photo_bytes(2))
    third, new = changing.upsert(gallery, "A1", other, Description("b", {}, "A1"))
    assert third.id != first.id and not new
    assert check_whole(gallery, model_folder) == [third]


def test_a_photo_goes_with_its_item_and_photos_of_others_stay(
    gallery: Gallery, tmp_path: Path, model_folder: Path
) -> None:
    photo = changing.embed(gallery, photo_bytes(1))
    one, two = (changing.add(gallery, photo, PLAIN) for _ in range(2))
    assert one.image != two.image
    changing.remove(gallery, one.id)
    assert check_whole(gallery, model_folder) == [two]
    outside = tmp_path / "mine.jpg"
    outside.write_bytes(photo_bytes(3))
    from index import build, list_photos

    build(gallery, list_photos(outside))
    mine = next(item for item in gallery.items() if item.id != two.id)
    changing.remove(gallery, mine.id)
    assert outside.is_file()


def test_sweeping_removes_what_a_crash_left_and_nothing_else(
    gallery: Gallery, model_folder: Path
) -> None:
    changing.add(gallery, changing.embed(gallery, photo_bytes(1)), PLAIN)
    store = PhotoStore.of(gallery)
    store.put(photo_bytes(1))
    store.put(photo_bytes(2))
    assert len(stored_files(gallery)) == 3
    assert store.sweep(gallery) == 2
    assert len(check_whole(gallery, model_folder)) == 1
