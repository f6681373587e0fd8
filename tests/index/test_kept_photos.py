from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index import Gallery, Model, NewItem
from index.care import check, compact, restore, snapshot
from index.files import sha256_bytes
from index.kept_photos import PHOTOS_FOLDER
from index.migrate import migrate
from tests.tiny_model import make_model_folder


def photo_bytes(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def keep(gallery: Gallery, seed: int) -> int:
    """Add a photo that lies in the gallery's own folder."""
    data = photo_bytes(seed)
    root = gallery.path / PHOTOS_FOLDER
    path = f"{sha256_bytes(data)[:2]}/{sha256_bytes(data)}.png"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)
    stamp = (root / path).stat()
    vector = gallery.model.embed(gallery.model.prepare(data)[None])[0]
    [item_id] = gallery.add(
        [
            NewItem(
                root=root,
                path=path,
                sha256=sha256_bytes(data),
                size=stamp.st_size,
                mtime_ns=stamp.st_mtime_ns,
                label=None,
                attributes={},
                vector=vector,
            )
        ]
    )
    return item_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make_model_folder(tmp_path / "model")
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        for seed in range(3):
            keep(gallery, seed)
    (tmp_path / "gallery" / "jobs").mkdir()
    return tmp_path / "gallery"


def check_photos(folder: Path, seeds: list[int]) -> None:
    """The gallery in ``folder`` holds these photos, in files of its own."""
    with Gallery.open(folder) as gallery:
        items = gallery.items()
        assert [item.image.read_bytes() for item in items] == [photo_bytes(s) for s in seeds]
        assert all(item.image.is_relative_to(folder) for item in items)
        assert gallery.ids_by_path([item.image for item in items]) == {
            item.image: item.id for item in items
        }
        stamps = {item.path: (item.size, item.mtime_ns) for item in items}
        assert gallery.files(folder / PHOTOS_FOLDER) == stamps
    report = check(folder, photos=True)
    assert (report.problems, report.notes) == ([], [])


def test_kept_photos_belong_to_the_gallery_and_compacting_leaves_them(folder: Path) -> None:
    check_photos(folder, [0, 1, 2])
    compact(folder)
    check_photos(folder, [0, 1, 2])


def test_a_gallery_that_is_moved_finds_its_photos(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    check_photos(moved, [0, 1, 2])
    with Gallery.open(moved, writable=True) as gallery:
        keep(gallery, 1)  # by its path it is the one that is there
        assert len(gallery) == 3


def test_a_snapshot_has_its_own_photos_and_brings_them_back(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    snapshot(folder, copy)
    with Gallery.open(folder, writable=True) as gallery:
        for item in gallery.items(limit=2):
            gallery.remove([item.id])
            item.image.unlink()
        keep(gallery, 3)
    check_photos(folder, [2, 3])
    check_photos(copy, [0, 1, 2])
    restore(folder, copy)
    check_photos(folder, [0, 1, 2])
    shutil.rmtree(folder)
    restore(folder, copy)
    check_photos(folder, [0, 1, 2])


def test_migrating_takes_the_photos_along(folder: Path, tmp_path: Path) -> None:
    other = Model.load(make_model_folder(tmp_path / "other", seed=1))
    report = migrate(folder, other)
    check_photos(folder, [0, 1, 2])
    check_photos(Path(report.former), [0, 1, 2])
