"""Catalogs of other formats: the older one becomes today's, a newer one is refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.catalog import Catalog
from index.errors import GalleryError, InvalidArgumentError
from index.filters import compile_where
from index.schema import FORMAT_VERSION, MAX_FIELDS
from tests.index.gallery_items import DIM, item, unit

MODEL = "a" * 64

#: The tables as the release with format 1 made them.
FORMAT_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE roots (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE items (
    -- AUTOINCREMENT: an id that was removed never names another photo
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    seq INTEGER NOT NULL,
    root INTEGER NOT NULL REFERENCES roots (id),
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    label TEXT,
    attributes TEXT NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (root, path)
) STRICT;
CREATE INDEX items_by_seq ON items (seq);
CREATE INDEX items_by_label ON items (label);
CREATE TABLE removed (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL) STRICT;
CREATE INDEX removed_by_seq ON removed (seq);
"""

VECTORS = unit(4)

#: (id, seq, root, path, label, attributes): ids 2 and 5 were removed.
ROWS: list[tuple[int, int, int, str, str | None, dict[str, Any]]] = [
    (1, 1, 1, "a.jpg", "Audi A4", {"make": "Audi", "year": 2012, "price": 9.5, "sold": True}),
    (3, 1, 1, "ü/b.jpg", "Škoda", {"make": "Škoda", "year": 2013, "owner": None}),
    (4, 3, 2, "c.jpg", None, {}),
]
SEQ = 4


def write_format_1(
    folder: Path, rows: list[tuple[int, int, int, str, str | None, dict[str, Any]]] = ROWS
) -> None:
    with closing(sqlite3.connect(folder / "catalog.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(FORMAT_1)
        database.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [
                ("format_version", "1"),
                ("model_sha256", MODEL),
                ("dim", str(DIM)),
                ("seq", f"{SEQ}"),
            ],
        )
        database.executemany("INSERT INTO roots VALUES (?, ?)", [(1, "/photos"), (2, "/more")])
        database.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    item_id, seq, root, path, f"{item_id:064x}", 100 + item_id, 200 + item_id,
                    label, json.dumps(attributes, ensure_ascii=False), VECTORS[row % 4].tobytes(),
                )
                for row, (item_id, seq, root, path, label, attributes) in enumerate(rows)
            ],
        )  # fmt: skip
        database.executemany("INSERT INTO removed VALUES (?, ?)", [(2, 2), (5, 4)])
        database.execute("UPDATE sqlite_sequence SET seq = 5 WHERE name = 'items'")


def with_attributes(*attributes: dict[str, Any]) -> list[Any]:
    return [
        (number, 1, 1, f"{number}.jpg", None, each) for number, each in enumerate(attributes, 1)
    ]


def upgraded(folder: Path, rows: list[Any] = ROWS) -> Catalog:
    write_format_1(folder, rows)
    return Catalog(folder, writable=True)


def attributes_of(catalog: Catalog) -> list[dict[str, Any]]:
    return [each.attributes for each in catalog.page(offset=0, limit=1000)]


# Format 1 becomes today's


def test_an_upgrade_keeps_items_ids_vectors_and_history(tmp_path):
    with closing(upgraded(tmp_path)) as catalog:
        items = catalog.page(offset=0, limit=10)
        assert [each.id for each in items] == [1, 3, 4]
        assert [str(each.image) for each in items] == [
            "/photos/a.jpg",
            "/photos/ü/b.jpg",
            "/more/c.jpg",
        ]
        assert [each.label for each in items] == ["Audi A4", "Škoda", None]
        assert [each.attributes for each in items] == [row[5] for row in ROWS]
        assert [each.sha256 for each in items] == [f"{i:064x}" for i in (1, 3, 4)]
        assert [(each.size, each.mtime_ns) for each in items] == [
            (101, 201),
            (103, 203),
            (104, 204),
        ]
        assert [each.external_id for each in items] == [None] * 3
        assert np.array_equal(catalog.vectors([4, 1, 3]), VECTORS[[2, 0, 1]])
        assert (catalog.seq(), catalog.dim, catalog.meta("model_sha256")) == (SEQ, DIM, MODEL)
        later = catalog.changes(2)
        assert (later.ids.tolist(), later.removed.tolist(), later.whole) == ([4], [5], False)
        assert catalog.integrity() == []


def test_an_upgraded_catalog_does_all_that_a_new_one_does(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    Catalog.create(tmp_path / "new", model_sha256=MODEL, dim=DIM)
    attributes = {"make": "", "year": 0, "price": 0, "sold": False}
    with closing(Catalog(tmp_path / "new", writable=True)) as new:
        new.insert([item("1.jpg", VECTORS[0], attributes=attributes)])
    with closing(upgraded(tmp_path / "old")) as catalog:
        assert catalog.fields() == {
            "make": "string", "year": "number", "price": "number", "sold": "boolean"
        }  # fmt: skip
        compiled = compile_where({"make": "Audi", "year": {"gte": 2000}}, catalog.fields())
        assert catalog.select(compiled).tolist() == [1]
        # The id goes on after the highest that was ever given.
        assert catalog.insert([item("d.jpg", VECTORS[3], sku="S-1")]) == [6]
        assert catalog.get_external(["S-1"]) == {"S-1": 6}
        catalog.remove([1])
        assert catalog.changes(SEQ).removed.tolist() == [1]
    assert structure(tmp_path / "old") == structure(tmp_path / "new")
    assert settings(tmp_path / "old") == settings(tmp_path / "new")


def structure(folder: Path) -> dict[str, Any]:
    """Columns and indexes by table, whatever the order they were made in."""
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as database:
        tables = [
            name
            for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            if not name.startswith("sqlite_")
        ]
        return {
            table: (
                sorted(row[1:] for row in database.execute(f"PRAGMA table_info({table})")),
                sorted(row[1:] for row in database.execute(f"PRAGMA index_list({table})")),
                sorted(row[2:] for row in database.execute(f"PRAGMA foreign_key_list({table})")),
            )
            for table in tables
        }


def settings(folder: Path) -> dict[str, str]:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as database:
        return dict(database.execute("SELECT key, value FROM meta WHERE key != 'seq'").fetchall())


def test_an_upgrade_happens_once(tmp_path):
    with closing(upgraded(tmp_path)) as catalog:
        catalog.set_meta("index_kind", "ivf")
        catalog.update(1, external_id="S-1")
    for writable in (True, False):
        with closing(Catalog(tmp_path, writable=writable)) as again:
            assert again.meta("index_kind") == "ivf"
            assert again.meta("format_version") == str(FORMAT_VERSION)
            assert again.get([1])[0].external_id == "S-1"


def test_an_empty_catalog_is_upgraded_too(tmp_path):
    with closing(upgraded(tmp_path, [])) as catalog:
        assert (len(catalog), catalog.fields()) == (0, {})
        catalog.insert([item("a.jpg", VECTORS[0], attributes={"make": "Audi"})])
        assert catalog.fields() == {"make": "string"}


# Attributes of format 1 that today's cannot hold as they are


def test_an_attribute_of_several_types_becomes_text(tmp_path):
    rows = with_attributes(
        {"code": 7}, {"code": "B"}, {"code": True}, {"code": None}, {"code": 0.5}
    )
    with closing(upgraded(tmp_path, rows)) as catalog:
        assert catalog.fields() == {"code": "string"}
        assert [each["code"] for each in attributes_of(catalog)] == ["7", "B", "true", None, "0.5"]
        compiled = compile_where({"code": "7"}, catalog.fields())
        assert catalog.select(compiled).tolist() == [1]


def test_integers_and_other_numbers_are_one_type(tmp_path):
    with closing(upgraded(tmp_path, with_attributes({"km": 7}, {"km": 0.5}))) as catalog:
        assert catalog.fields() == {"km": "number"}
        assert [each["km"] for each in attributes_of(catalog)] == [7, 0.5]


def test_an_attribute_without_a_value_has_no_type_yet(tmp_path):
    with closing(upgraded(tmp_path, with_attributes({"km": None}))) as catalog:
        assert catalog.fields() == {}
        assert attributes_of(catalog) == [{"km": None}]
        catalog.update(1, attributes={"km": 7})
        assert catalog.fields() == {"km": "number"}


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ('a"b', "a_b"),
        ("a\\b", "a_b"),
        ("a\tb", "a_b"),
        ("sku", "sku_"),
        ("label", "label_"),
        ("id", "id_"),
        ("any", "any_"),
        ("not", "not_"),
        ("", "_"),
        ("x" * 65, "x" * 50),
        ("it's", "it's"),
    ],
)
def test_a_name_that_cannot_be_kept_becomes_one_that_can(tmp_path, name, becomes):
    with closing(upgraded(tmp_path, with_attributes({name: "v"}, {"other": "w"}))) as catalog:
        assert attributes_of(catalog) == [{becomes: "v"}, {"other": "w"}]
        compiled = compile_where({becomes: "v"}, catalog.fields())
        assert catalog.select(compiled).tolist() == [1]


def test_no_two_attributes_become_one(tmp_path):
    given = {'a"b': 1, "a\\b": 2, "a_b": 3, "sku": 4, "sku_": 5, "x" * 65: 6, "x" * 66: 7}
    with closing(upgraded(tmp_path, with_attributes(given))) as catalog:
        [attributes] = attributes_of(catalog)
        assert sorted(attributes.values()) == [1, 2, 3, 4, 5, 6, 7]
        assert (attributes["a_b"], attributes["sku_"]) == (3, 5)
        assert set(catalog.fields()) == set(attributes)


@pytest.mark.parametrize(
    ("value", "becomes", "kind"),
    [
        (10**20, "100000000000000000000", "string"),
        (2**63 - 1, 2**63 - 1, "number"),
        (float("nan"), None, None),
        (float("-inf"), None, None),
        ("a\0b", "a\ufffdb", "string"),
        (["a", 1], '["a", 1]', "string"),
    ],
)
def test_a_value_that_cannot_be_kept_does_not_stop_the_upgrade(tmp_path, value, becomes, kind):
    with closing(upgraded(tmp_path, with_attributes({"of": value, "beside": "it"}))) as catalog:
        assert attributes_of(catalog) == [{"of": becomes, "beside": "it"}]
        assert catalog.fields().get("of") == kind


def test_one_integer_beyond_64_bits_makes_text_of_the_others(tmp_path):
    with closing(upgraded(tmp_path, with_attributes({"vin": 10**20}, {"vin": 7}))) as catalog:
        assert attributes_of(catalog) == [{"vin": "100000000000000000000"}, {"vin": "7"}]


# What is refused, and left as it is


def test_a_reader_of_format_1_is_told_how_to_upgrade(tmp_path):
    write_format_1(tmp_path)
    before = (tmp_path / "catalog.sqlite").read_bytes()
    with pytest.raises(GalleryError, match=r"format 1; .* reads 2\. `dscl index compact --gallery"):
        Catalog(tmp_path)
    assert (tmp_path / "catalog.sqlite").read_bytes() == before


def test_an_upgrade_that_fails_leaves_format_1_whole(tmp_path):
    rows = with_attributes({f"attribute {number}": number for number in range(MAX_FIELDS + 1)})
    write_format_1(tmp_path, rows)
    before = dump(tmp_path)
    with pytest.raises(InvalidArgumentError, match="'attribute 256' would be number 257"):
        Catalog(tmp_path, writable=True)
    assert dump(tmp_path) == before


def dump(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as database:
        return list(database.iterdump())


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("version", ["3", "10", "", "2.1"])
def test_any_other_format_is_refused_and_not_touched(tmp_path, version, writable):
    Catalog.create(tmp_path, model_sha256=MODEL, dim=DIM)
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as database, database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'format_version'", (version,))
    before = dump(tmp_path)
    with pytest.raises(
        GalleryError, match=rf"gallery format {version}; this release reads 2\. Use"
    ):
        Catalog(tmp_path, writable=writable)
    assert dump(tmp_path) == before
