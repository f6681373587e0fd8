from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index import Gallery, Item, Model, build, list_photos
from index import reembedding as reembedding_module
from index.address import parse_address
from index.copying import copy_gallery
from index.errors import GalleryError, InvalidArgumentError, ModelMismatchError
from index.migrate import MigrateReport, migrate
from tests.index.gallery_items import DIM
from tests.index.gallery_kinds import MILVUS_KINDS, SERVER, drop, lite
from tests.photos import write_class_folders, write_photo
from tests.tiny_model import make_model_folder

REPOSITORY = Path(__file__).parents[2]

OTHER_DIM = DIM + 4

#: Two photos of the gallery that are the same, byte for byte.
COPIES = ["car-0/0.jpg", "car-2/copy.jpg"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_model_folder(root / "old", dim=DIM)
    make_model_folder(root / "new", dim=OTHER_DIM, seed=1)
    make_model_folder(root / "same-dim", dim=DIM, seed=2)
    return root


@pytest.fixture
def new(models) -> Model:
    return Model.load(models / "new")


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_class_folders(tmp_path.resolve() / "photos")


@pytest.fixture
def path(tmp_path, models, photos) -> Path:
    """A gallery of real photos; one is there twice, ids have a gap, and much is known of one."""
    shutil.copyfile(photos / COPIES[0], photos / COPIES[1])
    with Gallery.create(tmp_path / "gallery", models / "old") as gallery:
        build(gallery, list_photos(photos), workers=1)
        gallery.remove([5])
        gallery.update(3, label="golf", external_id="A-1", attributes={"year": 2010})
        gallery.rebuild()
    return tmp_path / "gallery"


def expect_embedded(gallery: Gallery, model: Model) -> None:
    """Every vector is ``model``'s of its photo, and searches go by it."""
    held = gallery.items(limit=1000)
    assert gallery.model.sha256 == model.sha256
    expected = np.concatenate([model.embed(model.prepare(each.image)[None]) for each in held])
    vectors = gallery.vectors([each.id for each in held])
    assert np.allclose(vectors, expected, rtol=0, atol=1e-6)
    scores = gallery.search(expected, len(held)).scores
    assert np.allclose(scores, -np.sort(-expected @ expected.T, axis=1), rtol=0, atol=1e-5)


def items_of(path: Path) -> list[Item]:
    with Gallery.open(path) as gallery:
        return gallery.items(limit=1000)


def stored_bytes(path: Path) -> dict[Path, bytes]:
    """All files, but for the lock and what SQLite keeps beside its file for readers."""
    beside = ("writer.lock", "catalog.sqlite-shm", "catalog.sqlite-wal")
    files = (each for each in sorted(path.rglob("*")) if each.is_file())
    return {each: each.read_bytes() for each in files if each.name not in beside}


def test_all_photos_get_the_new_models_vectors_and_all_else_stays(path, models, new):
    before, old_bytes = items_of(path), stored_bytes(path)
    told, stages = [], []
    report = migrate(
        path,
        new,
        workers=2,
        progress=lambda *count: told.append(count),
        building=lambda stage, share: stages.append(share),
    )
    assert report == MigrateReport(items=12, embedded=12, removed=[], former=report.former)
    assert told == [(1, 12)] * 12
    assert stages[-1] == 1
    assert items_of(path) == before
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, new)
        assert gallery.info().index.stored
        assert gallery.info().dim == OTHER_DIM
    with Gallery.open(report.former) as gallery:
        expect_embedded(gallery, Model.load(models / "old"))
    former = Path(report.former)
    assert {former / file.relative_to(path): data for file, data in old_bytes.items()} == (
        stored_bytes(former)
    )
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == sorted([path.name, former.name, "photos"])


def test_a_migrated_gallery_is_changed_as_any_other(path, new, photos):
    migrate(path, new)
    last = items_of(path)[-1].id
    write_photo(photos / "car-9" / "1.jpg", seed=901)
    with Gallery.open(path, writable=True) as gallery:
        report = build(gallery, list_photos(photos), workers=1)
        assert (report.added, report.unchanged) == (2, 12)  # one is that which was removed
        assert min(each.id for each in gallery.items() if each.path.startswith("car-9")) > last
        expect_embedded(gallery, new)


def test_there_and_back_again(path, models, new):
    migrate(path, new)
    migrate(path, Model.load(models / "old"))
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, Model.load(models / "old"))


@pytest.mark.parametrize("name", ["new", "same-dim"])
def test_an_open_reader_goes_on_with_the_old_model_until_it_reopens(path, models, name):
    old, new = Model.load(models / "old"), Model.load(models / name)
    with Gallery.open(path) as reader:
        before, figures = reader.items(), reader.evaluate((1,))
        migrate(path, new)
        with Gallery.open(path, writable=True) as gallery:  # the new one goes on and is changed
            gallery.remove([gallery.items()[0].id])
            gallery.rebuild()
        reader.refresh()
        reader.settle()
        assert reader.items() == before
        expect_embedded(reader, old)
        assert reader.evaluate((1,)) == figures
    with Gallery.open(path) as reopened:
        assert reopened.items() == before[1:]
        expect_embedded(reopened, new)


LOOK = """
import sys
from index import Gallery
for _ in sys.stdin:
    with Gallery.open(sys.argv[1]) as gallery:
        ids, scores = gallery.search(gallery.vectors([1]), 100)
        print(gallery.model.sha256, len(ids[0]), f"{scores[0, 0]:.4f}", flush=True)
"""


def test_whoever_opens_the_gallery_finds_the_old_or_the_new_one(path, models, new):
    """A process opens it again and again, at every step of the migration."""
    old = Model.load(models / "old")
    looker = subprocess.Popen(
        [sys.executable, "-c", LOOK, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    seen = []

    def look(*_: object) -> None:
        assert looker.stdin is not None and looker.stdout is not None
        looker.stdin.write("\n")
        looker.stdin.flush()
        seen.append(looker.stdout.readline())

    with looker:
        migrate(path, new, workers=1, progress=look, building=look)
        look()
        assert looker.stdin is not None
        looker.stdin.close()
    assert len(seen) > 12
    assert set(seen[:-1]) == {f"{old.sha256} 12 1.0000\n"}
    assert seen[-1] == f"{new.sha256} 12 1.0000\n"


def test_changes_made_meanwhile_are_taken_in(path, new, photos):
    write_photo(photos / "car-9" / "1.jpg", seed=901)
    changed = False

    def change(*_: object) -> None:
        nonlocal changed
        if not changed:
            with Gallery.open(path, writable=True) as gallery:
                build(gallery, list_photos(photos / "car-9"), workers=1)
                gallery.remove([1])
                gallery.update(2, label="changed")
        changed = True

    report = migrate(path, new, progress=change)
    assert report.items == 12
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, new)
        first, second, *_, last = gallery.items()
        assert (first.id, first.label, second.id) == (2, "changed", 3)
        assert last.image == photos / "car-9" / "1.jpg"


# Photos that are no longer what was indexed


def spoil(photos: Path) -> list[Path]:
    gone, changed, broken = (photos / "car-1" / f"{number}.jpg" for number in (1, 2, 3))
    gone.unlink()
    write_photo(changed, seed=999)
    broken.unlink()
    broken.mkdir()
    return [gone, changed, broken]


def test_photos_that_are_lost_stop_it_and_what_was_embedded_is_kept(path, new, photos):
    lost = spoil(photos)
    before = stored_bytes(path)
    with pytest.raises(GalleryError, match=r"3 photos .*--skip-missing") as told:
        migrate(path, new)
    assert all(str(each) in str(told.value) for each in lost)
    assert stored_bytes(path) == before
    for number, each in enumerate(lost):
        if each.is_dir():
            each.rmdir()
        write_photo(each, seed=101 + number)
    assert migrate(path, new).embedded == 3


def test_without_the_lost_photos_their_items_go(path, new, photos):
    before = items_of(path)
    lost = spoil(photos)
    report = migrate(path, new, skip_missing=True)
    assert (report.items, sorted(report.removed)) == (9, sorted(map(str, lost)))
    assert items_of(path) == [each for each in before if each.image not in lost]
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, new)
    assert items_of(Path(report.former)) == before


@pytest.mark.parametrize("lost", COPIES)
def test_a_photo_is_not_lost_while_there_is_a_copy_of_it(path, new, photos, lost):
    """One content, one vector: where the copy is there, the item keeps its place."""
    (photos / lost).unlink()
    report = migrate(path, new)
    assert (report.items, report.removed) == (12, [])
    [one, other] = [each for each in items_of(path) if each.path in COPIES]
    with Gallery.open(path) as gallery:
        assert np.array_equal(*gallery.vectors([one.id, other.id]))


# Stopped and gone wrong


def test_stopped_it_leaves_the_old_gallery_and_goes_on_when_run_again(
    path, new, photos, monkeypatch
):
    monkeypatch.setattr(reembedding_module, "BATCH", 2)
    before = stored_bytes(path)
    done = 0

    def stop(count: int, total: int) -> None:
        nonlocal done
        if (done := done + count) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(path, new, workers=1, progress=stop)
    assert stored_bytes(path) == before
    told = []
    report = migrate(path, new, workers=1, progress=lambda *count: told.append(count))
    assert report.embedded == 12 - 6 - 1  # six were stored, one of them twice
    assert told == [(1, 12)] * 12
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, new)


KILLED = """
import os, signal, sys
from pathlib import Path
from index import Model
from index.migrate import migrate
where, count = sys.argv[3], int(sys.argv[4])

def die(*_):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)

migrate(Path(sys.argv[1]), Model.load(sys.argv[2]), workers=1, **{where: die})
"""


@pytest.mark.parametrize(("where", "count"), [("progress", 1), ("progress", 12), ("building", 1)])
def test_killed_it_leaves_the_old_gallery_and_goes_on_when_run_again(
    path, models, new, where, count
):
    before = stored_bytes(path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, path, models / "new", where, str(count)],
        cwd=REPOSITORY,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert stored_bytes(path) == before
    report = migrate(path, new)
    assert report.items == 12
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, new)
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == sorted([path.name, Path(report.former).name, "photos"])


def test_an_error_while_the_new_gallery_is_made_leaves_the_old_one(path, new, monkeypatch):
    before = stored_bytes(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Model, "copy_to", full)
        with pytest.raises(OSError, match="No space"):
            migrate(path, new)
    assert stored_bytes(path) == before
    assert migrate(path, new).embedded == 0
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, new)


def test_where_folders_cannot_change_places_in_one_step_they_do_in_three(path, new, monkeypatch):
    monkeypatch.setattr(sys, "platform", "other")
    before = items_of(path)
    report = migrate(path, new)
    assert items_of(path) == items_of(Path(report.former)) == before
    with Gallery.open(path) as gallery:
        expect_embedded(gallery, new)


# Refused


def test_a_writer_that_does_not_stop_is_waited_for_in_vain_and_nothing_is_lost(path, new):
    with Gallery.open(path, writable=True) as gallery:
        with pytest.raises(GalleryError, match=f"is being changed by process {os.getpid()}"):
            migrate(path, new)
        assert len(gallery) == 12
    assert migrate(path, new).embedded == 0


def test_what_cannot_be_is_refused_before_anything_is_done(path, tmp_path, models, new):
    former = migrate(path, new).former
    with pytest.raises(InvalidArgumentError, match="nothing to migrate"):
        migrate(path, new)
    shutil.rmtree(path)
    Path(former).rename(path)
    Path(former).mkdir()
    before = {path.parent / each.name for each in path.parent.iterdir()}
    with pytest.raises(GalleryError, match="exists already: move it away"):
        migrate(path, new)
    with pytest.raises(GalleryError, match="is not a gallery"):
        migrate(tmp_path / "nowhere", new)
    with pytest.raises(InvalidArgumentError, match="workers is 0"):
        migrate(path, new, workers=0)
    assert {path.parent / each.name for each in path.parent.iterdir()} == before


def test_two_migrations_at_once_are_refused(path, new):
    def again(*_: object) -> None:
        with pytest.raises(GalleryError, match="is being changed by process"):
            migrate(path, new)

    assert migrate(path, new, progress=again).items == 12


# On Milvus


@pytest.fixture(params=MILVUS_KINDS)
def on_milvus(request, tmp_path, path, monkeypatch) -> Iterator[str]:
    """The same gallery on Milvus."""
    monkeypatch.setenv("DSCL_CACHE", str(tmp_path / "cache"))
    with lite(tmp_path) as file:
        lite_url = f"milvus://{file}/cars"
        server_url = f"milvus://{SERVER}/migrate_{secrets.token_hex(6)}"
        url = server_url if request.param == "server" else lite_url
        copy_gallery(path, parse_address(url))
        yield url
        if request.param == "server":
            drop(url)


def test_on_milvus_the_alias_moves_to_the_new_models_vectors(on_milvus, path, models, new):
    address = parse_address(on_milvus)
    with Gallery.open(on_milvus, writable=True) as opened_before:
        before = items_of(path)
        report = migrate(address, new, workers=2)
        assert report == MigrateReport(items=12, embedded=12, removed=[], former=report.former)
        with Gallery.open(on_milvus) as gallery:
            assert gallery.items(limit=1000) == before
            expect_embedded(gallery, new)
        # Who had it open searches what there was, and changes nothing.
        expect_embedded(opened_before, Model.load(models / "old"))
        with pytest.raises(ModelMismatchError, match="migrated to another model"):
            opened_before.remove([3])
        assert not opened_before.is_at(address)
    with pytest.raises(InvalidArgumentError, match=r"of model .* already"):
        migrate(address, new)


def test_on_milvus_lost_photos_stop_a_migration_that_then_goes_on(
    on_milvus, photos, models, new, monkeypatch
):
    address = parse_address(on_milvus)
    with Gallery.open(on_milvus) as gallery:
        [lost] = [each for each in gallery.items(limit=1000) if each.path == "car-1/1.jpg"]
    data = lost.image.read_bytes()
    lost.image.unlink()
    with pytest.raises(GalleryError, match="1 photos are gone"):
        migrate(address, new)
    with Gallery.open(on_milvus) as gallery:
        expect_model_of(gallery, models / "old", 12)
    report = migrate(address, new, skip_missing=True)
    assert (report.items, report.embedded, report.removed) == (11, 0, [str(lost.image)])
    lost.image.write_bytes(data)
    with Gallery.open(on_milvus) as gallery:
        expect_embedded(gallery, new)
        assert lost.id not in gallery.ids()


def expect_model_of(gallery: Gallery, model: Path, items: int) -> None:
    assert gallery.model.sha256 == Model.load(model).sha256
    assert len(gallery) == items
