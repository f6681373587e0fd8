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

This module checks a filter and takes it apart; nothing else knows the language. A ``Dialect``
writes the parts down as a condition for the database that holds the items. Names are looked up
among the fields, so a dialect never meets one that is not there.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from index.attributes import OWN_FIELDS, FieldType, type_of
from index.errors import FilterError, InvalidArgumentError
from index.filter_dialects import Comparison, Dialect, Parameter, SqlDialect, Value

__all__ = ["Filter", "compile_where", "either", "field_type"]

#: Values that one filter may hold, and conditions.
MAX_VALUES = 1000

#: Filters within filters.
MAX_DEPTH = 8

COMPARISONS: dict[str, Comparison] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPERATORS = ("eq", "ne", *COMPARISONS, "in", "not_in", "exists")


@dataclass(frozen=True)
class Filter:
    """A filter, ready for the database that holds the items."""

    condition: str  #: in the words of its dialect
    values: tuple[Parameter, ...]  #: its parameters, where the dialect has any
    key: str  #: the same for filters that are written alike but for the order of their keys


def compile_where(
    where: Mapping[str, Any],
    fields: Mapping[str, FieldType],
    dialect: Dialect | None = None,
) -> Filter:
    """Check a filter and turn it into a condition; see the module for the language.

    Args:
        where: the filter; ``{}`` lets every item through.
        fields: the attributes there are and their types, as ``Catalog.fields`` gives them.
        dialect: of the database, used for this filter alone; default: the catalog's.

    Raises:
        FilterError: a field or an operator that there is not, a value whose type is not the
            field's, a filter of another form, or one that is too large: more than 1,000 values,
            1,000 conditions or 8 filters deep.
    """
    dialect = dialect or SqlDialect()
    condition = _Compiler(fields, dialect).all_of(where, depth=1)
    key = json.dumps(where, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Filter(condition, tuple(dialect.parameters), key)


def either(first: Filter, second: Filter) -> Filter:
    """The items that at least one of two filters matches."""
    return Filter(
        f"(({first.condition}) or ({second.condition}))",
        first.values + second.values,
        f"{first.key} or {second.key}",
    )


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
    """Checks and counts while a filter is taken apart."""

    def __init__(self, fields: Mapping[str, FieldType], dialect: Dialect) -> None:
        self._fields = fields
        self._dialect = dialect
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
        conditions = [self._condition(key, value, depth) for key, value in where.items()]
        return self._dialect.joined(conditions, "and")

    def _condition(self, key: Any, value: Any, depth: int) -> str:
        if not isinstance(key, str):
            raise FilterError(f"{_shown(key)} is not the name of a field: expected text.")
        if key == "not":
            return self._dialect.negated(self.all_of(value, depth=depth + 1))
        if key == "any":
            if not _is_list(value) or not value:
                raise FilterError(
                    f'"any" is {_shown(value)}: expected a list of at least one filter.'
                )
            alternatives = [self.all_of(each, depth=depth + 1) for each in value]
            return self._dialect.joined(alternatives, "or")
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
        conditions = [self._operator(field, kind, name, operand) for name, operand in value.items()]
        return self._dialect.joined(conditions, "and")

    def _operator(self, field: str, kind: FieldType, name: Any, operand: Any) -> str:
        self._count_condition()
        write = self._dialect
        match name:
            case "eq" | "ne" if operand is None:
                return write.exists(field, name == "ne")
            case "eq":
                return write.equals(field, self._value(field, kind, operand))
            case "ne":
                return write.differs(field, self._value(field, kind, operand))
            case "gt" | "gte" | "lt" | "lte":
                if kind == "boolean" or operand is None:
                    what = f"{field} is a boolean" if kind == "boolean" else "null has no order"
                    raise FilterError(
                        f"{name} cannot compare {field} with {_shown(operand)}: {what}."
                    )
                value = self._value(field, kind, operand)
                return write.compares(field, COMPARISONS[name], value)
            case "in" | "not_in":
                if not _is_list(operand):
                    raise FilterError(
                        f"{name} of {field} is {_shown(operand)}: expected a list of values."
                    )
                found = self._any_value(field, kind, operand)
                return found if name == "in" else write.negated(found)
            case "exists":
                if not isinstance(operand, bool):
                    raise FilterError(
                        f"exists of {field} is {_shown(operand)}: expected true or false."
                    )
                return write.exists(field, operand)
        raise FilterError(
            f"there is no operator {_shown(name)}: expected one of {', '.join(OPERATORS)}."
        )

    def _any_value(self, field: str, kind: FieldType, values: Sequence[Any]) -> str:
        self._count_values(len(values))
        found = self._dialect.is_one_of(
            field, [self._value(field, kind, each) for each in values if each is not None]
        )
        if None not in values:
            return found
        return self._dialect.joined([found, self._dialect.exists(field, False)], "or")

    def _value(self, field: str, kind: FieldType, value: Any) -> Value:
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
        checked: Value = value
        return checked

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


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if _is_list(value):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    # Half a surrogate pair, which JSON can name, is in no encoding that the message may be sent in.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 100 else f"{text[:100]}…"
