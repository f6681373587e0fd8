"""What a gallery cannot show of its catalog; see ``test_gallery`` for the rest."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from index.catalog import IDS_PER_QUERY, Catalog, NewItem
from index.errors import GalleryError, ItemNotFoundError

DIM = 4


@pytest.fixture
def catalog(tmp_path):
    Catalog.create(tmp_path, model_sha256="0" * 64, dim=DIM)
    catalog = Catalog(tmp_path)
    yield catalog
    catalog.close()


def item(number: int, **changed: object) -> NewItem:
    values = {
        "root": Path("/photos"),
        "path": f"{number}.jpg",
        "sha256": f"{number:064x}",
        "size": number,
        "mtime_ns": 10 * number,
        "label": None,
        "attributes": {},
        "vector": np.full(DIM, number, np.float32),
    }
    return NewItem(**{**values, **changed})


def test_an_item_comes_back_as_it_was_stored(catalog):
    attributes = {"make": "Škoda", "year": 1999, "price": 0.1, "sold": True, "owner": None, "": ""}
    [item_id] = catalog.insert(
        [item(1, path="ü/日本 1.jpg", label="Škoda Octavia", attributes=attributes)]
    )
    [stored] = catalog.get([item_id])
    assert stored.attributes == attributes
    assert [type(value) for value in stored.attributes.values()] == [
        type(value) for value in attributes.values()
    ]
    assert stored.label == "Škoda Octavia"
    assert stored.image == Path("/photos/ü/日本 1.jpg")
    assert stored.sha256 == f"{1:064x}"


def test_changes_are_what_came_and_went_after_a_number(catalog):
    first, second, third = catalog.insert([item(1), item(2), item(3)])
    known = catalog.changes(0)
    assert known.ids.tolist() == [first, second, third]
    assert known.vectors.tolist() == [[1] * DIM, [2] * DIM, [3] * DIM]

    [replacement] = catalog.insert([item(2, vector=np.zeros(DIM, np.float32))])
    catalog.remove([first])
    [passing] = catalog.insert([item(4)])
    catalog.remove([passing])

    later = catalog.changes(known.seq)
    assert later.seq > known.seq
    assert later.ids.tolist() == [replacement]
    assert later.vectors.tolist() == [[0] * DIM]
    assert set(later.removed.tolist()) == {first, second, passing}
    nothing = catalog.changes(later.seq)
    assert (nothing.seq, len(nothing.ids), len(nothing.removed)) == (later.seq, 0, 0)
    assert nothing.vectors.shape == (0, DIM)


def test_the_data_version_tells_of_other_connections_only(catalog, tmp_path):
    other = Catalog(tmp_path)
    mine, theirs = catalog.data_version(), other.data_version()
    catalog.insert([item(1)])
    assert catalog.data_version() == mine
    assert other.data_version() != theirs
    other.close()


def test_get_keeps_the_order_and_repeats_of_any_number_of_ids(catalog):
    ids = catalog.insert([item(number) for number in range(2 * IDS_PER_QUERY + 1)])
    wanted = [*reversed(ids), ids[7], ids[7]]
    assert [each.id for each in catalog.get(wanted)] == wanted
    assert catalog.get([]) == []


@pytest.mark.parametrize("unknown", [0, -1, 99, 2**63, -(2**63) - 1, 10**30])
def test_an_id_that_cannot_be_is_not_found_and_named(catalog, unknown):
    [known] = catalog.insert([item(1)])
    for use in (catalog.get, catalog.remove):
        with pytest.raises(ItemNotFoundError, match=f"id {unknown} "):
            use([known, unknown])
    assert len(catalog) == 1


def test_of_many_missing_ids_the_first_are_named(catalog):
    with pytest.raises(ItemNotFoundError, match=r"id 1, 2, 3, 4, 5, … in the gallery"):
        catalog.get(range(1, 1000))


def test_removing_an_id_twice_in_one_call_is_removing_it(catalog):
    [first, second] = catalog.insert([item(1), item(2)])
    catalog.remove([first, first])
    assert [each.id for each in catalog.page(offset=0, limit=10)] == [second]


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


def test_ids_by_path_names_what_is_stored_and_passes_over_the_rest(catalog):
    [first, second] = catalog.insert([item(1), item(2, root=Path("/photos/audi"))])
    a, b, c = Path("/photos/1.jpg"), Path("/photos/audi/2.jpg"), Path("/photos/2.jpg")
    assert catalog.ids_by_path([a, b, c]) == {a: first, b: second}


def test_labelled_leaves_out_what_has_no_label(catalog):
    catalog.insert([item(1, label="a"), item(2), item(3, label="b"), item(4, label="a")])
    vectors, labels = catalog.labelled()
    assert vectors[:, 0].tolist() == [1, 3, 4]
    assert labels == ["a", "b", "a"]
    assert catalog.label_counts() == (3, 2)


def test_a_full_disk_is_told_and_stores_nothing(catalog):
    [first] = catalog.insert([item(1)])
    [(pages,)] = catalog._connection.execute("PRAGMA page_count").fetchall()
    catalog._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(GalleryError, match=r"cannot be changed: .* full"):
        catalog.insert([item(number, label="x" * 1000) for number in range(2, 100)])
    assert [each.id for each in catalog.page(offset=0, limit=10)] == [first]
    catalog.remove([first])  # the catalog goes on
    assert len(catalog) == 0


def test_a_catalog_without_its_dimension_is_refused(catalog, tmp_path):
    catalog.close()
    database = sqlite3.connect(tmp_path / "catalog.sqlite")
    with database:
        database.execute("DELETE FROM meta WHERE key = 'dim'")
    database.close()
    with pytest.raises(GalleryError, match="no 'dim': the catalog is incomplete"):
        Catalog(tmp_path)
