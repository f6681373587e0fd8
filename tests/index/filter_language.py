"""The filter language in plain Python, and filters and items to try it on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from index.attributes import MAX_INTEGER

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


def near_ids(where: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """The same filter with ids as numbers among ``ids``: no gallery gives an id twice."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in value]
        if isinstance(value, dict):
            return {name: each if name == "exists" else moved(each) for name, each in value.items()}
        if value is None or value == MAX_INTEGER:
            return value
        place = int(value)
        near = ids[place] if 0 <= place < len(ids) else place + (ids[0] if ids else 1)
        return near + (value - place)  # an integer or a float, as it was

    def walk(part: Any) -> Any:
        if isinstance(part, list):
            return [walk(each) for each in part]
        return {
            key: walk(value) if key in ("any", "not") else moved(value) if key == "id" else value
            for key, value in part.items()
        }

    return dict(walk(where))


#: Values of each field, least first.
LADDER: dict[str, list[Any]] = {
    "make": ["", "BMW", "S", "bmw", "Škoda", "日本", "\uffff", "😀"],
    ODD_NAME: ["A", "B"],
    "year": [-MAX_INTEGER, -0.5, 0, 0.1, 1, 2**53, 2**53 + 1, 1e300],
    "sold": [False, True],
    "label": ["", "a", "b"],
    "sku": ["1", "2"],
}


def ladder_filters(field: str) -> Iterator[dict[str, Any]]:
    """Each operator with each value of the field's ladder, and what it is not."""
    values = LADDER[field]
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
            yield {field: {name: operand}}
            yield {"not": {field: {name: operand}}}
