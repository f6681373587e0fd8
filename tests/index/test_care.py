from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index import Gallery, Model, build, list_photos
from index.care import CheckReport, check, compact, restore, snapshot
from index.errors import GalleryError, InvalidArgumentError, ModelError, ModelMismatchError
from tests.index.gallery_items import DIM, brute_force, item, items, unit
from tests.photos import write_class_folders
from tests.tiny_model import make_model_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture
def path(tmp_path, model) -> Path:
    """A gallery of 40 made-up items, its index written, in no process's hands."""
    path = tmp_path / "gallery"
    with Gallery.create(path, model) as gallery:
        gallery.add(items(unit(40)))
        gallery.rebuild()
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_class_folders(tmp_path.resolve() / "photos")


@pytest.fixture
def of_photos(tmp_path, model, photos) -> Path:
    """A gallery of real photos."""
    path = tmp_path / "of-photos"
    with Gallery.create(path, model) as gallery:
        build(gallery, list_photos(photos), workers=1)
    return path


def contents(path: Path) -> list[tuple]:
    """All that a gallery holds, vectors included, as it tells when it is opened."""
    with Gallery.open(path) as gallery:
        held = gallery.items(limit=10**6)
        vectors = gallery.vectors([each.id for each in held])
        for vector in vectors[:3]:  # and its searches agree
            stored = dict(zip((each.id for each in held), vectors, strict=True))
            assert gallery.search(vector, 5).ids[0].tolist() == brute_force(stored, vector, 5)
        return [(each, vector.tobytes()) for each, vector in zip(held, vectors, strict=True)]


def stored_bytes(path: Path) -> dict[Path, bytes]:
    """All files, but for the lock and what SQLite keeps beside its file for readers."""
    beside = ("writer.lock", "catalog.sqlite-shm", "catalog.sqlite-wal")
    files = (each for each in sorted(path.rglob("*")) if each.is_file())
    return {each: each.read_bytes() for each in files if each.name not in beside}


def in_catalog(path: Path, *statements: str) -> None:
    """Change a catalog behind the gallery's back."""
    with closing(sqlite3.connect(path / "catalog.sqlite")) as database, database:
        for statement in statements:
            database.execute(statement)


def codes(report: CheckReport) -> list[tuple[str, list[int]]]:
    return [(each.code, each.items) for each in report.problems]


def base_file(path: Path, name: str) -> Path:
    [file] = (path / "vectors").glob(f"base-*/{name}")
    return file


def flip_a_byte(file: Path, at: float = 0.5) -> None:
    """In a file of its own: a snapshot shares its files."""
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.unlink()
    file.write_bytes(data)


# check


def test_a_sound_gallery_has_nothing_to_tell(of_photos):
    told = []
    report = check(of_photos, photos=True, workers=2, progress=lambda *told_: told.append(told_))
    assert (report.items, report.problems, report.notes) == (12, [], [])
    assert told == [(1, 12)] * 12


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a changed byte": lambda path: flip_a_byte(base_file(path, "vectors.npy")),
    "a file cut off": lambda path: os.truncate(base_file(path, "ids.npy"), 100),
    "a file missing": lambda path: base_file(path, "vectors.npy").unlink(),
    "a changed manifest": lambda path: flip_a_byte(base_file(path, "manifest.json")),
    "the base missing": lambda path: shutil.rmtree(base_file(path, "ids.npy").parent),
    "a pointer to nothing": lambda path: (path / "vectors" / "CURRENT").write_text("base\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_files_are_found_and_compact_mends_them(path, damage):
    before = contents(path)
    DAMAGES[damage](path)
    report = check(path)
    assert [code for code, _ in codes(report) if code != "photo_missing"] == ["index_damaged"]
    assert "dscl index compact" in report.problems[0].message
    compact(path)
    assert {code for code, _ in codes(check(path))} == {"photo_missing"}
    assert contents(path) == before


def test_an_index_of_another_catalog_is_found(path, tmp_path):
    snapshot(path, tmp_path / "old")
    with Gallery.open(path, writable=True) as gallery:
        gallery.add(items(unit(1, seed=9), prefix="new-"))
        gallery.rebuild()
    shutil.rmtree(tmp_path / "old" / "vectors")
    shutil.copytree(path / "vectors", tmp_path / "old" / "vectors")
    assert ("index_damaged", []) in codes(check(tmp_path / "old"))


def test_orphans_and_damaged_vectors_are_found(path):
    spoilt = np.full(DIM, np.nan, np.float32).tobytes().hex()
    in_catalog(
        path,
        "DELETE FROM vectors WHERE id = 3",
        "INSERT INTO vectors SELECT 999, vector FROM vectors WHERE id = 1",
        "UPDATE vectors SET vector = substr(vector, 1, 8) WHERE id = 5",
        f"UPDATE vectors SET vector = x'{spoilt}' WHERE id = 7",
    )
    found = [each.message for each in check(path).problems if each.code == "catalog_damaged"]
    for told in (
        "item 3 has no vector",
        "vector 999 has no item",
        "vector 5 has 8",
        "vector 7 has",
    ):
        assert [told in message for message in found].count(True) == 1
    assert len(found) == 4


def test_a_catalog_with_garbage_in_it_is_told_and_does_not_stop_the_check(path, model):
    with Gallery.open(path, writable=True) as gallery:
        gallery.add(items(unit(2000, seed=1), prefix="more-"))
    file = path / "catalog.sqlite"
    data = bytearray(file.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 3)
    file.write_bytes(data)
    flip_a_byte(path / "model" / "model.onnx")
    found = {code for code, _ in codes(check(path))}
    assert {"catalog_damaged", "model_damaged"} <= found


def test_another_model_and_a_damaged_one_are_found(path):
    flip_a_byte(path / "model" / "model.onnx")
    assert ("model_damaged", []) in codes(check(path))
    shutil.rmtree(path / "model")
    make_model_folder(path / "model", dim=DIM, seed=1)
    report = check(path)
    assert ("model_damaged", []) in codes(report)
    assert "put that model back" in report.problems[0].message


def test_photos_that_are_gone_moved_or_changed_are_found(of_photos, photos):
    with Gallery.open(of_photos) as gallery:
        ids = {each.path: each.id for each in gallery.items()}
    (photos / "car-0" / "0.jpg").unlink()
    (photos / "car-0" / "1.jpg").rename(photos / "car-1" / "moved.jpg")
    (photos / "car-0" / "2.jpg").write_bytes(b"another photo")
    flip_a_byte(photos / "car-0" / "3.jpg")  # no other size
    (photos / "car-1" / "0.jpg").unlink()
    (photos / "car-1" / "0.jpg").mkdir()
    in_catalog(of_photos, "UPDATE items SET path = '../photos/car-2/3.jpg' WHERE id = 12")
    quick = [
        ("photo_changed", [ids["car-0/2.jpg"]]),
        ("photo_changed", [ids["car-1/0.jpg"]]),
        ("photo_missing", [ids["car-0/0.jpg"]]),
        ("photo_moved", [ids["car-0/1.jpg"]]),
        ("photo_outside", [12]),
    ]
    assert sorted(codes(check(of_photos))) == quick
    report = check(of_photos, photos=True)
    assert sorted(codes(report)) == sorted([*quick, ("photo_changed", [ids["car-0/3.jpg"]])])
    [moved] = [each.message for each in report.problems if each.code == "photo_moved"]
    assert str(photos / "car-1" / "moved.jpg") in moved


def test_photos_that_are_the_same_are_worth_a_note(of_photos, photos):
    shutil.copyfile(photos / "car-0" / "0.jpg", photos / "car-1" / "copy.jpg")
    shutil.copyfile(photos / "car-0" / "0.jpg", photos / "car-2" / "copy.jpg")
    with Gallery.open(of_photos, writable=True) as gallery:
        build(gallery, list_photos(photos), workers=1)
        paths = {str(each.image): each.id for each in gallery.items()}
    report = check(of_photos)
    assert report.problems == []
    [note] = report.notes
    same = [
        photos / "car-0" / "0.jpg",
        photos / "car-1" / "copy.jpg",
        photos / "car-2" / "copy.jpg",
    ]
    assert (note.code, note.items) == ("duplicate_content", [paths[str(each)] for each in same])


def test_checking_changes_nothing_and_needs_no_writer_to_stop(path):
    shutil.copytree(base_file(path, "ids.npy").parent, path / "vectors" / "base-1-left")
    before = stored_bytes(path)
    with Gallery.open(path, writable=True):
        report = check(path)
    assert [note.code for note in report.notes if note.code != "duplicate_content"] == ["leftover"]
    assert stored_bytes(path) == before
    with pytest.raises(InvalidArgumentError, match="workers is 0"):
        check(path, workers=0)


# compact


def test_compact_gives_space_back_and_changes_no_result(tmp_path, model):
    path = tmp_path / "gallery"
    vectors = unit(3000)
    with Gallery.create(path, model) as gallery:
        ids = gallery.add(
            [item(f"{i}.jpg", vector, attributes={"year": i}) for i, vector in enumerate(vectors)]
        )
        gallery.rebuild()
        gallery.remove(ids[100:])
    shutil.copytree(base_file(path, "ids.npy").parent, path / "vectors" / "base-1-left")
    (path / "notes.txt").write_text("the owner's")
    held = contents(path)
    with Gallery.open(path) as reader:
        found = reader.search(vectors[:20], 10)
        before, after = compact(path)
        assert after < before / 4
        for old, new in zip(found, reader.search(vectors[:20], 10), strict=True):
            assert np.array_equal(old, new)
    assert contents(path) == held
    assert {each.code for each in check(path).notes} == {"duplicate_content"}
    assert (path / "notes.txt").read_text() == "the owner's"


def test_compact_forgets_attributes_that_no_item_has(path):
    with Gallery.open(path, writable=True) as gallery:
        gallery.update(1, attributes={"year": 2010, "colour": "red"})
        gallery.update(1, attributes={"year": None})
    compact(path)
    with Gallery.open(path) as gallery:
        assert gallery.fields() == {"colour": "string"}


@pytest.mark.parametrize("change", [compact, lambda path: restore(path, path)])
def test_what_changes_a_gallery_waits_for_no_other_writer(path, change):
    with Gallery.open(path, writable=True):
        before = stored_bytes(path)
        with pytest.raises(GalleryError, match=f"is being changed by process {os.getpid()}"):
            change(path)
        assert stored_bytes(path) == before


# snapshot


def test_a_snapshot_is_a_gallery_of_its_own(path, tmp_path):
    copy = tmp_path / "deep" / "copy"
    snapshot(path, copy)
    before = contents(path)
    assert contents(copy) == before
    with Gallery.open(copy) as gallery:
        assert gallery.info().index.stored
    for changed, other, gone in ((path, copy, [1, 2]), (copy, path, [3])):
        kept = contents(other)
        with Gallery.open(changed, writable=True) as gallery:
            gallery.remove(gone)
            gallery.add(items(unit(3, seed=5), prefix="new-"))
            gallery.rebuild()
        assert contents(other) == kept != contents(changed)
        assert {code for code, _ in codes(check(other))} == {"photo_missing"}


def test_a_snapshot_overwrites_nothing(path, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("the only copy")
    (tmp_path / "file").write_text("text")
    for name in ("full", "file", "gallery"):
        with pytest.raises(GalleryError, match=f"{name} exists already"):
            snapshot(path, tmp_path / name)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "the only copy"


@pytest.mark.parametrize("damage", ["model", "catalog"])
def test_a_snapshot_that_fails_leaves_nothing(path, tmp_path, damage):
    if damage == "model":
        flip_a_byte(path / "model" / "model.onnx")
    else:
        (path / "catalog.sqlite").write_bytes(b"text" * 2000)
    with pytest.raises(GalleryError):
        snapshot(path, tmp_path / "copy")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["gallery"]


#: Items of a generation. One change replaces all of one by all of the next.
SIZE = 12

PALETTE = unit(5, seed=4)


def generation(number: int) -> list:
    return [
        item(f"{number}-{i}.jpg", PALETTE[(i + number) % len(PALETTE)], sku=f"sku-{i}")
        for i in range(SIZE)
    ]


def write_generations(path: Path) -> None:
    """In a process of its own: one after the other, some with a new index, until killed."""
    with Gallery.open(path, writable=True) as gallery:
        number = 0
        while True:
            number += 1
            gallery.upsert(generation(number))
            if number % 5 == 0:
                gallery.rebuild()
            print(number, flush=True)


def read_states(path: Path) -> None:
    """In a process of its own: tell each state that searches see, until the input is closed."""
    closed = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), closed.set())).start()
    last = None
    with Gallery.open(path) as gallery:
        while not closed.is_set():
            ids = sorted(gallery.search(PALETTE[0], 1000).ids[0].tolist())
            filtered = gallery.search(PALETTE[0], 1000, where={"id": {"gt": 0}}).ids[0].tolist()
            if (state := [ids, sorted(filtered)]) != last:
                print(json.dumps(state), flush=True)
                last = state


def start(call: str, path: Path) -> subprocess.Popen[str]:
    """``call`` of this module, with ``path``, in a process of its own."""
    program = (
        f"import sys, pathlib; from {__name__} import {call}; {call}(pathlib.Path(sys.argv[1]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_snapshots_while_another_process_writes_are_whole_and_in_order(tmp_path, model):
    path = tmp_path / "gallery"
    with Gallery.create(path, model) as gallery:
        gallery.add(generation(0))
        gallery.rebuild()
    writer = start("write_generations", path)
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "1\n"
        numbers = []
        for number in range(15):
            copy = tmp_path / f"copy-{number}"
            acknowledged = int(writer.stdout.readline())
            snapshot(path, copy)
            held = contents(copy)
            assert {each.external_id for each, _ in held} == {f"sku-{i}" for i in range(SIZE)}
            [of] = {int(each.path.split("-")[0]) for each, _ in held}
            assert of >= acknowledged
            numbers.append(of)
            report = check(copy)
            assert {code for code, _ in codes(report)} == {"photo_missing"}
            assert {each.code for each in report.notes} == {"duplicate_content"}  # made up, all one
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.communicate()
    assert numbers == sorted(numbers)
    assert numbers[-1] > numbers[0]


# restore


def test_restore_brings_everything_back_and_gives_no_id_again(path, tmp_path):
    with Gallery.open(path, writable=True) as gallery:
        gallery.update(1, label="audi", attributes={"year": 2010}, external_id="A-1")
    snapshot(path, tmp_path / "copy")
    before = contents(path)
    with Gallery.open(path, writable=True) as gallery:
        gallery.update(1, label="bmw", attributes={"year": None, "sold": True}, external_id="B-2")
        gallery.remove([2, 3])
        last = gallery.add(items(unit(3, seed=5), prefix="new-"))[-1]
        gallery.rebuild()
    restore(path, tmp_path / "copy")
    assert contents(path) == before
    with Gallery.open(path, writable=True) as gallery:
        assert gallery.info().index.stored  # the snapshot's index serves at once
        assert gallery.fields() == {"year": "number"}
        [fresh] = gallery.add([item("after.jpg", unit(1)[0])])
        assert fresh == last + 1
    restore(path, tmp_path / "copy")  # as often as one likes
    assert contents(path) == before


def test_where_there_is_no_gallery_restore_makes_it(path, tmp_path):
    for name in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        restore(tmp_path / name, path)
        assert contents(tmp_path / name) == contents(path)


def test_an_open_reader_sees_what_was_restored_at_its_next_search(path, tmp_path):
    vectors = unit(40)
    snapshot(path, tmp_path / "copy")
    with Gallery.open(path) as reader:
        with Gallery.open(path, writable=True) as gallery:
            gallery.remove(list(range(1, 31)))
            gallery.add(items(unit(3, seed=5), prefix="new-"))
        assert len(reader.search(vectors[0], 100).ids[0]) == 13
        restore(path, tmp_path / "copy")
        stored = dict(zip(range(1, 41), vectors, strict=True))
        found = reader.search(vectors[0], 100).ids[0].tolist()
        assert found == brute_force(stored, vectors[0], 100)
        assert reader.count() == 40


def test_a_reader_in_another_process_sees_whole_states_while_galleries_are_restored(
    tmp_path, model
):
    path = tmp_path / "gallery"
    states = []
    with Gallery.create(path, model) as gallery:
        for number in range(2):
            gallery.upsert(generation(number))
            gallery.rebuild()
            snapshot(path, tmp_path / f"copy-{number}")
            states.append([each.id for each in gallery.items()])
    reader = start("read_states", path)
    assert reader.stdout is not None and reader.stdin is not None
    assert json.loads(reader.stdout.readline()) == [states[1]] * 2
    seen = 1
    for turn in range(12):
        seen = 1 - seen
        restore(path, tmp_path / f"copy-{seen}")
        # Between the two searches of a state the restore may come.
        while (state := json.loads(reader.stdout.readline())) != [states[seen]] * 2:
            assert state == [states[1 - seen], states[seen]], turn
    reader.stdin.close()
    assert reader.wait() == 0


def test_a_restored_gallery_does_not_take_the_index_of_a_history_that_was_replaced(path, tmp_path):
    """The snapshot of a gallery that was itself restored, before its index was written."""
    copy, twice = tmp_path / "copy", tmp_path / "twice"
    snapshot(path, copy)
    shutil.rmtree(copy / "vectors")
    with Gallery.open(path, writable=True) as gallery:
        gallery.remove([1])
        gallery.add(items(unit(1, seed=5), prefix="new-"))
        gallery.rebuild()
    restore(path, copy)  # without an index: that of the replaced history still lies there
    before = contents(path)
    snapshot(path, twice)
    restore(path, twice)
    assert contents(path) == before


def vector_scaled(copy: Path) -> None:
    in_catalog(copy, "UPDATE vectors SET vector = zeroblob(length(vector)) WHERE id = 4")


def vector_missing(copy: Path) -> None:
    in_catalog(copy, "DELETE FROM vectors WHERE id = 4")


def garbage(copy: Path) -> None:
    file = copy / "catalog.sqlite"
    data = bytearray(file.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 3)
    file.write_bytes(data)


def cut_off(copy: Path) -> None:
    file = copy / "catalog.sqlite"
    os.truncate(file, file.stat().st_size * 6 // 10)


@pytest.mark.parametrize("damage", [vector_scaled, vector_missing, garbage, cut_off, shutil.rmtree])
@pytest.mark.parametrize("target", ["gallery", "new"])
def test_a_damaged_snapshot_is_refused_and_nothing_changes(path, tmp_path, damage, target):
    with Gallery.open(path, writable=True) as gallery:
        gallery.add(items(unit(500, seed=2), prefix="many-"))
    copy = tmp_path / "copy"
    snapshot(path, copy)
    damage(copy)
    before, held = stored_bytes(path), contents(path)
    with Gallery.open(path) as reader:
        with pytest.raises(GalleryError):
            restore(tmp_path / target, copy)
        assert not reader.refresh()
    assert stored_bytes(path) == before
    assert contents(path) == held
    assert not (tmp_path / "new").exists()


def test_a_snapshot_with_a_damaged_index_is_restored_without_it(path, tmp_path):
    before = contents(path)
    snapshot(path, tmp_path / "copy")
    flip_a_byte(base_file(tmp_path / "copy", "vectors.npy"))
    with Gallery.open(path, writable=True) as gallery:
        gallery.remove([1])
        gallery.rebuild()
    restore(path, tmp_path / "copy")
    assert contents(path) == before


def test_a_snapshot_with_a_damaged_model_makes_no_gallery(path, tmp_path):
    snapshot(path, tmp_path / "copy")
    flip_a_byte(tmp_path / "copy" / "model" / "model.onnx")
    with pytest.raises(GalleryError, match="not the file its card describes"):
        restore(tmp_path / "new", tmp_path / "copy")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ModelError):
        Gallery.open(tmp_path / "copy")
    Gallery.open(path).close()  # whose file it was a link to


def test_vectors_of_another_model_or_precision_are_not_restored(path, tmp_path):
    other = make_model_folder(tmp_path / "other-model", dim=DIM, seed=1)
    Gallery.create(tmp_path / "other", other).close()
    snapshot(path, tmp_path / "coarse")
    in_catalog(tmp_path / "coarse", "UPDATE meta SET value = 'int8' WHERE key = 'precision'")
    before = contents(path)
    for name in ("other", "coarse"):
        with pytest.raises(ModelMismatchError, match=name):
            restore(path, tmp_path / name)
    assert contents(path) == before
