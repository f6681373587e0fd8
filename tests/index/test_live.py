"""The index of a gallery is kept up to date beside the searches, and every trouble is told."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index import Gallery, Model
from index.base_files import current_name, read_base, write_base
from index.errors import GalleryError, InvalidArgumentError
from index.gallery import VECTORS_FOLDER
from index.live import STORED_LEAST
from index.vectors import CHANGES_LEAST, SearchParameters
from tests.index.gallery_items import DIM, brute_force, item, items, unit
from tests.tiny_model import make_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture
def gallery(tmp_path, model):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        yield gallery


def files_of(gallery: Gallery) -> list[Path]:
    return sorted((gallery.path / VECTORS_FOLDER).rglob("*"))


def assert_exact(gallery: Gallery, stored: dict[int, np.ndarray], seed: int = 99) -> None:
    for query in unit(3, seed):
        assert gallery.search(query, 20).ids[0].tolist() == brute_force(stored, query, 20)


# When and where a base is built


def test_a_small_gallery_has_no_files_to_keep(gallery):
    for seed in range(3):
        gallery.add(items(unit(CHANGES_LEAST, seed), prefix=f"{seed}-"))
        gallery.settle()
    assert files_of(gallery) == []
    info = gallery.info().index
    assert (info.stored, info.seq) == (False, 3)
    assert info.base_size > CHANGES_LEAST  # but the base in memory grew


def test_a_larger_one_is_stored_by_itself_and_opened_from_files(gallery):
    vectors = unit(STORED_LEAST)
    ids = gallery.add(items(vectors))
    gallery.settle()
    assert gallery.info().index.stored
    [new] = gallery.add(items(unit(1, seed=1), prefix="new-"))
    gallery.remove(ids[:10])
    gallery.close()
    stored = dict(zip(ids[10:], vectors[10:], strict=True)) | {new: unit(1, seed=1)[0]}
    with Gallery.open(gallery.path) as again:
        info = again.info().index
        assert (info.base_seq, info.base_size, info.delta, info.tombstones, info.seq) == (
            1, STORED_LEAST, 1, 10, 3,
        )  # fmt: skip
        assert_exact(again, stored)


def test_changes_beyond_a_limit_are_built_in_beside_the_searches(gallery):
    """Searches meanwhile, from other threads, always see a whole state."""
    vectors = unit(STORED_LEAST)
    ids = gallery.add(items(vectors))
    gallery.settle()
    before = gallery.info().index.base_seq
    query = unit(1, seed=5)[0]
    # What a search may see: after each of the changes.
    added = np.concatenate([unit(1200, seed=6), np.repeat(query[None], 8, axis=0)])
    stored = dict(zip(ids, vectors, strict=True))
    done, seen = threading.Event(), []

    def search() -> None:
        while not done.is_set():
            seen.append(gallery.search(query, 9).ids[0].tolist())

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    possible = [brute_force(stored, query, 9)]
    for start in range(0, len(added), 151):
        part = added[start : start + 151]
        new = gallery.add(items(part, prefix=f"{start}-"))
        stored |= dict(zip(new, part, strict=True))
        possible.append(brute_force(stored, query, 9))
    gallery.settle()
    done.set()
    for thread in threads:
        thread.join()
    assert len(seen) > 10
    assert all(found in possible for found in seen)
    info = gallery.info().index
    assert info.base_seq > before
    assert len(gallery) == info.base_size + info.delta == len(stored)
    assert_exact(gallery, stored)


def test_closing_stops_a_build_and_the_next_writer_takes_it_up(gallery):
    gallery.add(items(unit(STORED_LEAST)))
    gallery.settle()
    gallery.add(items(unit(STORED_LEAST, seed=1), prefix="new-"))  # a build is due from here on
    gallery.close()
    with Gallery.open(gallery.path, writable=True) as again:
        again.settle()
        assert again.info().index.base_size == 2 * STORED_LEAST
        assert not again.info().index.updating


# Trouble


def test_a_failed_build_is_told_and_tried_again_after_the_next_change(gallery, caplog):
    vectors = unit(STORED_LEAST + 1)
    in_the_way = gallery.path / VECTORS_FOLDER
    in_the_way.write_text("no folder")
    ids = gallery.add(items(vectors[:-1]))
    with pytest.raises(GalleryError, match=r"cannot be written to .*vectors"):
        gallery.settle()
    assert "cannot be written to" in caplog.text
    info = gallery.info().index
    assert "cannot be written to" in str(info.error)
    assert not info.stored
    stored = dict(zip(ids, vectors, strict=False))
    assert_exact(gallery, stored)  # nothing but the files is missing

    in_the_way.unlink()
    ids += gallery.add([item("last.jpg", vectors[-1])])
    gallery.settle()
    info = gallery.info().index
    assert (info.error, info.stored) == (None, True)
    assert_exact(gallery, dict(zip(ids, vectors, strict=True)))


def put(file: Path, data: bytes) -> None:
    """Another file in place of this one, which a process may have mapped into memory."""
    file.unlink()
    file.write_bytes(data)


def cut(file: Path) -> None:
    data = file.read_bytes()
    put(file, data[: len(data) // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    put(file, data)


def empty(file: Path) -> None:
    put(file, b"")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("CURRENT", cut),
        ("CURRENT", empty),
        ("CURRENT", Path.unlink),
        ("manifest.json", flip),
        ("manifest.json", Path.unlink),
        ("ids.npy", cut),
        ("index.faiss", flip),
        ("index.faiss", cut),
        ("index.faiss", Path.unlink),
    ],
)
def test_damaged_index_files_are_told_and_cost_nothing_but_a_build(gallery, caplog, file, damage):
    vectors = unit(1500)
    ids = gallery.add(items(vectors))
    gallery.tune(0.9, kind="hnsw")
    gallery.remove(ids[:1])
    gallery.close()
    [path] = (gallery.path / VECTORS_FOLDER).rglob(file)
    damage(path)
    stored = dict(zip(ids[1:], vectors[1:], strict=True))
    # A reader builds its own, in memory, …
    with Gallery.open(gallery.path) as reader:
        assert_exact(reader, stored)
        assert not reader.info().index.stored
    # … a writer also writes it.
    with Gallery.open(gallery.path, writable=True) as writer:
        assert_exact(writer, stored)
        writer.settle()
        writer.rebuild()
        assert writer.info().index.stored
    if path.name != "CURRENT" or damage is not Path.unlink:  # as if there had been no files
        assert f"{file} " in caplog.text
    base = read_base(gallery.path / VECTORS_FOLDER)
    assert base is not None
    assert base.ids.tolist() == ids[1:]


def test_index_files_of_another_history_are_not_taken(gallery, caplog):
    """A catalog that is older than its index, as after a careless copy."""
    first = unit(20)
    ids = gallery.add(items(first))
    gallery.close()
    backup = (gallery.path / "catalog.sqlite").read_bytes()
    with Gallery.open(gallery.path, writable=True) as writer:
        writer.add(items(unit(5, seed=1), prefix="lost-"))
        writer.rebuild()
    (gallery.path / "catalog.sqlite").write_bytes(backup)
    with Gallery.open(gallery.path) as reader:
        assert_exact(reader, dict(zip(ids, first, strict=True)))
    with Gallery.open(gallery.path, writable=True) as writer:
        other = unit(8, seed=2)
        ids += writer.add(items(other[:4], prefix="other-"))
        ids += writer.add(items(other[4:], prefix="others-"))
    # The new history has gone past the index; nothing is left that could be taken for its own.
    with Gallery.open(gallery.path) as reader:
        assert_exact(reader, dict(zip(ids, np.concatenate([first, other]), strict=True)))
    assert "not of this catalog" in caplog.text


# Readers


def test_a_reader_takes_a_new_base_and_lets_the_old_one_go(gallery):
    vectors = unit(1500)
    ids = gallery.add(items(vectors))
    gallery.rebuild()
    with Gallery.open(gallery.path) as reader:
        old = reader.info().index
        gallery.remove(ids[:100])
        gallery.tune(0.9, kind="hnsw")
        assert len(reader) == 1400  # from the old base
        assert reader.info().index.base_seq == old.base_seq
        reader.settle()
        new = reader.info().index
        assert (new.kind, new.base_size, new.tombstones) == ("hnsw", 1400, 0)
        assert new.base_seq > old.base_seq
        assert_exact(reader, dict(zip(ids[100:], vectors[100:], strict=True)))


def test_a_reader_goes_on_when_a_new_base_is_damaged(gallery, caplog):
    vectors = unit(1200)
    ids = gallery.add(items(vectors))
    gallery.rebuild()
    with Gallery.open(gallery.path) as reader:
        gallery.remove(ids[:100])
        gallery.rebuild()
        [path] = (gallery.path / VECTORS_FOLDER).rglob("vectors.npy")
        cut(path)
        reader.settle()
        assert "vectors.npy is not what was written" in caplog.text
        assert_exact(reader, dict(zip(ids[100:], vectors[100:], strict=True)))
        caplog.clear()
        reader.settle()
        assert caplog.text == ""  # told once
        gallery.rebuild()
        reader.settle()
        assert reader.info().index.base_size == 1100


def test_a_reader_does_not_take_the_index_of_a_gallery_put_in_its_place(gallery, model, tmp_path):
    vectors = unit(40)
    ids = gallery.add(items(vectors))
    gallery.rebuild()
    with Gallery.create(tmp_path / "other", model) as other:
        other.add(items(unit(30, seed=1)))
        other.rebuild()
    stored = dict(zip(ids, vectors, strict=True))
    with Gallery.open(gallery.path) as reader:
        gallery.close()
        gallery.path.rename(tmp_path / "old")
        (tmp_path / "other").rename(gallery.path)
        reader.settle()
        assert_exact(reader, stored)
    with Gallery.open(gallery.path) as reader:
        assert len(reader) == 30


# Recall


def test_the_wish_for_an_index_is_kept(tmp_path, model):
    with Gallery.create(tmp_path / "gallery", model, index_kind="hnsw", target_recall=0.8) as made:
        made.add(items(unit(1100)))
        made.settle()
        info = made.info().index
        assert (info.kind, info.requested, info.target_recall) == ("hnsw", "hnsw", 0.8)
        assert info.recall >= 0.8
        kind = made.tune(0.95, kind="flat")
        assert (kind.kind, kind.requested, kind.target_recall) == ("flat", "flat", 0.95)
    with Gallery.open(tmp_path / "gallery", writable=True) as again:
        again.settle()
        info = again.info().index
        assert (info.kind, info.requested, info.target_recall) == ("flat", "flat", 0.95)


def test_a_wish_that_cannot_be_is_refused_and_changes_nothing(gallery):
    gallery.add(items(unit(20)))
    before = gallery.info().index
    for target, kind in ((0, None), (1.5, None), (0.9, "lsh")):
        with pytest.raises(InvalidArgumentError):
            gallery.tune(target, kind=kind)
    assert gallery.info().index == before


def test_a_recall_that_drifted_is_measured_kept_and_told(gallery, caplog):
    """The base is one whose parameters are too weak for its target, as after a drift."""
    vectors = unit(3000)
    ids = gallery.add(items(vectors))
    gallery.tune(0.999, kind="ivf")
    gallery.close()
    folder = gallery.path / VECTORS_FOLDER
    base = read_base(folder)
    assert base is not None
    assert base.kind == "ivf"
    write_base(folder, replace(base, parameters=SearchParameters(nprobe=1, refine=1)))
    with Gallery.open(gallery.path, writable=True) as again:
        again.settle()
        assert again.info().index.recall >= 0.999  # as measured when it was built
        again.remove(ids[: int(0.09 * len(ids))])
        again.settle()
        assert caplog.text == ""
        with caplog.at_level(logging.WARNING):
            again.remove(ids[int(0.09 * len(ids)) : int(0.12 * len(ids))])
            again.settle()
        measured = again.info().index.recall
        assert measured == again.measure_recall() < 0.999
        assert f"is {measured:.4f}, below its target of 0.999" in caplog.text
        with Gallery.open(gallery.path) as reader:
            assert reader.info().index.recall == measured
        again.rebuild()
        assert again.info().index.recall >= 0.999
        assert current_name(folder) is not None
