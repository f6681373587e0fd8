"""The catalog by itself; see ``test_filters`` and ``test_schema`` for their parts of it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.attributes import MAX_INTEGER, RESERVED
from index.catalog import FILE, PROBLEMS_SHOWN, Catalog
from index.errors import (
    AttributeTypeError,
    DuplicateExternalIdError,
    FilterError,
    GalleryError,
    InvalidArgumentError,
    ItemNotFoundError,
    ModelMismatchError,
)
from index.filters import compile_where
from index.items import NewItem
from index.schema import MAX_FIELDS
from tests.index.gallery_items import DIM, unit

MODEL = "a" * 64
OTHER_MODEL = "b" * 64
REPOSITORY = Path(__file__).parents[2]
VECTORS = unit(100)

INJECTION = """x'"; DROP TABLE items; --"""


def create(folder: Path, model: str = MODEL, dim: int = DIM) -> Catalog:
    folder.mkdir(exist_ok=True)
    Catalog.create(folder, model_sha256=model, dim=dim)
    return Catalog(folder, writable=True)


@pytest.fixture
def catalog(tmp_path) -> Iterator[Catalog]:
    with closing(create(tmp_path / "gallery")) as catalog:
        yield catalog


@pytest.fixture
def reader(catalog) -> Iterator[Catalog]:
    with closing(Catalog(catalog.path.parent)) as reader:
        yield reader


def item(number: int, **changed: Any) -> NewItem:
    new = NewItem(
        root=Path("/photos"),
        path=f"{number}.jpg",
        sha256=f"{number:064x}",
        size=number,
        mtime_ns=10 * number,
        label=None,
        attributes={},
        vector=VECTORS[number % len(VECTORS)],
    )
    return replace(new, **changed)


def ids_of(catalog: Catalog) -> list[int]:
    return [each.id for each in catalog.page(offset=0, limit=10_000)]


def contents(catalog: Catalog) -> tuple[Any, ...]:
    """All that a catalog holds, for comparing it with what it held before."""
    items = catalog.page(offset=0, limit=10_000)
    vectors = catalog.vectors([each.id for each in items])
    return catalog.seq(), catalog.fields(), items, vectors.tolist()


def raw(catalog: Catalog) -> closing[sqlite3.Connection]:
    """The database behind the catalog's back."""
    return closing(sqlite3.connect(catalog.path, isolation_level=None))


# What is stored comes back


def test_an_item_comes_back_as_it_was_stored(catalog):
    attributes = {
        "make": "Škoda", "year": 1999, "price": 0.1, "sold": True, "owner": None, "text": "",
        "big": MAX_INTEGER, "small": -MAX_INTEGER, "tiny": 5e-324, "whole": 1.0, "lines": "\x1f\n",
    }  # fmt: skip
    new = item(
        1, path="ü/日本 1.jpg", label="Škoda Octavia", attributes=attributes, external_id="S-1"
    )
    [item_id] = catalog.insert([new])
    [stored] = catalog.get([item_id])
    assert stored.attributes == attributes
    assert [type(value) for value in stored.attributes.values()] == [
        type(value) for value in attributes.values()
    ]
    assert (stored.label, stored.external_id) == ("Škoda Octavia", "S-1")
    assert (stored.root, stored.path) == (Path("/photos"), "ü/日本 1.jpg")
    assert stored.image == Path("/photos/ü/日本 1.jpg")
    assert (stored.sha256, stored.size, stored.mtime_ns) == (f"{1:064x}", 1, 10)
    assert np.array_equal(catalog.vectors([item_id]), [new.vector])


def test_vectors_come_in_the_order_asked_for(catalog):
    ids = catalog.insert([item(number) for number in range(5)])
    wanted = [ids[3], ids[0], ids[3]]
    assert np.array_equal(catalog.vectors(wanted), VECTORS[[3, 0, 3]])
    assert catalog.vectors([]).shape == (0, DIM)
    with pytest.raises(ItemNotFoundError, match="id 99 "):
        catalog.vectors([ids[0], 99])


def test_get_keeps_the_order_and_repeats_of_any_number_of_ids(catalog):
    ids = catalog.insert([item(number) for number in range(2000)])
    wanted = [*reversed(ids), ids[7], ids[7]]
    assert [each.id for each in catalog.get(wanted)] == wanted
    assert catalog.get([]) == []


@pytest.mark.parametrize("unknown", [0, -1, 99, 2**63, -(2**63) - 1, 10**30])
def test_an_id_that_cannot_be_is_not_found_and_named(catalog, unknown):
    [known] = catalog.insert([item(1)])
    for use in (catalog.get, catalog.remove, catalog.vectors):
        with pytest.raises(ItemNotFoundError, match=f"id {unknown} "):
            use([known, unknown])
    with pytest.raises(ItemNotFoundError, match=f"id {unknown} "):
        catalog.update(unknown, label="x")
    assert catalog.labels_of([unknown]) == [None]
    assert len(catalog) == 1


def test_of_many_missing_ids_the_first_are_named(catalog):
    with pytest.raises(ItemNotFoundError, match=r"id 1, 2, 3, 4, 5, … in the gallery"):
        catalog.get(range(1, 1000))


def test_pages_go_through_all_items_by_id(catalog):
    ids = catalog.insert([item(number) for number in range(7)])
    pages = [catalog.page(offset=start, limit=3) for start in range(0, 9, 3)]
    assert [[each.id for each in page] for page in pages] == [ids[:3], ids[3:6], ids[6:]]


def test_files_are_those_of_one_root(catalog):
    elsewhere = Path("/elsewhere")
    catalog.insert([item(1), item(2), item(1, root=elsewhere, size=5)])
    assert catalog.files(Path("/photos")) == {"1.jpg": (1, 10), "2.jpg": (2, 20)}
    assert catalog.files(elsewhere) == {"1.jpg": (5, 10)}
    assert catalog.files(Path("/nowhere")) == {}


def test_ids_by_path_go_by_the_absolute_path_whatever_the_root_was(catalog):
    roots = [Path("/photos"), Path("/photos/audi"), Path("/"), Path("/pho'tos")]
    ids = catalog.insert(
        [
            item(1),
            item(2, root=roots[1]),
            item(3, path="audi/3.jpg"),
            item(4, root=roots[2], path="photos/audi/4.jpg"),
            item(5, root=roots[3]),
        ]
    )
    paths = [
        Path("/photos/1.jpg"),
        Path("/photos/audi/2.jpg"),
        Path("/photos/audi/3.jpg"),
        Path("/photos/audi/4.jpg"),
        Path("/pho'tos/5.jpg"),
    ]
    absent = [
        Path("/photos/2.jpg"),
        Path("/1.jpg"),
        Path("/"),
        Path("/photos/1\0.jpg"),
        Path("1.jpg"),
    ]
    assert catalog.ids_by_path([*absent, *reversed(paths)]) == dict(zip(paths, ids, strict=True))
    assert catalog.ids_by_path([]) == {}


def test_ids_by_hash_give_the_first_item_of_a_content(catalog):
    first, _, third = catalog.insert([item(1), item(2, sha256="f" * 64), item(3, sha256="f" * 64)])
    found = catalog.ids_by_sha256(["f" * 64, f"{1:064x}", "0" * 64, "\ud800", INJECTION])
    assert found == {"f" * 64: third - 1, f"{1:064x}": first}


def test_labelled_leaves_out_what_has_no_label(catalog):
    ids = catalog.insert([item(1, label="a"), item(2), item(3, label="b"), item(4, label="a")])
    found, vectors, labels = catalog.labelled()
    assert found.tolist() == [ids[0], ids[2], ids[3]]
    assert np.array_equal(vectors, VECTORS[[1, 3, 4]])
    assert labels == ["a", "b", "a"]
    assert catalog.label_counts() == (3, 2)


def test_fields_of_items_come_in_order_and_none_for_what_is_not_there(catalog):
    a, b = catalog.insert(
        [
            item(1, label="a", attributes={"sold": True, "n": 1}, external_id="S"),
            item(2, attributes={"n": 0.5}),
        ]
    )
    wanted = [b, 99, a, b]
    assert catalog.labels_of(wanted) == [None, None, "a", None]
    assert catalog.attribute_of(wanted, "label") == [None, None, "a", None]
    assert catalog.attribute_of(wanted, "sku") == [None, None, "S", None]
    assert catalog.attribute_of(wanted, "id") == [b, None, a, b]
    assert catalog.attribute_of(wanted, "n") == [0.5, None, 1, 0.5]
    assert catalog.attribute_of(wanted, "sold")[2] is True
    with pytest.raises(FilterError, match='no field "make"'):
        catalog.attribute_of(wanted, "make")


# Attributes and their types


def test_the_type_of_an_attribute_is_that_of_its_first_value(catalog):
    catalog.insert([item(1, attributes={"make": None, "year": 1, "sold": False})])
    assert catalog.fields() == {"year": "number", "sold": "boolean"}
    [second] = catalog.insert([item(2, attributes={"make": "Audi", "year": 0.5, "sold": None})])
    catalog.update(second, attributes={"price": 3})
    assert catalog.fields() == {
        "year": "number", "sold": "boolean", "make": "string", "price": "number"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("year", "1999", "'1999' is a string, but the gallery's values of it are a number"),
        ("year", True, "True is a boolean, but the gallery's values of it are a number"),
        ("make", 3, "3 is a number, but the gallery's values of it are a string"),
        ("sold", 1, "1 is a number, but the gallery's values of it are a boolean"),
        ("year", ["a"], "a value of type list is none that attributes have"),
        ("new", {"a": 1}, "a value of type dict is none that attributes have"),
        ("new", b"bytes", "a value of type bytes is none that attributes have"),
        ("year", np.int64(3), "a value of type int64 is none that attributes have"),
    ],
)
def test_a_value_of_another_type_is_refused_with_all_beside_it(catalog, name, value, message):
    known = {"make": "Audi", "year": 1, "sold": True}
    [first] = catalog.insert([item(1, attributes=known)])
    before = contents(catalog)
    for store in (catalog.insert, catalog.upsert):
        with pytest.raises(AttributeTypeError) as caught:
            store([item(2, attributes={"fresh": 1}), item(3, attributes={name: value})])
        assert caught.value.code == "attribute_type"
        assert "/photos/3.jpg" in str(caught.value)
        assert f"'{name}'" in str(caught.value)
        assert message in str(caught.value)
    with pytest.raises(AttributeTypeError, match=f"item {first}, attribute '{name}'"):
        catalog.update(first, label="x", attributes={"fresh": 1, name: value})
    assert contents(catalog) == before


def test_two_new_items_that_disagree_about_a_type_are_refused(catalog):
    with pytest.raises(AttributeTypeError, match=r"/photos/2\.jpg, attribute 'year'"):
        catalog.insert([item(1, attributes={"year": 1}), item(2, attributes={"year": "1"})])
    assert (len(catalog), catalog.fields()) == (0, {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "nan is not a finite number"),
        (float("inf"), "inf is not a finite number"),
        (2**63, "beyond 64 bits"),
        (-(2**63), "beyond 64 bits"),
        ("a\0b", "holds a NUL or half a surrogate pair"),
        ("\ud800", "holds a NUL or half a surrogate pair"),
    ],
)
def test_a_value_that_a_database_cannot_hold_is_refused(catalog, value, message):
    [first] = catalog.insert([item(1)])
    before = contents(catalog)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        catalog.insert([item(2), item(3, attributes={"it": value})])
    assert caught.value.code == "invalid_argument"
    assert "/photos/3.jpg, attribute 'it'" in str(caught.value)
    with pytest.raises(InvalidArgumentError, match=message):
        catalog.update(first, attributes={"it": value})
    assert contents(catalog) == before


@pytest.mark.parametrize(
    "name",
    [*RESERVED, "", "x" * 65, 'a"b', "a\\b", "a\nb", "a\0b", "\x7f", "\ud800", 3],
)
@pytest.mark.parametrize("value", ["x", None])
def test_a_name_that_no_attribute_can_have_is_refused(catalog, name, value):
    [first] = catalog.insert([item(1)])
    before = contents(catalog)
    with pytest.raises(InvalidArgumentError, match="attribute"):
        catalog.insert([item(2, attributes={name: value})])
    with pytest.raises(InvalidArgumentError, match="attribute"):
        catalog.update(first, attributes={name: value})
    assert contents(catalog) == before


@pytest.mark.parametrize(
    "name",
    ["x" * 64, "it's", "'; DROP TABLE items; --", "a.b[0]", "$", " ", "日本", "rowid", "%", "A"],
)
def test_any_other_name_is_stored_filtered_and_counted(catalog, name):
    first, _ = catalog.insert([item(1, attributes={name: "v"}), item(2, attributes={"a": "v"})])
    assert catalog.get([first])[0].attributes == {name: "v"}
    assert catalog.fields() == {name: "string", "a": "string"}
    assert catalog.select(compile_where({name: "v"}, catalog.fields())).tolist() == [first]
    assert catalog.values(name) == [("v", 1)]
    assert catalog.attribute_of([first], name) == ["v"]
    assert catalog.integrity() == []


def test_attributes_have_a_limit_in_number(catalog):
    catalog.insert([item(1, attributes={f"a{number}": number for number in range(MAX_FIELDS)})])
    with pytest.raises(InvalidArgumentError, match=f"can have {MAX_FIELDS}"):
        catalog.insert([item(2, attributes={"one more": 1})])
    assert len(catalog) == 1


@pytest.mark.parametrize("field", ["label", "external_id", "path", "root"])
@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_a_database_cannot_hold_is_refused(catalog, field, text):
    value = Path(f"/{text}") if field == "root" else text
    with pytest.raises(InvalidArgumentError, match="holds a NUL or half a surrogate pair"):
        catalog.insert([item(1), item(2, **{field: value})])
    assert len(catalog) == 0


def test_sql_in_any_text_is_text(catalog):
    new = item(
        1,
        root=Path("/photos") / INJECTION.replace("/", ""),
        path=INJECTION,
        label=INJECTION,
        attributes={"make": INJECTION},
        external_id=INJECTION,
        sha256=INJECTION,
    )
    [item_id] = catalog.insert([new])
    catalog.update(item_id, label=INJECTION, attributes={"make": INJECTION})
    assert catalog.get_external([INJECTION]) == {INJECTION: item_id}
    assert catalog.ids_by_path([new.image]) == {new.image: item_id}
    assert catalog.ids_by_sha256([INJECTION]) == {INJECTION: item_id}
    assert catalog.files(new.root) == {INJECTION: (1, 10)}
    for field in ("label", "sku", "make"):
        assert catalog.values(field) == [(INJECTION, 1)]
    for name in ("seq'", INJECTION):
        catalog.set_meta(name, INJECTION)
        assert catalog.meta(name) == INJECTION
    assert len(catalog) == 1


@pytest.mark.parametrize("shape", [(DIM - 1,), (DIM + 1,), (1, DIM), ()])
def test_a_vector_of_another_shape_is_refused_with_all_beside_it(catalog, shape):
    with pytest.raises(
        InvalidArgumentError, match=rf"the vector of /photos/2\.jpg .* {DIM} values"
    ):
        catalog.insert([item(1), item(2, vector=np.ones(shape, np.float32))])
    assert len(catalog) == 0


# External ids


def test_an_external_id_names_one_item(catalog):
    a, b = catalog.insert([item(1, external_id="A"), item(2, external_id="b"), item(3)])[:2]
    wanted = ["A", "b", "a", "", "\0", "\ud800", "A"]
    assert catalog.get_external(wanted) == {"A": a, "b": b}
    assert catalog.get_external([]) == {}


@pytest.mark.parametrize(
    "items",
    [
        [item(2), item(3, external_id="A")],
        [item(2, external_id="B"), item(3, external_id="B")],
        [item(2, external_id="B"), item(2, external_id="B")],
    ],
    ids=["another item's", "twice", "twice for one photo"],
)
def test_an_external_id_that_is_taken_is_refused_with_all_beside_it(catalog, items):
    catalog.insert([item(1, external_id="A")])
    before = contents(catalog)
    with pytest.raises(DuplicateExternalIdError, match=r"the sku '[AB]' belongs to") as caught:
        catalog.insert(items)
    assert caught.value.code == "duplicate_external_id"
    assert contents(catalog) == before


def test_a_photo_given_again_keeps_or_hands_on_its_external_id(catalog):
    [old] = catalog.insert([item(1, external_id="A")])
    [new] = catalog.insert([item(1, external_id="A")])
    assert catalog.get_external(["A"]) == {"A": new}
    assert ids_of(catalog) == [new]
    # The photo that has it gives it up in the same call.
    first, second = catalog.insert([item(1), item(2, external_id="A")])
    assert catalog.get_external(["A"]) == {"A": second}
    assert len({old, new, first, second}) == 4


def test_an_empty_external_id_is_refused(catalog):
    with pytest.raises(InvalidArgumentError, match=r"the sku of /photos/1\.jpg is empty"):
        catalog.insert([item(1, external_id="")])


def test_upsert_replaces_by_external_id_and_by_photo(catalog):
    a, b, c, d = catalog.insert(
        [
            item(1, external_id="A", label="old"),
            item(2, external_id="B"),
            item(3),
            item(4, external_id="D"),
        ]
    )
    known = catalog.seq()
    moved, same, fresh = catalog.upsert(
        [
            item(11, external_id="A", label="new"),  # replaces a: another photo of the same sku
            item(3, external_id="B"),  # replaces b by its sku and c by its photo
            item(5, external_id="E"),
        ]
    )
    assert ids_of(catalog) == [d, moved, same, fresh]
    assert catalog.get_external(["A", "B", "D", "E"]) == {
        "A": moved, "B": same, "D": d, "E": fresh
    }  # fmt: skip
    assert catalog.get([moved])[0].label == "new"
    changes = catalog.changes(known)
    assert changes.ids.tolist() == [moved, same, fresh]
    assert np.array_equal(changes.vectors, VECTORS[[11, 3, 5]])
    assert changes.removed.tolist() == [a, b, c]


def test_upsert_refuses_an_external_id_twice(catalog):
    catalog.insert([item(1, external_id="A")])
    before = contents(catalog)
    with pytest.raises(DuplicateExternalIdError):
        catalog.upsert([item(2, external_id="A"), item(3, external_id="A")])
    assert contents(catalog) == before


def test_of_a_photo_given_twice_the_last_stays_and_the_first_counts_as_removed(catalog):
    [earlier] = catalog.insert([item(0)])
    known = catalog.seq()
    first, last = catalog.insert([item(1, label="first"), item(1, label="last", vector=VECTORS[7])])
    assert ids_of(catalog) == [earlier, last]
    assert catalog.get([last])[0].label == "last"
    assert np.array_equal(catalog.vectors([last]), VECTORS[[7]])
    changes = catalog.changes(known)
    assert (changes.ids.tolist(), changes.removed.tolist()) == ([last], [first])


# Updates


def test_update_merges_attributes_and_none_takes_one_away(catalog):
    [item_id, other] = catalog.insert(
        [item(1, label="a", attributes={"make": "Audi", "year": 1, "owner": None}), item(2)]
    )
    catalog.update(item_id, attributes={"year": None, "sold": True, "never": None})
    [stored] = catalog.get([item_id])
    assert stored.attributes == {"make": "Audi", "owner": None, "sold": True}
    assert stored.label == "a"
    assert catalog.get([other])[0].attributes == {}
    missing = compile_where({"year": {"exists": False}}, catalog.fields())
    assert catalog.select(missing).tolist() == [item_id, other]


def test_update_sets_keeps_and_clears_label_and_external_id(catalog):
    [item_id] = catalog.insert([item(1, label="a", external_id="A")])
    seen = []
    for change in ({"label": "b"}, {"external_id": "B"}, {"label": None}, {"external_id": None}):
        catalog.update(item_id, **change)
        [stored] = catalog.get([item_id])
        seen.append((stored.label, stored.external_id))
    assert seen == [("b", "A"), ("b", "B"), (None, "B"), (None, None)]


def test_update_keeps_id_and_vector_and_is_no_change_of_vectors(catalog, reader):
    [item_id] = catalog.insert([item(1)])
    known, version = reader.changes(0).seq, reader.data_version()
    catalog.update(item_id, label="b", attributes={"year": 1}, external_id="B")
    assert np.array_equal(catalog.vectors([item_id]), VECTORS[[1]])
    changes = reader.changes(known)
    assert changes.seq == known + 1
    assert (len(changes.ids), len(changes.removed), changes.whole) == (0, 0, False)
    assert reader.data_version() != version
    assert reader.get([item_id])[0].label == "b"


def test_update_takes_ids_as_a_search_gives_them(catalog):
    [item_id] = catalog.insert([item(1)])
    catalog.update(np.int64(item_id), label="b")
    assert catalog.get([item_id])[0].label == "b"


def test_update_to_an_external_id_that_is_taken_changes_nothing(catalog):
    a, b = catalog.insert([item(1, external_id="A"), item(2, external_id="B", label="b")])
    before = contents(catalog)
    with pytest.raises(DuplicateExternalIdError, match=f"the sku 'A' belongs to item {a}"):
        catalog.update(b, label="c", external_id="A")
    assert contents(catalog) == before
    catalog.update(b, label="c", external_id="B")  # its own
    assert catalog.get([b])[0].label == "c"


@pytest.mark.parametrize("change", [{"label": 3}, {"label": "\0"}, {"external_id": ""}])
def test_update_refuses_text_that_cannot_be(catalog, change):
    [item_id] = catalog.insert([item(1, label="a")])
    with pytest.raises(InvalidArgumentError, match=f"of item {item_id}"):
        catalog.update(item_id, **change)
    assert catalog.get([item_id])[0].label == "a"


# Removing, and what changed


def test_removing_an_id_twice_in_one_call_is_removing_it(catalog):
    [first, second] = catalog.insert([item(1), item(2)])
    catalog.remove([first, first])
    assert ids_of(catalog) == [second]
    catalog.remove(np.array([second], np.int64))
    assert len(catalog) == 0


def test_changes_are_what_came_and_went_after_a_number(catalog):
    first, second, third = catalog.insert([item(1), item(2), item(3)])
    known = catalog.changes(0)
    assert known.whole
    assert known.ids.tolist() == [first, second, third]
    assert np.array_equal(known.vectors, VECTORS[1:4])

    [replacement] = catalog.insert([item(2, vector=VECTORS[9])])
    catalog.remove([first])
    [passing] = catalog.insert([item(4)])
    catalog.remove([passing])

    later = catalog.changes(known.seq)
    assert later.seq > known.seq
    assert not later.whole
    assert later.ids.tolist() == [replacement]
    assert np.array_equal(later.vectors, VECTORS[[9]])
    assert later.removed.tolist() == [first, second, passing]
    nothing = catalog.changes(later.seq)
    assert (nothing.seq, len(nothing.ids), len(nothing.removed)) == (later.seq, 0, 0)
    assert nothing.vectors.shape == (0, DIM)


def test_the_data_version_tells_of_other_connections_only(catalog, reader):
    mine, theirs = catalog.data_version(), reader.data_version()
    catalog.insert([item(1)])
    assert catalog.data_version() == mine
    assert reader.data_version() != theirs


def test_a_setting_is_read_by_others_and_is_no_change_of_items(catalog, reader):
    seq = catalog.seq()
    catalog.set_meta("recall", "0.99")
    assert (reader.meta("recall"), reader.seq()) == ("0.99", seq)
    assert reader.meta("never", "default") == "default"
    with pytest.raises(GalleryError, match="has no 'never'"):
        reader.meta("never")


# One moment


def everything(catalog: Catalog) -> tuple[Any, ...]:
    """What each of the reading methods says, of the items that are there."""
    ids = ids_of(catalog)
    return (
        catalog.seq(), len(catalog), ids, catalog.fields(), catalog.labels_of(ids),
        catalog.vectors(ids).tolist(), catalog.get(ids), catalog.changes(0).ids.tolist(),
        catalog.changes(0).seq, catalog.changes(1).seq, catalog.labelled()[2],
        catalog.values("label"), catalog.label_counts(), catalog.files(Path("/photos")),
        catalog.ids_by_path([Path("/photos/1.jpg"), Path("/photos/2.jpg")]),
        catalog.get_external(["A", "B"]), catalog.integrity(),
    )  # fmt: skip


def test_a_view_is_of_one_moment_while_another_connection_writes(catalog, reader):
    first, second = catalog.insert([item(1, label="a", external_id="A"), item(2, label="b")])
    with reader.view():
        before = everything(reader)
        catalog.upsert([item(3, label="c", external_id="A", attributes={"new": 1})])
        catalog.remove([second])
        with reader.view():  # joins
            assert everything(reader) == before
        assert everything(reader) == before
        assert catalog.get_external(["A"]) != {"A": first}
    assert everything(reader) == everything(catalog) != before


def test_a_view_that_fails_ends_and_the_next_sees_what_is_new(catalog, reader):
    catalog.insert([item(1)])
    with pytest.raises(RuntimeError, match="inside"), reader.view():
        assert len(reader) == 1
        catalog.insert([item(2)])
        raise RuntimeError("inside")
    assert len(reader) == 2


def test_views_see_whole_changes_of_another_process(catalog, reader):
    """A process replaces the items again and again; each view finds the labels of one change."""
    catalog.insert([item(number, label="0") for number in range(5)])
    catalog.close()  # the other process writes
    program = (
        "import sys, pathlib; from tests.index.test_catalog import write_labels;"
        "write_labels(pathlib.Path(sys.argv[1]))"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(catalog.path.parent)],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE,
    )  # fmt: skip
    seen = set()
    try:
        while len(seen) < 20:
            assert writer.poll() is None, "the writer ended by itself"
            with reader.view():
                ids = ids_of(reader)
                labels = reader.labels_of(ids)
                where = compile_where({"label": labels[0]}, reader.fields())
                assert reader.select(where).tolist() == ids
                assert reader.vectors(ids).shape == (5, DIM)
                assert reader.seq() == 1 + int(str(labels[0]))
            assert len(set(labels)) == 1
            # Methods that ask twice are of one moment by themselves.
            [(label, count)] = reader.values("label")
            assert (label is None, count) == (False, 5)
            seen.add(labels[0])
    finally:
        writer.communicate(b"")  # closes its input, upon which it ends
    assert writer.returncode == 0


def write_labels(folder: Path) -> None:
    """Store the same five photos anew with labels 1, 2, 3, … until the input is closed."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with closing(Catalog(folder, writable=True)) as catalog:
        label = 0
        while not ended.is_set():
            label += 1
            catalog.insert([item(number, label=str(label)) for number in range(5)])


def test_a_catalog_serves_several_threads(catalog):
    """Readers in threads share the writer's connection and see whole changes all the same."""
    catalog.insert([item(number, label="0") for number in range(5)])
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(50):
                with catalog.view():
                    labels = catalog.labels_of(ids_of(catalog))
                    assert len(labels) == 5
                    assert len(set(labels)) == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for label in range(1, 15):
        catalog.insert([item(number, label=str(label)) for number in range(5)])
    for thread in threads:
        thread.join()
    assert failures == []


# Taking over another content


def filled(folder: Path, model: str = MODEL) -> Catalog:
    """Another catalog: ids 1 and 3 are there, 2 and 4 were removed."""
    catalog = create(folder, model)
    catalog.insert(
        [
            item(11, label="a", attributes={"year": 1}, external_id="A", root=Path("/other")),
            item(12),
            item(13, attributes={"year": 2}),
            item(14),
        ]
    )
    catalog.remove([2, 4])
    catalog.set_meta("index_kind", "ivf")
    return catalog


def test_replaced_content_is_the_others_and_readers_start_anew(catalog, reader, tmp_path):
    catalog.insert([item(number, attributes={"make": "x"}) for number in range(7)])
    catalog.insert([item(20)])
    known = reader.changes(0)
    with closing(filled(tmp_path / "other")) as other:
        shift = catalog.replace_content(other.path)
        assert shift == known.seq + 1
        assert reader.seq() == catalog.seq() == shift + other.seq()
        assert reader.page(offset=0, limit=10) == other.page(offset=0, limit=10)
        assert reader.fields() == other.fields() == {"year": "number"}
        assert reader.meta("index_kind") == "ivf"
        assert reader.meta("floor") == str(shift)
    assert reader.integrity() == []
    for since in (0, 1, known.seq, shift - 1):
        changes = reader.changes(since)
        assert changes.whole
        assert (changes.ids.tolist(), changes.removed.tolist()) == ([1, 3], [])
        assert np.array_equal(changes.vectors, VECTORS[[11, 13]])
    # Of a number that the new history knows, the changes since.
    changes = reader.changes(shift + 1)
    assert not changes.whole
    assert (changes.ids.tolist(), changes.removed.tolist()) == ([], [2, 4])
    # Ids that either history gave are not given again.
    assert catalog.insert([item(30)]) == [9]
    assert compile_where({"year": 2}, catalog.fields()).values == (2,)
    assert catalog.select(compile_where({"year": 2}, catalog.fields())).tolist() == [3]
    assert catalog.get_external(["A"]) == {"A": 1}
    assert catalog.ids_by_path([Path("/other/11.jpg")]) == {Path("/other/11.jpg"): 1}


def test_ids_go_on_after_the_higher_of_both_even_in_a_new_catalog(catalog, tmp_path):
    with closing(filled(tmp_path / "other")) as other:
        other.remove([1, 3])
        catalog.replace_content(other.path)
    assert len(catalog) == 0
    [item_id] = catalog.insert([item(1)])
    assert item_id == 5
    catalog.remove([item_id])


def test_content_can_be_replaced_again_and_again(catalog, reader, tmp_path):
    with closing(filled(tmp_path / "other")) as other:
        for _ in range(3):
            known = catalog.seq()
            catalog.insert([item(1)])
            shift = catalog.replace_content(other.path)
            assert shift > known
            assert reader.changes(known).whole
            assert ids_of(reader) == [1, 3]


def test_a_view_goes_on_with_the_content_it_began_with(catalog, reader, tmp_path):
    catalog.insert([item(1, label="mine")])
    with closing(filled(tmp_path / "other")) as other, reader.view():
        before = everything(reader)
        catalog.replace_content(other.path)
        assert everything(reader) == before
    assert ids_of(reader) == [1, 3]


def test_content_of_another_model_is_refused(catalog, tmp_path):
    catalog.insert([item(1)])
    before = contents(catalog)
    filled(tmp_path / "other", OTHER_MODEL).close()
    with pytest.raises(ModelMismatchError, match=r"holds vectors of model bbbbbbbbbbbb…"):
        catalog.replace_content(tmp_path / "other" / FILE)
    assert contents(catalog) == before


def test_content_that_is_damaged_is_refused_and_nothing_replaced(catalog, tmp_path):
    catalog.insert([item(1, attributes={"make": "x"})])
    before = contents(catalog)
    with closing(filled(tmp_path / "other")) as other:
        other.insert([item(number, label="x" * 100) for number in range(100, 400)])
        other.checkpoint()
    damage(other.path, page_of(other.path, "vectors"))
    with pytest.raises(GalleryError):
        catalog.replace_content(other.path)
    assert contents(catalog) == before
    assert catalog.integrity() == []


def test_vectors_of_another_model_replace_all_and_nothing_else(catalog, reader):
    ids = catalog.insert([item(number, label=str(number)) for number in range(5)])
    items, seq = catalog.get(ids), catalog.seq()
    longer = np.hstack([VECTORS, VECTORS]) / np.sqrt(np.float32(2))
    batches = [(ids[3:], longer[3:5]), (np.array(ids[:3]), longer[:3].astype(np.float64))]
    catalog.replace_vectors(batches, model_sha256=OTHER_MODEL, dim=2 * DIM)
    assert (catalog.dim, catalog.meta("dim"), catalog.meta("model_sha256")) == (
        2 * DIM, str(2 * DIM), OTHER_MODEL
    )  # fmt: skip
    assert np.array_equal(catalog.vectors(ids), longer[:5])
    assert (catalog.get(ids), catalog.seq()) == (items, seq)
    assert catalog.integrity() == []


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([([1, 2], VECTORS[:2])], GalleryError, "1 of 3 items got no vector"),
        ([], GalleryError, "3 of 3 items got no vector"),
        ([([1, 2, 3], VECTORS[:2])], InvalidArgumentError, "for 3 items"),
        ([([1, 2, 3], VECTORS[:3, 1:])], InvalidArgumentError, "expected"),
        ([([1, 2, 3], VECTORS[:3]), ([4], VECTORS[:1])], ItemNotFoundError, "id 4 "),
    ],
)
def test_vectors_are_all_replaced_or_none(catalog, batches, error, message):
    catalog.insert([item(number) for number in range(3)])
    before = contents(catalog)
    with pytest.raises(error, match=message):
        catalog.replace_vectors(batches, model_sha256=OTHER_MODEL, dim=DIM)
    assert contents(catalog) == before
    assert (catalog.meta("model_sha256"), catalog.dim) == (MODEL, DIM)


# Care


def test_a_backup_is_of_one_moment_and_a_catalog_of_its_own(catalog, reader, tmp_path):
    catalog.insert([item(1, label="a", attributes={"year": 1}, external_id="A"), item(2)])
    (tmp_path / "copy").mkdir()
    before = contents(catalog)
    with reader.view():
        assert len(reader) == 2
        catalog.insert([item(3)])
        reader.backup(tmp_path / "copy" / FILE)
    with closing(Catalog(tmp_path / "copy", writable=True)) as copy:
        assert contents(copy) == before
        assert copy.integrity() == []
        copy.remove([1])
    assert len(catalog) == 3


def test_a_backup_to_where_nothing_can_be_written_is_refused(catalog, tmp_path):
    target = tmp_path / "no folder" / FILE
    with pytest.raises(GalleryError, match=f"cannot be copied to {target}: unable to open"):
        catalog.backup(target)


def test_vacuum_gives_space_back_and_forgets_attributes_that_nobody_has(catalog):
    ids = catalog.insert(
        [item(number, label="x" * 1000, attributes={"make": "x"}) for number in range(300)]
    )
    [kept] = catalog.insert([item(1000, attributes={"year": 1, "owner": None})])
    catalog.checkpoint()
    size = catalog.path.stat().st_size
    catalog.remove(ids)
    assert catalog.fields() == {"make": "string", "year": "number"}
    catalog.vacuum()
    catalog.checkpoint()
    assert catalog.path.stat().st_size < size / 2
    assert catalog.fields() == {"year": "number"}
    catalog.update(kept, attributes={"make": 3})  # of another type than it once had
    assert catalog.select(compile_where({"make": 3}, catalog.fields())).tolist() == [kept]
    assert catalog.integrity() == []


def test_a_checkpoint_leaves_no_log(catalog):
    log = catalog.path.with_name(f"{FILE}-wal")
    catalog.insert([item(1)])
    assert log.stat().st_size > 0
    catalog.checkpoint()
    assert log.stat().st_size == 0
    assert len(catalog) == 1


# Damage


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM vectors WHERE id = 2", "item 2 has no vector."),
        ("DELETE FROM items WHERE id = 2", "vector 2 has no item."),
        ("UPDATE vectors SET vector = x'00' WHERE id = 2", "vector 2 has 1 bytes, expected 32."),
        (f"UPDATE vectors SET vector = zeroblob({4 * DIM}) WHERE id = 2", "vector 2 has length 0,"),
        ("UPDATE vectors SET vector = :nan WHERE id = 2", "vector 2 has length nan, expected 1."),
        ("UPDATE vectors SET vector = :long WHERE id = 2", "vector 2 has length 2, expected 1."),
    ],
)
def test_integrity_names_what_is_wrong_with_a_row(catalog, statement, problem):
    catalog.insert([item(number) for number in range(1, 4)])
    assert catalog.integrity() == []
    nan = np.where(np.arange(DIM) == 3, np.nan, VECTORS[2]).astype(np.float32)
    with raw(catalog) as database:
        values = {"nan": nan.tobytes(), "long": (2 * VECTORS[2]).tobytes()}
        database.execute(statement, {key: values[key] for key in values if f":{key}" in statement})
    [found] = catalog.integrity()
    assert found.startswith(problem)


def test_integrity_tells_the_first_of_many_problems(catalog):
    catalog.insert([item(number) for number in range(100)])
    with raw(catalog) as database:
        database.execute("UPDATE vectors SET vector = x'00'")
    assert len(catalog.integrity()) == PROBLEMS_SHOWN


@pytest.mark.parametrize("table", ["items", "vectors", "items_by_label"])
def test_integrity_finds_a_page_that_was_overwritten(catalog, table):
    catalog.insert([item(number, label=f"{number}" * 30) for number in range(300)])
    catalog.checkpoint()
    catalog.close()
    damage(catalog.path, page_of(catalog.path, table))
    with closing(Catalog(catalog.path.parent)) as damaged:
        problems = damaged.integrity()
    assert problems
    assert all(each.startswith("the database is damaged: ") for each in problems)


def test_a_vector_cut_short_is_told_and_not_searched(catalog):
    catalog.insert([item(1), item(2)])
    with raw(catalog) as database:
        database.execute("UPDATE vectors SET vector = x'00' WHERE id = 2")
    for read in (lambda: catalog.vectors([2]), lambda: catalog.changes(0)):
        with pytest.raises(GalleryError, match=f"has not {DIM} values: the catalog is damaged"):
            read()


def page_of(path: Path, name: str) -> int:
    """The number of a page with rows of a table or an index, not its first."""
    with closing(sqlite3.connect(path)) as database:
        [(root,)] = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,))
        [(size,)] = database.execute("PRAGMA page_size")
    data = path.read_bytes()
    page = data[(root - 1) * size : root * size]
    assert page[0] in (2, 5), "more rows than one page holds"
    return int.from_bytes(page[8:12], "big")  # the page after the last cell's key


def damage(path: Path, page: int) -> None:
    with closing(sqlite3.connect(path)) as database:
        [(size,)] = database.execute("PRAGMA page_size")
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def test_a_full_disk_is_told_and_stores_nothing(catalog):
    [first] = catalog.insert([item(1)])
    connection = catalog._database.connection
    [(pages,)] = connection.execute("PRAGMA page_count").fetchall()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(GalleryError, match=r"cannot be changed: .* full"):
        catalog.insert([item(number, label="x" * 1000) for number in range(2, 100)])
    assert ids_of(catalog) == [first]
    catalog.remove([first])  # the catalog goes on
    assert len(catalog) == 0


@pytest.mark.parametrize("key", ["dim", "format_version"])
def test_a_catalog_without_a_setting_it_needs_is_refused(catalog, key):
    catalog.close()
    with raw(catalog) as database:
        database.execute("DELETE FROM meta WHERE key = ?", (key,))
    for writable in (False, True):
        with pytest.raises(GalleryError, match=f"no '{key}': the catalog is incomplete"):
            Catalog(catalog.path.parent, writable=writable)


@pytest.mark.parametrize("content", [b"", b"no database at all " * 1000])
def test_a_file_that_is_no_catalog_is_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    for writable in (False, True):
        with pytest.raises(GalleryError, match="cannot be read as a catalog"):
            Catalog(tmp_path, writable=writable)


# Reading only


def test_a_reader_cannot_change_anything(catalog, reader):
    [first] = catalog.insert([item(1)])
    before = contents(catalog)
    for change in (
        lambda: reader.insert([item(2)]),
        lambda: reader.upsert([item(2)]),
        lambda: reader.update(first, label="x"),
        lambda: reader.remove([first]),
        lambda: reader.set_meta("seq", "99"),
        lambda: reader.replace_vectors([], model_sha256=MODEL, dim=DIM),
        lambda: reader.replace_content(catalog.path),
        reader.vacuum,
        reader.checkpoint,
    ):
        with pytest.raises(GalleryError, match="is open for reading: open it writable"):
            change()
    assert contents(catalog) == before


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


def where_the_folder_is_read_only(folder: Path, call: str, *paths: Path) -> subprocess.Popen[str]:
    """Start ``call`` of this module in a process for which alone the folder is read-only."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None:
        pytest.skip("no `unshare` here: no folder can be made read-only for root")
    possible = subprocess.run([*unshare, READ_ONLY, "sh", folder], capture_output=True, text=True)
    if possible.returncode:
        pytest.skip(f"no folder can be made read-only: {possible.stderr.strip()}")
    program = (
        f"import sys, pathlib; from {__name__} import {call};"
        f"{call}(*map(pathlib.Path, sys.argv[1:]))"
    )
    start = f'{READ_ONLY} && exec "{sys.executable}" -c "{program}" "$@"'
    return subprocess.Popen(
        [*unshare, start, "sh", folder, *paths],
        cwd=REPOSITORY, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_read_only_folder_is_read_and_backed_up(catalog, tmp_path):
    catalog.insert([item(1, label="a", attributes={"year": 1}), item(2, label="b")])
    catalog.close()
    assert not catalog.path.with_name(f"{FILE}-wal").exists()
    (tmp_path / "copy").mkdir()
    process = where_the_folder_is_read_only(
        catalog.path.parent, "read_a_read_only_folder", tmp_path / "copy"
    )
    _, said = process.communicate()
    assert process.returncode == 0, said


def read_a_read_only_folder(folder: Path, target: Path) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (folder / "file").write_text("")
    with closing(Catalog(folder)) as catalog:
        before = contents(catalog)
        assert [each.label for each in before[2]] == ["a", "b"]
        with catalog.view():
            assert catalog.select(compile_where({"year": 1}, catalog.fields())).tolist() == [1]
        assert catalog.labelled()[2] == ["a", "b"]
        assert catalog.integrity() == []
        catalog.backup(target / FILE)
    with closing(Catalog(target, writable=True)) as copy:
        assert contents(copy) == before
    with pytest.raises(GalleryError, match="unable to open database file"):
        Catalog(folder, writable=True)
    assert [each.name for each in folder.iterdir()] == [FILE]


def test_whoever_can_only_read_the_folder_sees_what_others_write_to_it(catalog):
    catalog.insert([item(1)])
    catalog.close()
    process = where_the_folder_is_read_only(catalog.path.parent, "tell_what_is_seen")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        seen = [process.stdout.readline()]

        def look() -> None:
            process.stdin.write("look\n")
            process.stdin.flush()
            seen.append(process.stdout.readline())

        with closing(Catalog(catalog.path.parent, writable=True)) as writer:
            writer.insert([item(2)])
            look()  # in SQLite's log
            writer.insert([item(3)])
            look()
        look()  # in the database, without a log
        with closing(Catalog(catalog.path.parent, writable=True)) as writer:
            writer.insert([item(4)])
        look()
    finally:
        _, said = process.communicate()
    assert process.returncode == 0, said
    states = [json.loads(line) for line in seen]
    assert [ids for ids, _ in states] == [[1], [1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]
    versions = [version for _, version in states]
    assert all(states[i][0] == states[i + 1][0] or versions[i] != versions[i + 1] for i in range(4))


def tell_what_is_seen(folder: Path) -> None:
    """Write ids and data version to stdout, now and for each line of stdin."""
    with closing(Catalog(folder)) as catalog:
        print(json.dumps([ids_of(catalog), catalog.data_version()]), flush=True)
        for _ in sys.stdin:
            print(json.dumps([ids_of(catalog), catalog.data_version()]), flush=True)


def test_closing_twice_is_harmless(catalog):
    catalog.close()
    catalog.close()
