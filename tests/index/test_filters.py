"""A filter selects what the same filter, read in plain Python, selects of a list of dicts."""

from __future__ import annotations

import json
import operator
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.attributes import MAX_INTEGER
from index.catalog import Catalog
from index.errors import FilterError
from index.filters import MAX_DEPTH, MAX_VALUES, OPERATORS, compile_where
from index.items import NewItem
from tests.index.gallery_items import DIM, item

VECTOR = np.eye(DIM, dtype=np.float32)[0]

INJECTION = """x'"; DROP TABLE items; --"""
ODD_NAME = "it's a.b[0]; DROP TABLE items; --"
FIELDS = {"make": "string", ODD_NAME: "string", "year": "number", "sold": "boolean"}

# The filter language in plain Python

TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": lambda value, bound: value is not None and value > bound,
    "gte": lambda value, bound: value is not None and value >= bound,
    "lt": lambda value, bound: value is not None and value < bound,
    "lte": lambda value, bound: value is not None and value <= bound,
    "in": lambda value, choice: value in choice,
    "not_in": lambda value, choice: value not in choice,
    "exists": lambda value, expected: (value is not None) == expected,
}


def holds(where: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all(condition_holds(key, wanted, row) for key, wanted in where.items())


def condition_holds(key: str, wanted: Any, row: Mapping[str, Any]) -> bool:
    if key == "not":
        return not holds(wanted, row)
    if key == "any":
        return any(holds(each, row) for each in wanted)
    value = row.get(key)
    if isinstance(wanted, dict):
        return all(TESTS[name](value, operand) for name, operand in wanted.items())
    return value in wanted if isinstance(wanted, list) else value == wanted


# What is drawn

TEXTS = st.sampled_from(
    [
        "",
        "BMW",
        "bmw",
        "Škoda",
        "S",
        "日本",
        "😀",
        "\uffff",
        "%",
        "_",
        "null",
        "1",
        "\n\x1f",
        INJECTION,
    ]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
NUMBERS = (
    st.sampled_from([0, 1, 2, -1, -0.0, 0.1, 0.5, 1.0, 2**53, 2**53 + 1, float(2**53), 1e300])
    | st.sampled_from([MAX_INTEGER, -MAX_INTEGER, float(MAX_INTEGER), 5e-324])
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = {"string": TEXTS, "number": NUMBERS, "boolean": st.booleans()}
IDS = st.integers(-2, 12) | st.sampled_from([1.0, 1.5, MAX_INTEGER])


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Items as dicts without an id; a field may be missing, and an attribute may be null."""
    optional = {name: st.none() | VALUES[kind] for name, kind in FIELDS.items()}
    optional["label"] = TEXTS
    drawn = draw(st.lists(st.fixed_dictionaries({}, optional=optional), max_size=8))
    skus = draw(st.sets(TEXTS.filter(bool), max_size=len(drawn)))
    return [
        row | {"sku": sku} for row, sku in zip(drawn, sorted(skus), strict=False)
    ] + drawn[len(skus) :]  # fmt: skip


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    """A condition on one field."""
    field = draw(st.sampled_from([*FIELDS, "label", "sku", "id"]))
    kind = FIELDS.get(field, "string")
    values = IDS if field == "id" else VALUES[kind]
    ordered = {name: values for name in ("gt", "gte", "lt", "lte") if kind != "boolean"}
    lists = st.lists(st.none() | values, max_size=4)
    operators = {
        "eq": st.none() | values,
        "ne": st.none() | values,
        "in": lists,
        "not_in": lists,
        "exists": st.booleans(),
        **ordered,
    }
    chosen = draw(st.lists(st.sampled_from(sorted(operators)), min_size=1, max_size=2, unique=True))
    by_operator = st.fixed_dictionaries({name: operators[name] for name in chosen})
    shape = draw(st.sampled_from([by_operator, by_operator, lists, values, st.none()]))
    return {field: draw(shape)}


FILTERS = st.recursive(
    st.lists(conditions(), max_size=3).map(
        lambda parts: {k: v for p in parts for k, v in p.items()}
    ),
    lambda inner: st.one_of(
        inner.map(lambda where: {"not": where}),
        st.lists(inner, min_size=1, max_size=3).map(lambda wheres: {"any": wheres}),
        st.tuples(inner, conditions()).map(lambda pair: pair[0] | pair[1]),
    ),
    max_leaves=4,
)


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


def near_ids(where: dict[str, Any], first: int) -> dict[str, Any]:
    """The same filter with ids counted from ``first``: a catalog never gives an id twice."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in value]
        if isinstance(value, dict):
            return {name: each if name == "exists" else moved(each) for name, each in value.items()}
        return value if value is None or value == MAX_INTEGER else value + first

    def walk(part: Any) -> Any:
        if isinstance(part, list):
            return [walk(each) for each in part]
        return {
            key: walk(value) if key in ("any", "not") else moved(value) if key == "id" else value
            for key, value in part.items()
        }

    return dict(walk(where))


# What is selected


@settings(max_examples=150, deadline=None)
@given(rows=rows(), wheres=st.lists(FILTERS, min_size=1, max_size=5))
def test_a_filter_selects_what_plain_python_selects(catalog, rows, wheres):
    stored = refill(catalog, rows)
    first = stored[0]["id"] if stored else 1
    for each in wheres:
        where = near_ids(each, first)
        compiled = compile_where(where, catalog.fields())
        expected = [row["id"] for row in stored if holds(where, row)]
        selected = catalog.select(compiled)
        assert selected.dtype == np.int64
        assert selected.tolist() == expected, where
        assert catalog.count(compiled) == len(expected)
        page = catalog.page(offset=1, limit=3, where=compiled)
        assert [each.id for each in page] == expected[1:4]


#: Values of each field, least first, all of which an item has in the test below.
LADDER: dict[str, list[Any]] = {
    "make": ["", "BMW", "S", "bmw", "Škoda", "日本", "\uffff", "😀"],
    ODD_NAME: ["A", "B"],
    "year": [-MAX_INTEGER, -0.5, 0, 0.1, 1, 2**53, 2**53 + 1, 1e300],
    "sold": [False, True],
    "label": ["", "a", "b"],
    "sku": ["1", "2"],
}


@pytest.mark.parametrize("field", LADDER)
def test_each_operator_compares_each_value_with_each(catalog, field):
    values = LADDER[field]
    missing: list[dict[str, Any]] = [{}] + [{field: None}] * (field in FIELDS)
    stored = refill(catalog, [{field: value} for value in values] + missing)
    operands: dict[str, list[Any]] = {
        "eq": [None, *values],
        "ne": [None, *values],
        "in": [[], [None], values[:2], [None, *values[1:]]],
        "not_in": [[], [None], values[:2], [None, *values[1:]]],
        "exists": [True, False],
    }
    if field != "sold":
        operands |= dict.fromkeys(("gt", "gte", "lt", "lte"), values)
    for name, each in operands.items():
        for operand in each:
            for where in ({field: {name: operand}}, {"not": {field: {name: operand}}}):
                selected = catalog.select(compile_where(where, catalog.fields()))
                assert selected.tolist() == [row["id"] for row in stored if holds(where, row)], (
                    where
                )


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
