"""A filter selects what the same filter, read in plain Python, selects of a list of dicts."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.catalog import Catalog
from index.errors import FilterError
from index.filters import MAX_DEPTH, MAX_VALUES, OPERATORS, compile_where
from index.items import NewItem
from tests.index.filter_language import (
    FIELDS,
    FILTERS,
    INJECTION,
    LADDER,
    ODD_NAME,
    TESTS,
    holds,
    ladder_filters,
    near_ids,
    rows,
)
from tests.index.gallery_items import DIM, item

VECTOR = np.eye(DIM, dtype=np.float32)[0]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Iterator[Catalog]:
    folder = tmp_path_factory.mktemp("catalog")
    Catalog.create(folder, model_sha256="0" * 64, dim=DIM)
    catalog = Catalog(folder, writable=True)
    catalog.insert([item("first.jpg", VECTOR, attributes=some_attributes())])
    yield catalog
    catalog.close()


def some_attributes() -> dict[str, Any]:
    return {name: {"string": "", "number": 0, "boolean": False}[FIELDS[name]] for name in FIELDS}


def refill(catalog: Catalog, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the catalog hold these rows alone; returns them with their ids."""
    catalog.remove([each.id for each in catalog.page(offset=0, limit=100)])
    ids = catalog.insert([new_item(number, row) for number, row in enumerate(rows)])
    return [row | {"id": item_id} for row, item_id in zip(rows, ids, strict=True)]


def new_item(number: int, row: Mapping[str, Any]) -> NewItem:
    attributes = {name: value for name, value in row.items() if name in FIELDS}
    return item(
        f"{number}.jpg", VECTOR, label=row.get("label"), sku=row.get("sku"), attributes=attributes
    )


# What is selected


@settings(max_examples=150, deadline=None)
@given(rows=rows(), wheres=st.lists(FILTERS, min_size=1, max_size=5))
def test_a_filter_selects_what_plain_python_selects(catalog, rows, wheres):
    stored = refill(catalog, rows)
    for each in wheres:
        where = near_ids(each, [row["id"] for row in stored])
        compiled = compile_where(where, catalog.fields())
        expected = [row["id"] for row in stored if holds(where, row)]
        selected = catalog.select(compiled)
        assert selected.dtype == np.int64
        assert selected.tolist() == expected, where
        assert catalog.count(compiled) == len(expected)
        page = catalog.page(offset=1, limit=3, where=compiled)
        assert [each.id for each in page] == expected[1:4]


@pytest.mark.parametrize("field", LADDER)
def test_each_operator_compares_each_value_with_each(catalog, field):
    values = LADDER[field]
    missing: list[dict[str, Any]] = [{}] + [{field: None}] * (field in FIELDS)
    stored = refill(catalog, [{field: value} for value in values] + missing)
    for where in ladder_filters(field):
        selected = catalog.select(compile_where(where, catalog.fields()))
        assert selected.tolist() == [row["id"] for row in stored if holds(where, row)], where


@settings(max_examples=50, deadline=None)
@given(rows=rows(), where=FILTERS, field=st.sampled_from([*FIELDS, "label", "sku", "id"]))
def test_values_are_counted_among_what_matches(catalog, rows, where, field):
    stored = refill(catalog, rows)
    compiled = compile_where(where, catalog.fields())
    counts = Counter(row.get(field) for row in stored if holds(where, row))
    del counts[None]
    found = catalog.values(field, where=compiled)
    assert dict(found) == dict(counts)
    assert [count for _, count in found] == sorted(counts.values(), reverse=True)
    assert {type(value) for value, _ in found} <= {type(row.get(field)) for row in stored}
    assert catalog.values(field, where=compiled, limit=2) == found[:2]


def test_labelled_and_its_vectors_are_those_that_match(catalog):
    stored = refill(
        catalog,
        [
            {"label": "a", "year": 1},
            {"year": 1},
            {"label": "b", "year": 2},
            {"label": "a", "year": 1},
        ],
    )
    ids, vectors, labels = catalog.labelled(compile_where({"year": 1}, catalog.fields()))
    assert ids.tolist() == [stored[0]["id"], stored[3]["id"]]
    assert vectors.tolist() == [VECTOR.tolist()] * 2
    assert labels == ["a", "a"]


@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_any_number_of_filters_can_be_alternatives(catalog, count):
    stored = refill(catalog, [{"year": number} for number in range(count + 2)])
    where = {"any": [{"year": number} for number in range(count)] + [{"year": -1}]}
    selected = catalog.select(compile_where(where, catalog.fields()))
    assert selected.tolist() == [row["id"] for row in stored[:count]]


# The key, by which results are cached


@settings(max_examples=100, deadline=None)
@given(FILTERS)
def test_the_key_is_the_whole_filter_whatever_the_order_of_its_keys(where):
    def reversed_keys(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: reversed_keys(part[key]) for key in reversed(part)}
        return [reversed_keys(each) for each in part] if isinstance(part, list) else part

    key = compile_where(where, FIELDS).key
    assert json.loads(key) == where
    assert compile_where(reversed_keys(where), FIELDS).key == key


# SQL is never more than a value


def test_sql_in_a_value_is_compared_and_not_run(catalog):
    stored = refill(catalog, [{"make": INJECTION, "label": INJECTION, "sku": INJECTION}, {}])
    for field in ("make", "label", "sku"):
        for where in ({field: INJECTION}, {field: [INJECTION]}, {field: {"gte": INJECTION}}):
            compiled = compile_where(where, catalog.fields())
            assert INJECTION not in compiled.condition
            assert catalog.select(compiled).tolist() == [stored[0]["id"]]
    nothing = compile_where({"make": "' OR 1=1 --"}, catalog.fields())
    assert catalog.select(nothing).tolist() == []
    assert len(catalog) == 2


@pytest.mark.parametrize(
    "name", [INJECTION, "1=1 OR make", "items.label", "make = 'a' --", "rowid"]
)
def test_sql_in_a_name_is_an_unknown_field(catalog, name):
    with pytest.raises(FilterError, match="there is no field"):
        compile_where({name: "x"}, catalog.fields())
    with pytest.raises(FilterError, match="there is no field"):
        catalog.values(name)


# What is refused


def too_deep(depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {"make": "BMW"}
    for _ in range(depth - 1):
        where = {"not": where}
    return where


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"maek": "BMW"}, 'there is no field "maek": do you mean make?'),
        ({"labels": "a"}, 'there is no field "labels": do you mean label'),
        ({"MAKE": "BMW"}, "there is no field"),
        ({"": "BMW"}, 'there is no field ""'),
        ({3: "BMW"}, "3 is not the name of a field"),
        ({"zzzzzz": 1}, f"do you mean id, {ODD_NAME}, label, make, sku, sold, year?"),
        ({"make": {"like": "B%"}}, 'there is no operator "like": expected one of eq, ne, gt'),
        ({"make": {"$eq": "BMW"}}, 'there is no operator "$eq"'),
        ({"make": {1: "BMW"}}, "there is no operator 1"),
        ({"make": {}}, "the filter of make is empty"),
        ({"make": 1}, "make cannot be compared with 1: it is a string, not a number"),
        ({"make": ["BMW", 1]}, "make cannot be compared with 1"),
        ({"make": {"eq": ["BMW"]}}, "make cannot be compared with a list"),
        ({"make": {"eq": {"eq": "BMW"}}}, "make cannot be compared with an object"),
        ({"make": [["BMW"]]}, "make cannot be compared with a list"),
        ({"make": b"BMW"}, "make cannot be compared with"),
        ({"make": "a\0b"}, "holds a NUL or half a surrogate pair"),
        ({"make": "\ud800"}, "holds a NUL or half a surrogate pair"),
        ({"year": "2010"}, 'year cannot be compared with "2010": it is a number, not a string'),
        ({"year": True}, "year cannot be compared with true: it is a number, not a boolean"),
        ({"year": float("nan")}, "year cannot be compared with NaN: nan is not a finite number"),
        ({"year": {"lt": float("inf")}}, "inf is not a finite number"),
        ({"year": 2**63}, "9223372036854775808 is beyond 64 bits"),
        ({"id": 10**30}, "is beyond 64 bits"),
        ({"id": "1"}, "id cannot be compared with"),
        ({"sku": 1}, "sku cannot be compared with 1"),
        ({"label": False}, "label cannot be compared with false"),
        ({"sold": 1}, "sold cannot be compared with 1: it is a boolean, not a number"),
        ({"sold": {"gt": False}}, "gt cannot compare sold with false: sold is a boolean"),
        ({"year": {"gte": None}}, "gte cannot compare year with null: null has no order"),
        ({"year": {"in": 2010}}, "in of year is 2010: expected a list"),
        ({"year": {"not_in": "2010"}}, 'not_in of year is "2010": expected a list'),
        ({"year": {"exists": 1}}, "exists of year is 1: expected true or false"),
        ({"any": {"make": "BMW"}}, '"any" is an object: expected a list'),
        ({"any": []}, '"any" is a list: expected a list of at least one filter'),
        ({"any": ["BMW"]}, '"BMW" is not a filter: expected an object'),
        ({"not": [{"make": "BMW"}]}, "a list is not a filter"),
        ({"not": None}, "null is not a filter"),
        ([{"make": "BMW"}], "a list is not a filter"),
        ("make = 'BMW'", "is not a filter"),
        (None, "null is not a filter"),
        (too_deep(MAX_DEPTH + 1), "more than 8 filters deep"),
        (too_deep(500), "more than 8 filters deep"),
        ({"make": {"in": ["x"] * (MAX_VALUES + 1)}}, "more than 1000 values"),
        ({"make": ["x"] * MAX_VALUES, "year": {"not_in": [1]}}, "more than 1000 values"),
        ({"any": [{"make": "x"}] * MAX_VALUES}, "more than 1000 conditions"),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_is_refused_and_named(where, message):
    with pytest.raises(FilterError) as caught:
        compile_where(where, FIELDS)
    assert message in str(caught.value)
    assert caught.value.code == "filter_invalid"
    assert len(str(caught.value)) < 500


def test_long_values_are_named_in_short():
    with pytest.raises(FilterError) as caught:
        compile_where({"year": "x" * 10**6}, FIELDS)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "where",
    [
        too_deep(MAX_DEPTH),
        {"year": list(range(MAX_VALUES))},
        {"any": [{"year": number} for number in range(MAX_VALUES // 2 - 1)]},
        {"any": [{"year": 3}] * 200, "make": [None, *map(str, range(MAX_VALUES - 1))]},
        {"any": [{"year": {"gte": 3, "lte": 3, "eq": 3}}] * 200},
    ],
)
def test_the_largest_filters_allowed_are_no_trouble_to_the_database(catalog, where):
    stored = refill(catalog, [{"year": 3}, {"make": "BMW", "year": 4}, {"make": "BMW", "year": -1}])
    selected = catalog.select(compile_where(where, catalog.fields()))
    assert selected.tolist() == [row["id"] for row in stored if holds(where, row)]


def test_every_operator_is_tested_here():
    assert set(OPERATORS) == set(TESTS)


# How it is found


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Iterator[Catalog]:
    folder = tmp_path_factory.mktemp("large")
    Catalog.create(folder, model_sha256="0" * 64, dim=DIM)
    catalog = Catalog(folder, writable=True)
    catalog.insert(
        [
            new_item(i, {
                "make": f"make {i % 40}", ODD_NAME: f"{i % 100}",
                "year": 1900 + i % 120 + i % 2 / 2, "sold": i % 100 == 0,
                "label": f"label {i % 50}", "sku": f"sku {i}",
            })
            for i in range(2000)
        ]
    )  # fmt: skip
    yield catalog
    catalog.close()


@pytest.mark.parametrize(
    ("where", "of"),
    [
        ({"make": "make 3"}, ["make"]),
        ({"make": ["make 3", "make 4"]}, ["make"]),
        ({"make": {"gt": "make 38"}}, ["make"]),
        ({ODD_NAME: "3"}, [ODD_NAME]),
        ({"year": 1950}, ["year"]),
        ({"year": 1951.5}, ["year"]),
        ({"year": [1950, 1951.5]}, ["year"]),
        ({"year": {"gte": 1950, "lt": 1952.5}}, ["year"]),
        ({"sold": True}, ["sold"]),
        ({"any": [{"make": "make 3"}, {"year": 1950}]}, ["make", "year"]),
        ({"label": "label 3"}, ["label"]),
        ({"label": ["label 3", "label 4"]}, ["label"]),
        ({"sku": "sku 3"}, ["sku"]),
        ({"sku": ["sku 3", "sku 4"]}, ["sku"]),
        ({"id": [3, 4]}, ["id"]),
    ],
)
def test_a_filter_is_looked_up_in_the_index_of_its_field(large, where, of):
    compiled = compile_where(where, large.fields())
    with sqlite3.connect(large.path) as database:
        plan = " ".join(step[3] for step in database.execute(
            f"EXPLAIN QUERY PLAN SELECT items.id FROM items WHERE {compiled.condition}",
            compiled.values,
        ))  # fmt: skip
        own = {
            "label": "items_by_label",
            "sku": "items_by_external_id",
            "id": "INTEGER PRIMARY KEY",
        }
        indexes = own | {
            name: index_of_attribute(database, name) for name in of if name in FIELDS
        }  # fmt: skip
    database.close()
    assert "SCAN" not in plan
    for name in of:
        assert indexes[name] in plan
    assert len(large.select(compiled)) > 0


def index_of_attribute(database: sqlite3.Connection, name: str) -> str:
    [(number,)] = database.execute("SELECT id FROM fields WHERE name = ?", (name,)).fetchall()
    return f"items_by_field_{number} "


def test_a_field_is_filtered_by_as_soon_as_an_item_has_it(tmp_path: Path):
    Catalog.create(tmp_path, model_sha256="0" * 64, dim=DIM)
    catalog = Catalog(tmp_path, writable=True)
    with pytest.raises(FilterError, match='no field "make": do you mean id, label, sku'):
        compile_where({"make": "BMW"}, catalog.fields())
    [item_id] = catalog.insert([item("1.jpg", VECTOR, attributes={"make": "BMW"})])
    compiled = compile_where({"make": "BMW"}, catalog.fields())
    assert catalog.select(compiled).tolist() == [item_id]
    catalog.update(item_id, attributes={"make": "Audi"})
    assert catalog.select(compiled).tolist() == []
    catalog.close()
