from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from index import Gallery, Model, NewItem
from index import metrics as metrics_module
from index.errors import (
    GalleryError,
    InvalidArgumentError,
    ItemNotFoundError,
    ModelError,
    ModelMismatchError,
)
from index.gallery import MAX_K
from tests.tiny_model import make_model_folder

DIM = 8

#: Wherever the photos are said to lie; no file is read in this module.
ROOT = Path("/photos")


def unit(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def item(path: str, vector: np.ndarray, *, root: Path = ROOT, label: str | None = None) -> NewItem:
    return NewItem(
        root=root,
        path=path,
        sha256="0" * 64,
        size=1,
        mtime_ns=1,
        label=label,
        attributes={"name": path},
        vector=vector,
    )


def items(vectors: np.ndarray, *, prefix: str = "") -> list[NewItem]:
    return [item(f"{prefix}{i}.jpg", vector) for i, vector in enumerate(vectors)]


def brute_force(stored: dict[int, np.ndarray], query: np.ndarray, k: int) -> list[int]:
    """Ids by float64 score, descending, then by id."""
    scores = {i: float(v.astype(np.float64) @ query.astype(np.float64)) for i, v in stored.items()}
    return sorted(stored, key=lambda i: (-scores[i], i))[:k]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture
def gallery(tmp_path, model):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        yield gallery


# The law: a gallery is a dict from path to vector, searched exactly


class GalleryMachine(RuleBasedStateMachine):
    """Any series of changes, seen by the writer and by a reader that was opened earlier."""

    #: Few and different directions, so that ties are common and only ties are close.
    palette = unit(5, seed=1)
    names = st.sampled_from([f"{letter}.jpg" for letter in "abcdefgh"])
    batches = st.dictionaries(names, st.integers(0, len(palette) - 1), max_size=6)

    def __init__(self, model: Model, folder: Path) -> None:
        super().__init__()
        self.path = folder / "gallery"
        self.writer = Gallery.create(self.path, model)
        self.reader = Gallery.open(self.path)
        self.stored: dict[str, tuple[int, np.ndarray]] = {}
        self.last_id = 0

    def teardown(self) -> None:
        self.writer.close()
        self.reader.close()
        shutil.rmtree(self.path.parent)

    @rule(batch=batches)
    def add_or_replace(self, batch):
        ids = self.writer.add([item(name, self.palette[v]) for name, v in batch.items()])
        assert len(ids) == len(batch)
        for item_id, (name, v) in zip(ids, batch.items(), strict=True):
            assert item_id > self.last_id  # no id is used twice, removed or not
            self.last_id = item_id
            self.stored[name] = (item_id, self.palette[v])

    @rule(batch=batches, bad=names)
    def add_with_one_bad_vector(self, batch, bad):
        new = [item(name, self.palette[v]) for name, v in batch.items()]
        with pytest.raises(InvalidArgumentError):
            self.writer.add([*new, item(bad, 2 * self.palette[0])])

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def remove(self, data):
        names = data.draw(st.sets(st.sampled_from(sorted(self.stored)), min_size=1))
        self.writer.remove([self.stored.pop(name)[0] for name in sorted(names)])

    @rule(beyond=st.integers(1, 2**70))
    def remove_with_one_unknown(self, beyond):
        known = [item_id for item_id, _ in self.stored.values()]
        with pytest.raises(ItemNotFoundError, match=str(self.last_id + beyond)):
            self.writer.remove([*known, self.last_id + beyond])

    @rule(query=st.integers(0, len(palette) - 1), k=st.integers(1, 12))
    def search(self, query, k):
        stored = dict(self.stored.values())
        expected = brute_force(stored, self.palette[query], k)
        for gallery in (self.writer, self.reader):
            ids, scores = gallery.search(self.palette[query], k)
            assert ids[0].tolist() == expected
            exact = [stored[i].astype(np.float64) @ self.palette[query] for i in expected]
            assert np.allclose(scores[0], exact, rtol=0, atol=1e-6)

    @rule()
    def reopen_writer(self):
        self.writer.close()
        self.writer = Gallery.open(self.path, writable=True)

    @rule()
    def reopen_reader(self):
        self.reader.close()
        self.reader = Gallery.open(self.path)

    @invariant()
    def both_hold_what_the_dict_holds(self):
        by_id = sorted((item_id, name) for name, (item_id, _) in self.stored.items())
        for gallery in (self.writer, self.reader):
            assert len(gallery) == len(self.stored)
            assert [(each.id, each.attributes["name"]) for each in gallery.items()] == by_id


def test_any_series_of_changes_is_a_dict_searched_exactly(model, tmp_path):
    run_state_machine_as_test(
        lambda: GalleryMachine(model, Path(tempfile.mkdtemp(dir=tmp_path))),
        settings=settings(max_examples=60, stateful_step_count=20, deadline=None),
    )


# Searching


def test_an_empty_gallery_finds_nothing(gallery):
    ids, scores = gallery.search(unit(3), 5)
    assert ids.shape == scores.shape == (3, 0)


def test_no_query_has_no_result(gallery):
    gallery.add(items(unit(4)))
    ids, scores = gallery.search(unit(0), 3)
    assert ids.shape == scores.shape == (0, 3)


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1, 10**9, True, 1.5, None, "3"])
def test_a_k_out_of_range_is_refused_and_named(gallery, k):
    with pytest.raises(InvalidArgumentError, match=f"k is {k}: .*1 to {MAX_K}"):
        gallery.search(unit(1), k)


@pytest.mark.parametrize("k", [1, np.int64(2), MAX_K])
def test_a_k_beyond_the_gallery_gives_all_of_it(gallery, k):
    gallery.add(items(unit(2)))
    assert gallery.search(unit(1), k)[0].shape == (1, min(k, 2))


BAD_VECTORS = {
    "NaN": (np.full(DIM, np.nan, np.float32), "length nan"),
    "one NaN": (np.r_[np.nan, unit(1)[0][1:]].astype(np.float32), "length nan"),
    "infinite": (np.r_[np.inf, np.zeros(DIM - 1)].astype(np.float32), "length inf"),
    "zero": (np.zeros(DIM, np.float32), "length 0"),
    "too long": (1.01 * unit(1)[0], "length 1.01"),
    "too short": (0.99 * unit(1)[0], "length 0.99"),
    "of another d": (unit(1)[0][:-1], f"shape .*{DIM - 1}.* holds {DIM} values"),
    "two-dimensional": (unit(DIM), f"holds {DIM} values"),
}


@pytest.mark.parametrize("kind", BAD_VECTORS)
def test_a_bad_vector_is_not_stored_nor_those_beside_it(gallery, kind):
    vector, message = BAD_VECTORS[kind]
    good = items(unit(2))
    with pytest.raises(InvalidArgumentError, match=rf"vector of bad\.jpg has .*{message}"):
        gallery.add([good[0], item("bad.jpg", vector), good[1]])
    assert len(gallery) == 0
    assert gallery.items() == []


@pytest.mark.parametrize("kind", [kind for kind in BAD_VECTORS if kind != "two-dimensional"])
def test_a_bad_query_is_refused_even_beside_good_ones(gallery, kind):
    vector, message = BAD_VECTORS[kind]
    queries = np.stack([unit(1)[0][: len(vector)], vector])
    with pytest.raises(InvalidArgumentError, match=f"the query has .*{message}"):
        gallery.search(queries, 1)


def test_a_float64_vector_is_stored_like_its_float32(gallery):
    vector = unit(1)[0]
    [wide, narrow] = gallery.add([item("a.jpg", vector.astype(np.float64)), item("b.jpg", vector)])
    ids, scores = gallery.search(vector, 2)
    assert ids.tolist() == [[wide, narrow]]
    assert scores[0][0] == scores[0][1]


# Items


def test_adding_nothing_changes_nothing(gallery):
    assert gallery.add([]) == []
    assert len(gallery) == 0


def test_an_error_in_storing_stores_nothing(gallery):
    good, bad = items(unit(2))
    bad.attributes["unheard of"] = object()  # type: ignore[assignment]  # JSON has no such value
    with pytest.raises(TypeError):
        gallery.add([good, bad])
    assert len(gallery) == 0
    assert gallery.add([good]) == [1]  # the gallery goes on


def test_a_removed_id_is_never_given_again(gallery):
    first = gallery.add(items(unit(3)))
    gallery.remove(first)
    second = gallery.add(items(unit(3)))
    assert min(second) > max(first)


def test_ids_as_a_search_gives_them_can_be_removed(gallery):
    gallery.add(items(unit(3)))
    ids, _ = gallery.search(unit(3)[1], 1)
    gallery.remove(ids[0])
    assert [each.image.name for each in gallery.items()] == ["0.jpg", "2.jpg"]


def test_a_photo_is_one_item_whichever_folder_it_was_added_from(gallery):
    vectors = unit(3)
    for vector, root, path in zip(
        vectors,
        [ROOT, ROOT / "audi", ROOT.parent],
        ["audi/1.jpg", "1.jpg", "photos/audi/1.jpg"],
        strict=True,
    ):
        [item_id] = gallery.add([item(path, vector, root=root)])
        assert [each.id for each in gallery.items()] == [item_id]
        assert gallery.search(vector, 5)[0].tolist() == [[item_id]]
        assert gallery.ids_by_path([ROOT / "audi/1.jpg"]) == {ROOT / "audi/1.jpg": item_id}


def test_of_a_photo_given_twice_the_last_stands(gallery):
    vectors = unit(2)
    ids = gallery.add([item("a.jpg", vectors[0]), item("a.jpg", vectors[1])])
    assert [each.id for each in gallery.items()] == [ids[1]]
    assert gallery.search(vectors[1], 5)[0].tolist() == [[ids[1]]]


# Readers and writers


def test_a_reader_sees_each_change_at_its_next_search(gallery):
    vectors = unit(3)
    with Gallery.open(gallery.path) as reader:
        [first] = gallery.add([item("a.jpg", vectors[0])])
        assert reader.search(vectors[0], 5)[0].tolist() == [[first]]
        [second] = gallery.add([item("a.jpg", vectors[1])])
        assert reader.search(vectors[1], 5)[0].tolist() == [[second]]
        gallery.remove([second])
        assert reader.search(vectors[1], 5)[0].tolist() == [[]]


def test_refresh_tells_whether_anything_changed(gallery):
    with Gallery.open(gallery.path) as reader:
        assert not reader.refresh()
        gallery.add(items(unit(1)))
        assert reader.refresh()
        assert not reader.refresh()
    assert not gallery.refresh()  # one's own changes are known


def test_a_reader_cannot_change_anything(gallery):
    [first] = gallery.add(items(unit(1)))
    with Gallery.open(gallery.path) as reader:
        with pytest.raises(GalleryError, match="open it writable"):
            reader.add(items(unit(2)))
        with pytest.raises(GalleryError, match="open it writable"):
            reader.remove([first])
    assert len(gallery) == 1


WRITER = """
import sys
from index import Gallery
with Gallery.open(sys.argv[1], writable=True):
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_and_told_who_is_first(gallery):
    gallery.close()
    first = subprocess.Popen(
        [sys.executable, "-c", WRITER, gallery.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdin is not None and first.stdout is not None
    with first:
        assert first.stdout.readline() == b"writing\n"
        with pytest.raises(GalleryError, match=rf"process {first.pid} .*{gallery.path.name}"):
            Gallery.open(gallery.path, writable=True)
        Gallery.open(gallery.path).close()  # reading is allowed
        first.stdin.close()
    with Gallery.open(gallery.path, writable=True) as second:  # and the lock went with its owner
        second.add(items(unit(1)))


def test_two_writers_in_one_process_are_refused_too(gallery):
    with pytest.raises(GalleryError, match="is being changed by process"):
        Gallery.open(gallery.path, writable=True)


def test_closing_twice_is_harmless(gallery):
    gallery.close()
    gallery.close()


# Creating and opening


def test_a_gallery_opens_as_it_was_closed(gallery):
    vectors = unit(20)
    gallery.add(items(vectors))
    gallery.remove([3, 7])
    before, found = gallery.items(), gallery.search(vectors, 20)
    gallery.close()
    with Gallery.open(gallery.path) as again:
        assert again.items() == before
        for old, new in zip(found, again.search(vectors, 20), strict=True):
            assert np.array_equal(old, new)


def test_a_gallery_needs_its_model_no_more(tmp_path):
    folder = make_model_folder(tmp_path / "model", dim=DIM)
    Gallery.create(tmp_path / "gallery", folder).close()
    shutil.rmtree(folder)
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert gallery.model.card.dim == DIM


def test_a_folder_with_anything_in_it_is_no_place_for_a_new_gallery(tmp_path, model):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("the only copy")
    (tmp_path / "file").write_text("text")
    for name in ("full", "file"):
        with pytest.raises(GalleryError, match=f"{name} exists already"):
            Gallery.create(tmp_path / name, model)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_folder_becomes_a_gallery(tmp_path, model):
    (tmp_path / "gallery").mkdir()
    Gallery.create(tmp_path / "gallery", model).close()
    Gallery.open(tmp_path / "gallery").close()
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda graph: graph.write_bytes(b"other")])
def test_a_create_that_fails_leaves_nothing(tmp_path, damage):
    folder = make_model_folder(tmp_path / "model", dim=DIM)
    model = Model.load(folder)
    damage(folder / "model.onnx")  # after loading, so that it is found late
    with pytest.raises(ModelError):
        Gallery.create(tmp_path / "gallery", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_gallery_with_another_model_in_it_is_refused(gallery):
    gallery.close()
    shutil.rmtree(gallery.path / "model")
    make_model_folder(gallery.path / "model", dim=DIM, seed=1)
    with pytest.raises(ModelMismatchError, match="was built with model"):
        Gallery.open(gallery.path)


def test_a_changed_byte_in_the_model_is_found(gallery):
    gallery.close()
    graph = gallery.path / "model" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ModelError, match="not the file its card describes"):
        Gallery.open(gallery.path)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_what_is_no_gallery_says_how_to_make_one(tmp_path, name):
    with pytest.raises(GalleryError, match=r"is not a gallery: .*`dscl index build"):
        Gallery.open(tmp_path / name)
    assert list(tmp_path.iterdir()) == []  # looking leaves no trace


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 or so", b"text" * 2000])
def test_a_catalog_that_is_no_database_is_refused(gallery, content):
    gallery.close()
    (gallery.path / "catalog.sqlite").write_bytes(content)
    with pytest.raises(GalleryError, match="cannot be read as a catalog"):
        Gallery.open(gallery.path)


@pytest.mark.parametrize("kept", [0.4, 0.9])
def test_a_catalog_cut_off_is_refused(gallery, kept):
    gallery.add(items(unit(500)))
    gallery.close()
    catalog = gallery.path / "catalog.sqlite"
    data = catalog.read_bytes()
    catalog.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(GalleryError, match="cannot be read as a catalog"):
        Gallery.open(gallery.path)


def test_a_catalog_with_garbage_in_its_middle_is_refused(gallery):
    gallery.add(items(unit(500)))
    gallery.close()
    catalog = gallery.path / "catalog.sqlite"
    data = bytearray(catalog.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 3)
    catalog.write_bytes(data)
    with pytest.raises(GalleryError, match="cannot be read as a catalog"):
        Gallery.open(gallery.path)


def test_a_gallery_of_a_later_format_is_refused(gallery):
    gallery.close()
    database = sqlite3.connect(gallery.path / "catalog.sqlite")
    with database:
        database.execute("UPDATE meta SET value = '2' WHERE key = 'format_version'")
    database.close()
    with pytest.raises(GalleryError, match="format 2; this release reads 1"):
        Gallery.open(gallery.path)


def test_a_refused_gallery_can_be_opened_once_it_is_mended(gallery):
    gallery.close()
    (gallery.path / "model").rename(gallery.path / "elsewhere")
    with pytest.raises(ModelError):
        Gallery.open(gallery.path, writable=True)
    (gallery.path / "elsewhere").rename(gallery.path / "model")
    Gallery.open(gallery.path, writable=True).close()  # no lock was left


def test_info_counts(gallery):
    vectors = unit(4)
    gallery.add(
        [item(f"{i}.jpg", vectors[i], label=label) for i, label in enumerate("aab")]
        + [item("3.jpg", vectors[3])]
    )
    info = gallery.info()
    assert (info.items, info.labelled, info.labels, info.dim) == (4, 3, 2, DIM)
    assert (info.model, info.model_sha256) == (gallery.model.card.name, gallery.model.sha256)
    assert info.bytes >= sum(file.stat().st_size for file in (gallery.path / "model").iterdir())


# Evaluation


def test_evaluate_judges_the_labelled_vectors_and_them_alone(gallery):
    rng = np.random.default_rng(5)
    vectors = unit(60, seed=5)
    labels = [None if rng.random() < 0.3 else f"car-{rng.integers(8)}" for _ in vectors]
    ids = gallery.add(
        [
            item(f"{i}.jpg", vector, label=label)
            for i, (vector, label) in enumerate(zip(vectors, labels, strict=True))
        ]
    )
    gallery.remove(ids[:10])
    kept = [i for i in range(10, 60) if labels[i] is not None]
    expected = metrics_module.evaluate(
        vectors[kept], [labels[i] for i in kept], ks=(1, 3, 30), clustering=True
    )
    evaluation = gallery.evaluate((1, 3, 30), clustering=True)
    assert evaluation.metrics == expected
    assert evaluation.unlabelled == 50 - len(kept) > 0
    assert 0 < expected.recall[1] < expected.recall[30]  # the figures tell galleries apart


def test_evaluate_without_labels_asks_for_them(gallery):
    gallery.add(items(unit(3)))
    with pytest.raises(InvalidArgumentError, match=r"no labelled items.*class folders"):
        gallery.evaluate()


def test_evaluate_without_a_pair_says_so(gallery):
    vectors = unit(2)
    gallery.add([item("a.jpg", vectors[0], label="a"), item("b.jpg", vectors[1], label="b")])
    with pytest.raises(InvalidArgumentError, match="alone in its class"):
        gallery.evaluate()


# Crashes

BATCH = 5
ADDED_AT_MOST = 20_000

ADDER = """
import sys
from pathlib import Path
from index import Gallery
from tests.index.test_gallery import ADDED_AT_MOST, BATCH, item, unit
path, seed = Path(sys.argv[1]), int(sys.argv[2])
vectors = unit(ADDED_AT_MOST, seed)
with Gallery.open(path, writable=True) as gallery:
    for start in range(0, len(vectors), BATCH):
        names = [f"{seed}-{n}.jpg" for n in range(start, start + BATCH)]
        ids = gallery.add(list(map(item, names, vectors[start:])))
        print(*ids, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill_at_any_moment(gallery):
    gallery.close()
    moments = random.Random(0)
    acknowledged: set[int] = set()
    vectors: dict[str, np.ndarray] = {}
    for seed in range(10):
        vectors |= {f"{seed}-{n}.jpg": v for n, v in enumerate(unit(ADDED_AT_MOST, seed))}
        with subprocess.Popen(
            [sys.executable, "-c", ADDER, gallery.path, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as adder:
            assert adder.stdout is not None
            lines = [adder.stdout.readline() for _ in range(moments.randint(1, 8))]
            time.sleep(moments.uniform(0, 0.01))  # anywhere within an addition
            adder.kill()
            lines += adder.stdout.read().splitlines()
        new = {int(item_id) for line in lines for item_id in line.split()}
        assert new.isdisjoint(acknowledged)
        acknowledged |= new

        with Gallery.open(gallery.path, writable=True) as again:
            stored = {each.id: vectors[each.image.name] for each in again.items(limit=10**6)}
            assert acknowledged <= stored.keys()
            assert len(again) == len(stored)
            assert len(stored) % BATCH == 0
            for query in unit(3, seed=1000):
                assert again.search(query, 25)[0][0].tolist() == brute_force(stored, query, 25)
    assert len(acknowledged) >= 10 * BATCH
