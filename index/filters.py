"""``where``: which items a search, a count or an evaluation is about. The filter language.

A filter is a mapping, as it comes out of JSON:

- ``{"make": "BMW"}``: items whose ``make`` is BMW. ``{"make": "BMW", "sold": false}``: both hold.
- ``{"body": ["suv", "wagon"]}``: any of these.
- ``{"year": {"gte": 2010, "lt": 2020}}``: operators, all of which hold: ``eq``, ``ne``, ``gt``,
  ``gte``, ``lt``, ``lte``, ``in``, ``not_in`` and ``exists``.
- ``{"any": [{…}, {…}]}``: at least one of these filters. ``{"not": {…}}``: not this one.

Fields are the gallery's attributes and ``id``, ``label`` and ``sku``. A missing attribute equals
null: ``{"make": null}`` finds items without a make, as does ``{"make": {"exists": false}}``, and
``{"make": {"ne": "BMW"}}`` finds them too. Text compares by code point.

This module turns a filter into a condition on the catalog's table ``items``; nothing else knows
the language. Values only ever become parameters; names are looked up among the fields.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from index.attributes import OWN_FIELDS, FieldType, type_of
from index.errors import FilterError, InvalidArgumentError
from index.schema import field_expression

__all__ = ["COLUMNS", "Filter", "column_of", "compile_where", "either", "field_type"]

#: Values that one filter may hold, and conditions.
MAX_VALUES = 1000

#: Filters within filters.
MAX_DEPTH = 8

COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPERATORS = ("eq", "ne", *COMPARISONS, "in", "not_in", "exists")

#: Where the table ``items`` has those fields that are no attributes.
COLUMNS = {"id": "items.id", "label": "items.label", "sku": "items.external_id"}


@dataclass(frozen=True)
class Filter:
    """A filter, ready for the catalog."""

    sql: str  #: a condition on the table ``items``; true, false or NULL, which counts as false
    values: tuple[str | int, ...]  #: its parameters
    key: str  #: the same for filters that are written alike but for the order of their keys


def compile_where(where: Mapping[str, Any], fields: Mapping[str, FieldType]) -> Filter:
    """Check a filter and turn it into a condition; see the module for the language.

    Args:
        where: the filter; ``{}`` lets every item through.
        fields: the attributes there are and their types, as ``Catalog.fields`` gives them.

    Raises:
        FilterError: a field or an operator that there is not, a value whose type is not the
            field's, a filter of another form, or one that is too large: more than 1,000 values,
            1,000 conditions or 8 filters deep.
    """
    compiler = _Compiler(fields)
    sql = compiler.all_of(where, depth=1)
    key = json.dumps(where, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Filter(sql, tuple(compiler.values), key)


def either(first: Filter, second: Filter) -> Filter:
    """The items that at least one of two filters matches."""
    return Filter(
        f"(({first.sql}) OR ({second.sql}))",
        first.values + second.values,
        f"{first.key} or {second.key}",
    )


def column_of(field: str) -> str:
    """SQL for the value of a field, NULL where it is missing. ``field_type`` says if it exists."""
    return COLUMNS.get(field) or field_expression(field)


def field_type(field: str, fields: Mapping[str, FieldType]) -> FieldType:
    """The type of an attribute, or of ``id``, ``label`` or ``sku``.

    Raises:
        FilterError: there is no such field; the message offers those with a similar name.
    """
    known: dict[str, FieldType] = {**fields, **OWN_FIELDS}
    if field in known:
        return known[field]
    near = difflib.get_close_matches(field, known, n=3, cutoff=0.5) or sorted(known)[:10]
    more = ", …" if len(near) == 10 < len(known) else ""
    raise FilterError(f"there is no field {_shown(field)}: do you mean {', '.join(near)}{more}?")


class _Compiler:
    """Collects the parameters, and counts, while a filter is turned into SQL."""

    def __init__(self, fields: Mapping[str, FieldType]) -> None:
        self.values: list[str | int] = []
        self._fields = fields
        self._conditions = 0
        self._values = 0

    def all_of(self, where: Any, *, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise FilterError(f"the filter is more than {MAX_DEPTH} filters deep: make it flatter.")
        if not isinstance(where, dict):
            raise FilterError(
                f"{_shown(where)} is not a filter: expected an object of fields and values, such "
                'as {"make": "BMW"}.'
            )
        self._count_condition()
        return _joined([self._condition(key, value, depth) for key, value in where.items()], "AND")

    def _condition(self, key: Any, value: Any, depth: int) -> str:
        if not isinstance(key, str):
            raise FilterError(f"{_shown(key)} is not the name of a field: expected text.")
        if key == "not":
            return f"({self.all_of(value, depth=depth + 1)}) IS NOT TRUE"
        if key == "any":
            if not _is_list(value) or not value:
                raise FilterError(
                    f'"any" is {_shown(value)}: expected a list of at least one filter.'
                )
            return _joined([self.all_of(each, depth=depth + 1) for each in value], "OR")
        return self._field(key, value)

    def _field(self, field: str, value: Any) -> str:
        kind = field_type(field, self._fields)
        if not isinstance(value, dict):
            return self._operator(field, kind, "in" if _is_list(value) else "eq", value)
        if not value:
            raise FilterError(
                f"the filter of {field} is empty: expected a value or an operator, one of "
                f"{', '.join(OPERATORS)}."
            )
        return _joined(
            [self._operator(field, kind, name, operand) for name, operand in value.items()], "AND"
        )

    def _operator(self, field: str, kind: FieldType, name: Any, operand: Any) -> str:
        self._count_condition()
        column = column_of(field)
        match name:
            case "eq" | "ne" if operand is None:
                return f"{column} IS {'NOT ' * (name == 'ne')}NULL"
            case "eq":
                return f"{column} = {self._parameter(field, kind, operand)}"
            case "ne":
                return f"{column} IS NOT {self._parameter(field, kind, operand)}"
            case "gt" | "gte" | "lt" | "lte":
                if kind == "boolean" or operand is None:
                    what = f"{field} is a boolean" if kind == "boolean" else "null has no order"
                    raise FilterError(
                        f"{name} cannot compare {field} with {_shown(operand)}: {what}."
                    )
                return f"{column} {COMPARISONS[name]} {self._parameter(field, kind, operand)}"
            case "in" | "not_in":
                if not _is_list(operand):
                    raise FilterError(
                        f"{name} of {field} is {_shown(operand)}: expected a list of values."
                    )
                found = self._any_value(column, field, kind, operand)
                return found if name == "in" else f"({found}) IS NOT TRUE"
            case "exists":
                if not isinstance(operand, bool):
                    raise FilterError(
                        f"exists of {field} is {_shown(operand)}: expected true or false."
                    )
                return f"{column} IS {'NOT ' * operand}NULL"
        raise FilterError(
            f"there is no operator {_shown(name)}: expected one of {', '.join(OPERATORS)}."
        )

    def _any_value(self, column: str, field: str, kind: FieldType, values: Sequence[Any]) -> str:
        self._count_values(len(values))
        marks = [self._parameter(field, kind, each) for each in values if each is not None]
        found = f"{column} IN ({', '.join(marks)})"
        return f"({found} OR {column} IS NULL)" if None in values else found

    def _parameter(self, field: str, kind: FieldType, value: Any) -> str:
        try:
            of_value = type_of(value)
        except InvalidArgumentError as error:
            raise FilterError(
                f"{field} cannot be compared with {_shown(value)}: {error}"
            ) from error
        if of_value != kind:
            raise FilterError(
                f"{field} cannot be compared with {_shown(value)}: it is a {kind}, not a "
                f"{of_value or 'null'}."
            )
        if isinstance(value, float):
            # Read by SQLite's own parser, as the stored ones are: another may round otherwise.
            self.values.append(json.dumps(value))
            return "json_extract(?, '$')"
        self.values.append(int(value) if kind != "string" else str(value))
        return "?"

    def _count_condition(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_VALUES:
            raise FilterError(f"the filter holds more than {MAX_VALUES} conditions: shorten it.")

    def _count_values(self, count: int) -> None:
        self._values += count
        if self._values > MAX_VALUES:
            raise FilterError(f"the filter holds more than {MAX_VALUES} values: shorten it.")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _joined(terms: Sequence[str], operator: str) -> str:
    """The terms in a balanced tree: SQLite limits the depth of an expression."""
    if not terms:
        return "TRUE"
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_joined(terms[:half], operator)} {operator} {_joined(terms[half:], operator)})"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if _is_list(value):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    # Half a surrogate pair, which JSON can name, is in no encoding that the message may be sent in.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 100 else f"{text[:100]}…"
