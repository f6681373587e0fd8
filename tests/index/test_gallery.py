from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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

from index import Gallery, Model
from index import metrics as metrics_module
from index.errors import (
    AttributeTypeError,
    DuplicateExternalIdError,
    FilterError,
    GalleryError,
    InvalidArgumentError,
    ItemNotFoundError,
    ModelError,
    ModelMismatchError,
)
from index.gallery import MAX_K
from index.items import KEEP
from tests.index.gallery_items import DIM, ROOT, brute_force, item, items, unit
from tests.tiny_model import make_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture
def gallery(tmp_path, model):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        yield gallery


# The law: a gallery is a dict from path to item, searched by brute force


@dataclass(frozen=True)
class Stored:
    """What the dict holds of an item."""

    id: int
    vector: np.ndarray
    label: str | None
    year: int | None
    sku: str | None


YEARS = st.sampled_from([None, 1999, 2010, 2020])
LABELS = st.sampled_from([None, "audi", "bmw"])
SKUS = st.sampled_from(["s1", "s2", "s3"])

#: Filters and the same in Python.
FILTERS: list[tuple[dict[str, Any] | None, Callable[[Stored], bool]]] = [
    (None, lambda each: True),
    ({}, lambda each: True),
    ({"year": {"gte": 2010}}, lambda each: each.year is not None and each.year >= 2010),
    ({"year": [1999, None]}, lambda each: each.year in (1999, None)),
    ({"label": "audi", "year": 2010}, lambda each: each.label == "audi" and each.year == 2010),
    ({"not": {"label": "bmw"}}, lambda each: each.label != "bmw"),
    ({"any": [{"sku": "s1"}, {"id": {"gt": 5}}]}, lambda each: each.sku == "s1" or each.id > 5),
]


class GalleryMachine(RuleBasedStateMachine):
    """Any series of changes, seen by the writer and by a reader that was opened earlier."""

    #: Few and different directions, so that ties are common and only ties are close.
    palette = unit(5, seed=1)
    directions = st.integers(0, len(palette) - 1)
    names = st.sampled_from([f"{letter}.jpg" for letter in "abcdefgh"])
    batches = st.dictionaries(names, st.tuples(directions, LABELS, YEARS), max_size=6)

    def __init__(self, model: Model, folder: Path) -> None:
        super().__init__()
        self.path = folder / "gallery"
        self.writer = Gallery.create(self.path, model)
        # From now on there is a field `year`.
        first = self.writer.add([item("first.jpg", self.palette[0], attributes={"year": 1})])
        self.writer.remove(first)
        self.reader = Gallery.open(self.path)
        self.stored: dict[str, Stored] = {}
        self.last_id = first[0]

    def teardown(self) -> None:
        self.writer.close()
        self.reader.close()
        shutil.rmtree(self.path.parent)

    def _new(self, batch, skus):
        return [
            item(
                name,
                self.palette[direction],
                label=label,
                attributes={} if year is None else {"year": year},
                sku=skus.get(name),
            )
            for name, (direction, label, year) in batch.items()
        ]

    def _keep(self, batch, skus, ids):
        assert len(ids) == len(batch)
        for item_id, (name, (direction, label, year)) in zip(ids, batch.items(), strict=True):
            assert item_id > self.last_id  # no id is used twice, removed or not
            self.last_id = item_id
            self.stored[name] = Stored(
                item_id, self.palette[direction], label, year, skus.get(name)
            )

    @rule(batch=batches)
    def add_or_replace(self, batch):
        self._keep(batch, {}, self.writer.add(self._new(batch, {})))

    @rule(batch=batches, data=st.data())
    def upsert(self, batch, data):
        skus = dict(zip(batch, data.draw(st.lists(SKUS, unique=True)), strict=False))
        ids = self.writer.upsert(self._new(batch, skus))
        owners = [name for name, each in self.stored.items() if each.sku in skus.values()]
        for name in owners:
            del self.stored[name]
        self._keep(batch, skus, ids)

    @rule(batch=batches, sku=SKUS)
    def add_with_an_external_id(self, batch, sku):
        skus = dict.fromkeys(list(batch)[:1], sku)
        new = self._new(batch, skus)
        owners = {name for name, each in self.stored.items() if each.sku == sku}
        if skus and not owners <= batch.keys():
            with pytest.raises(DuplicateExternalIdError, match=sku):
                self.writer.add(new)
        else:
            self._keep(batch, skus, self.writer.add(new))

    @rule(batch=batches, bad=names)
    def add_with_one_bad_vector(self, batch, bad):
        with pytest.raises(InvalidArgumentError):
            self.writer.add([*self._new(batch, {}), item(bad, 2 * self.palette[0])])

    @precondition(lambda self: self.stored)
    @rule(data=st.data(), label=st.just(KEEP) | LABELS, year=YEARS, sku=st.none() | SKUS)
    def update(self, data, label, year, sku):
        name = data.draw(st.sampled_from(sorted(self.stored)))
        old = self.stored[name]
        change = {"label": label, "attributes": {"year": year}, "external_id": sku}
        if any(each.sku == sku is not None for each in self.stored.values() if each != old):
            with pytest.raises(DuplicateExternalIdError):
                self.writer.update(old.id, **change)
            return
        self.writer.update(old.id, **change)
        self.stored[name] = replace(
            old, label=old.label if label is KEEP else label, year=year, sku=sku
        )

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def remove(self, data):
        names = data.draw(st.sets(st.sampled_from(sorted(self.stored)), min_size=1))
        self.writer.remove([self.stored.pop(name).id for name in sorted(names)])

    @rule(beyond=st.integers(1, 2**70))
    def remove_with_one_unknown(self, beyond):
        known = [each.id for each in self.stored.values()]
        with pytest.raises(ItemNotFoundError, match=str(self.last_id + beyond)):
            self.writer.remove([*known, self.last_id + beyond])

    @rule(
        query=directions,
        k=st.integers(1, 12),
        offset=st.integers(0, 3),
        threshold=st.sampled_from([None, -1, 0, 0.3, 0.99]),
        group_by=st.sampled_from([None, "label", "year", "sku"]),
        filtered=st.sampled_from(FILTERS),
    )
    def search(self, query, k, offset, threshold, group_by, filtered):
        where, matches = filtered
        by_id = {each.id: each for each in self.stored.values() if matches(each)}
        scores = {i: each.vector.astype(np.float64) @ self.palette[query].astype(np.float64)
                  for i, each in by_id.items()}  # fmt: skip
        expected = brute_force(
            {i: each.vector for i, each in by_id.items()}, self.palette[query], 99
        )
        if threshold is not None:
            expected = [i for i in expected if scores[i] >= threshold]
        if group_by is not None:
            groups = {}
            for i in expected:
                groups.setdefault(getattr(by_id[i], group_by), i)
            expected = [i for value, i in groups.items() if value is not None]
        expected = expected[offset : offset + k]
        for gallery in (self.writer, self.reader):
            hits = gallery.search(
                self.palette[query], k, where=where, threshold=threshold, group_by=group_by,
                offset=offset,
            )  # fmt: skip
            assert hits.ids[0].tolist() == expected
            assert np.allclose(hits.scores[0], [scores[i] for i in expected], rtol=0, atol=1e-6)
            assert gallery.count(where) == len(by_id)

    @rule()
    def rebuild(self):
        self.writer.rebuild()

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
        expected = sorted(
            (each.id, name, each.label, each.year, each.sku) for name, each in self.stored.items()
        )
        for gallery in (self.writer, self.reader):
            assert len(gallery) == len(self.stored)
            held = gallery.items()
            assert [
                (each.id, each.path, each.label, each.attributes.get("year"), each.external_id)
                for each in held
            ] == expected
            assert np.array_equal(
                gallery.vectors([each.id for each in held]),
                np.array([self.stored[each.path].vector for each in held]).reshape(-1, DIM),
            )


def test_any_series_of_changes_is_a_dict_searched_exactly(model, tmp_path):
    run_state_machine_as_test(
        lambda: GalleryMachine(model, Path(tempfile.mkdtemp(dir=tmp_path))),
        settings=settings(max_examples=50, stateful_step_count=25, deadline=None),
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


@pytest.mark.parametrize("offset", [-1, 1.5, True, None, MAX_K])
def test_an_offset_out_of_range_is_refused_and_named(gallery, offset):
    with pytest.raises(InvalidArgumentError, match=f"offset is {offset}: .*0 to {MAX_K - 3}"):
        gallery.search(unit(1), 3, offset=offset)


@pytest.mark.parametrize("threshold", [1.01, -2, float("nan"), float("inf"), True, "0.5"])
def test_a_threshold_that_is_no_cosine_is_refused_and_named(gallery, threshold):
    with pytest.raises(InvalidArgumentError, match=f"threshold is {threshold!r}: .*-1 to 1"):
        gallery.search(unit(1), 3, threshold=threshold)


def test_a_group_or_filter_by_an_unknown_field_is_refused_even_in_an_empty_gallery(gallery):
    with pytest.raises(FilterError, match='no field "make"'):
        gallery.search(unit(1), 3, group_by="make")
    with pytest.raises(FilterError, match='no field "make"'):
        gallery.search(unit(1), 3, where={"make": "audi"})


def test_queries_with_fewer_results_than_others_are_padded(gallery):
    vectors = unit(3)
    ids = gallery.add(items(vectors))
    gallery.add(items(vectors[:1], prefix="again-"))
    hits = gallery.search(vectors, 10, threshold=0.999)
    assert hits.ids.tolist() == [[1, 4], [ids[1], -1], [ids[2], -1]]
    assert hits.scores[1:, 1].tolist() == [-np.inf, -np.inf]
    found, scores = hits.row(1)
    assert found.tolist() == [ids[1]]
    assert scores == pytest.approx([1])


def test_there_are_k_groups_however_many_items_of_others_are_nearer(gallery):
    rng = np.random.default_rng(0)
    query = unit(1)[0]
    near = query + 0.05 * rng.normal(size=(600, DIM))
    far = unit(40, seed=1)
    vectors = np.concatenate([near, far]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = ["audi"] * 600 + [f"car-{i % 5}" for i in range(39)] + [None]
    ids = gallery.add([item(f"{i}.jpg", v, label=labels[i]) for i, v in enumerate(vectors)])
    label_of = dict(zip(ids, labels, strict=True))
    for k in (2, 6, 9):
        found = gallery.search(query, k, group_by="label").ids[0].tolist()
        ranking = brute_force(dict(zip(ids, vectors, strict=True)), query, len(ids))
        best = {}
        for item_id in ranking:
            best.setdefault(label_of[item_id], item_id)
        assert found == [best[label] for label in best if label is not None][:k]
        assert len(found) == min(k, 6)


def test_a_filter_sees_each_change_of_an_attribute(gallery):
    [first, second] = gallery.add(
        [item(f"{i}.jpg", v, attributes={"sold": False}) for i, v in enumerate(unit(2))]
    )
    unsold = {"sold": False}
    for gone in (first, second):
        assert gone in gallery.search(unit(1), 5, where=unsold).ids
        gallery.update(gone, attributes={"sold": True})
        assert gone not in gallery.search(unit(1), 5, where=unsold).ids


# Items


def test_adding_nothing_changes_nothing(gallery):
    assert gallery.add([]) == []
    assert len(gallery) == 0


def test_an_error_in_storing_stores_nothing(gallery):
    good, bad = items(unit(2))
    bad.attributes["unheard of"] = object()  # type: ignore[assignment]  # no value that can be kept
    with pytest.raises(AttributeTypeError, match="unheard of"):
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


def test_items_are_found_by_what_is_known_of_them(gallery):
    vectors = unit(3)
    ids = gallery.add(
        [
            item("a.jpg", vectors[0], sku="A-1", label="audi", attributes={"year": 2010}),
            item("b.jpg", vectors[1], sku="B-2", label="bmw", attributes={"year": 2010}),
            item("c.jpg", vectors[2], attributes={"year": 1999, "sold": True}),
        ]
    )
    assert [each.id for each in gallery.get_external(["B-2", "A-1"])] == [ids[1], ids[0]]
    assert gallery.ids_by_external(["A-1", "none"]) == {"A-1": ids[0]}
    assert gallery.fields() == {"year": "number", "sold": "boolean"}
    assert gallery.values("year") == [(2010, 2), (1999, 1)]
    assert gallery.values("label", where={"year": 2010}) == [("audi", 1), ("bmw", 1)]
    assert [each.id for each in gallery.items(where={"year": 2010}, offset=1)] == [ids[1]]
    with pytest.raises(ItemNotFoundError, match="no item with sku 'none'"):
        gallery.get_external(["A-1", "none"])


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
        for change in (
            lambda: reader.add(items(unit(2))),
            lambda: reader.upsert(items(unit(2))),
            lambda: reader.update(first, label="audi"),
            lambda: reader.remove([first]),
            lambda: reader.rebuild(),
            lambda: reader.tune(0.9),
        ):
            with pytest.raises(GalleryError, match="open it writable"):
                change()
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


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"index_kind": "lsh"}, "index kind is 'lsh'"),
        ({"target_recall": 0}, "target recall is 0"),
        ({"target_recall": 1.5}, "target recall is 1.5"),
    ],
)
def test_an_index_that_cannot_be_is_refused_before_anything_is_made(
    tmp_path, model, wanted, message
):
    with pytest.raises(InvalidArgumentError, match=message):
        Gallery.create(tmp_path / "gallery", model, **wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_gallery_is_not_touched_by_a_writer(tmp_path):
    with pytest.raises(GalleryError, match="is not a gallery"):
        Gallery.open(tmp_path, writable=True)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("start", [0.1, 0.3, 0.5, 0.7])
def test_a_catalog_with_garbage_in_its_middle_is_refused_by_what_reads_it(gallery, start):
    ids = gallery.add(items(unit(500)))
    gallery.close()
    catalog = gallery.path / "catalog.sqlite"
    data = bytearray(catalog.read_bytes())
    garbage = slice(int(start * len(data)), int((start + 0.2) * len(data)))
    data[garbage] = b"\xff" * (garbage.stop - garbage.start)
    catalog.write_bytes(data)
    with (
        pytest.raises(GalleryError, match="cannot be read as a catalog"),
        Gallery.open(gallery.path) as opened,
    ):
        opened.get(ids)
        opened.vectors(ids)
        opened.items(limit=500)
        opened.ids_by_sha256(["0" * 64])
        opened.files(ROOT)


def test_a_gallery_of_a_later_format_is_refused(gallery):
    gallery.close()
    database = sqlite3.connect(gallery.path / "catalog.sqlite")
    with database:
        database.execute("UPDATE meta SET value = '3' WHERE key = 'format_version'")
    database.close()
    with pytest.raises(GalleryError, match="format 3; this release reads 2"):
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


def test_evaluate_by_the_index_gives_the_exact_figures_while_the_index_is_exact(gallery):
    rng = np.random.default_rng(6)
    vectors = unit(150, seed=6)
    labels = [f"car-{rng.integers(12)}" for _ in vectors[:-2]] + ["alone", None]
    gallery.add([item(f"{i}.jpg", v, label=labels[i]) for i, v in enumerate(vectors)])
    exact = gallery.evaluate((1, 5, 200))
    live = gallery.evaluate((1, 5, 200), exact=False)
    assert live == replace(exact, protocol="gallery leave-one-out, search by its flat index")
    assert (live.metrics.skipped, live.unlabelled) == (1, 1)


@pytest.mark.parametrize("exact", [True, False])
def test_evaluate_with_a_filter_judges_what_matches_among_itself(gallery, exact):
    vectors = unit(90, seed=7)
    labels = [f"car-{i % 4}" if i % 5 else None for i in range(90)]
    gallery.add(
        [
            item(f"{i}.jpg", v, label=labels[i], attributes={"year": 2000 + i % 3})
            for i, v in enumerate(vectors)
        ]
    )
    kept = [i for i in range(90) if i % 3 == 1 and labels[i] is not None]
    evaluation = gallery.evaluate((1, 3), where={"year": 2001}, exact=exact)
    assert evaluation.metrics == metrics_module.evaluate(
        vectors[kept], [labels[i] for i in kept], ks=(1, 3)
    )
    assert evaluation.unlabelled == 30 - len(kept)
    assert '"year":2001' in evaluation.protocol


def test_equal_vectors_do_not_answer_for_the_query_itself(gallery):
    """With 50 equal vectors a query may be missing from its own results."""
    gallery.add([item(f"{i}.jpg", unit(1)[0], label=f"car-{i % 10}") for i in range(50)])
    exact = gallery.evaluate((1, 4))
    assert gallery.evaluate((1, 4), exact=False).metrics == exact.metrics


def test_clustering_is_no_matter_of_the_index(gallery):
    with pytest.raises(InvalidArgumentError, match="clustering"):
        gallery.evaluate((1,), exact=False, clustering=True)


def test_evaluate_without_labels_asks_for_them(gallery):
    gallery.add(items(unit(3)))
    with pytest.raises(InvalidArgumentError, match=r"no labelled items.*class folders"):
        gallery.evaluate()


@pytest.mark.parametrize("exact", [True, False])
def test_evaluate_without_a_pair_says_so(gallery, exact):
    vectors = unit(2)
    gallery.add([item("a.jpg", vectors[0], label="a"), item("b.jpg", vectors[1], label="b")])
    with pytest.raises(InvalidArgumentError, match="alone in its class"):
        gallery.evaluate(exact=exact)
