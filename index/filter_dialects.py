"""``Dialect``: how the conditions of a filter are written for the database that holds the items.

``index.filters`` knows the language, and has checked names and values before they come here. Every
condition is true or not true for an item; one of SQL may also be NULL, which counts as not true.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Literal, Protocol

from index.attributes import MAX_INTEGER
from index.milvus_literals import literal
from index.schema import field_expression

__all__ = [
    "COLUMNS",
    "Comparison",
    "Dialect",
    "MilvusDialect",
    "Parameter",
    "SqlDialect",
    "Value",
    "column_of",
]

Value = str | int | float | bool
Parameter = str | int
Comparison = Literal[">", ">=", "<", "<="]
Operator = Literal["and", "or"]

#: Where the table ``items`` of a catalog has those fields that are no attributes.
COLUMNS = {"id": "items.id", "label": "items.label", "sku": "items.external_id"}


def column_of(field: str) -> str:
    """SQL for the value of a field, NULL where it is missing. ``field_type`` says if it exists."""
    return COLUMNS.get(field) or field_expression(field)


class Dialect(Protocol):
    """Writes the conditions of one filter."""

    parameters: list[Parameter]  #: of what was written, in order

    def joined(self, conditions: Sequence[str], operator: Operator) -> str:
        """All conditions hold, or ("or") one of them does. Without conditions: true."""

    def negated(self, condition: str) -> str:
        """The condition is not true."""

    def exists(self, field: str, wanted: bool) -> str:
        """The item has a value of the field, or (not ``wanted``) it has none."""

    def equals(self, field: str, value: Value) -> str:
        """The field has this value."""

    def differs(self, field: str, value: Value) -> str:
        """The field has another value, or none."""

    def compares(self, field: str, comparison: Comparison, value: Value) -> str:
        """The field has a value that compares so; text compares by code point."""

    def is_one_of(self, field: str, values: Sequence[Value]) -> str:
        """The field has one of these values, of which there may be none."""


class SqlDialect:
    """Conditions on the table ``items`` of a catalog. Values only ever become parameters."""

    def __init__(self) -> None:
        """For one filter."""
        self.parameters: list[Parameter] = []

    def joined(self, conditions: Sequence[str], operator: Operator) -> str:
        """In a balanced tree: SQLite limits the depth of an expression."""
        return _balanced(conditions, operator) if conditions else "TRUE"

    def negated(self, condition: str) -> str:
        """Also where the condition is NULL."""
        return f"({condition}) IS NOT TRUE"

    def exists(self, field: str, wanted: bool) -> str:
        """See ``Dialect``; so for the other methods."""
        return f"{column_of(field)} IS {'NOT ' * wanted}NULL"

    def equals(self, field: str, value: Value) -> str:  # noqa: D102
        return f"{column_of(field)} = {self._parameter(value)}"

    def differs(self, field: str, value: Value) -> str:  # noqa: D102
        return f"{column_of(field)} IS NOT {self._parameter(value)}"

    def compares(self, field: str, comparison: Comparison, value: Value) -> str:  # noqa: D102
        return f"{column_of(field)} {comparison} {self._parameter(value)}"

    def is_one_of(self, field: str, values: Sequence[Value]) -> str:  # noqa: D102
        return f"{column_of(field)} IN ({', '.join(map(self._parameter, values))})"

    def _parameter(self, value: Value) -> str:
        if isinstance(value, float):
            # Read by SQLite's own parser, as the stored ones are: another may round otherwise.
            self.parameters.append(json.dumps(value))
            return "json_extract(?, '$')"
        self.parameters.append(value if isinstance(value, str) else int(value))
        return "?"


class MilvusDialect:
    """Milvus expressions on the collection that ``index.milvus_schema`` describes.

    They are written so that no part is ever unknown: releases differ in what ``not`` makes of that.
    """

    def __init__(self) -> None:
        """For one filter. Milvus 2.3 has no parameters: values are written as literals."""
        self.parameters: list[Parameter] = []

    def joined(self, conditions: Sequence[str], operator: Operator) -> str:
        """See ``Dialect``; so for the other methods."""
        return _balanced(conditions, operator) if conditions else "id > 0"

    def negated(self, condition: str) -> str:  # noqa: D102
        return f"(not ({condition}))"

    def exists(self, field: str, wanted: bool) -> str:  # noqa: D102
        if field == "id":
            return "id > 0" if wanted else "id < 0"
        there = f"has_{field} == true" if field in COLUMNS else f"exists {_reference(field)}"
        return f"({there})" if wanted else self.negated(there)

    def equals(self, field: str, value: Value) -> str:  # noqa: D102
        if field == "id" and isinstance(value, float):
            return f"id == {_whole(value)}" if value.is_integer() else "id < 0"
        return self._there_and(field, f"{_reference(field)} == {literal(value)}")

    def differs(self, field: str, value: Value) -> str:  # noqa: D102
        return self.negated(self.equals(field, value))

    def compares(self, field: str, comparison: Comparison, value: Value) -> str:  # noqa: D102
        if field == "id" and isinstance(value, float):
            # Above 2.5 is above 2, and from 2.5 on is from 3 on.
            rounded = math.floor(value) if comparison in (">", "<=") else math.ceil(value)
            return f"id {comparison} {_whole(rounded)}"
        return self._there_and(field, f"{_reference(field)} {comparison} {literal(value)}")

    def is_one_of(self, field: str, values: Sequence[Value]) -> str:  # noqa: D102
        if not values:
            return "id < 0"
        if field in COLUMNS and not any(isinstance(value, float) for value in values):
            return self._there_and(field, f"{field} in {literal(values)}")
        # Milvus 2.3 takes no list of integers and fractions for a value in JSON.
        return self.joined([self.equals(field, value) for value in values], "or")

    def _there_and(self, field: str, condition: str) -> str:
        return condition if field == "id" else f"({self.exists(field, True)} and {condition})"


def _whole(value: float) -> int:
    """A whole number as Milvus takes it for an id: no id is beyond."""
    return max(-MAX_INTEGER, min(MAX_INTEGER, int(value)))


def _reference(field: str) -> str:
    return field if field in COLUMNS else f'attributes["{field}"]'


def _balanced(conditions: Sequence[str], operator: Operator) -> str:
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    left, right = _balanced(conditions[:half], operator), _balanced(conditions[half:], operator)
    return f"({left} {operator} {right})"
