"""What an attribute may be: its name, its value and the type that its values share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from index.errors import AttributeTypeError, InvalidArgumentError
from index.photos import AttributeValue

__all__ = [
    "OWN_FIELDS",
    "RESERVED",
    "FieldType",
    "check_name",
    "check_text",
    "new_types",
    "type_of",
]

FieldType = Literal["string", "number", "boolean"]

#: Fields that every item has, beside its attributes.
OWN_FIELDS: dict[str, FieldType] = {"id": "number", "label": "string", "sku": "string"}

#: Names that no attribute can have: own fields, and the words by which filters combine.
RESERVED = (*OWN_FIELDS, "any", "not")

MAX_NAME = 64

#: SQLite's integers have 64 bits.
MAX_INTEGER = 2**63 - 1


def check_name(name: str) -> None:
    r"""Refuse a name that no attribute can have.

    Raises:
        InvalidArgumentError: not 1 to 64 characters; with ``"``, ``\`` or a control character; or
            one that is reserved: ``id``, ``label``, ``sku``, ``any`` and ``not``.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise InvalidArgumentError(
            f"the attribute name {str(name)[:MAX_NAME]!r} is not 1 to {MAX_NAME} "
            "characters long: choose another."
        )
    if any(character in '"\\' or ord(character) < 32 or character == "\x7f" for character in name):
        raise InvalidArgumentError(
            f'the attribute name {name!r} holds a ", a \\ or a control character: choose another.'
        )
    if name in RESERVED:
        raise InvalidArgumentError(
            f"no attribute can be called {name!r}: {', '.join(RESERVED)} mean something else. "
            "Choose another name."
        )
    check_text("the attribute name", name)


def check_text(what: str, text: str) -> None:
    """Refuse text that a database cannot hold.

    Raises:
        InvalidArgumentError: not a string, or with a NUL or half a surrogate pair; ``what`` names
            it in the message.
    """
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{what} is {text!r}: expected text.")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidArgumentError(
            f"{what}, {text[:100]!r}, holds a NUL or half a surrogate pair: use plain text."
        )


def type_of(value: AttributeValue) -> FieldType | None:
    """The type of an attribute's value; None, which fits every type, has none.

    Raises:
        AttributeTypeError: none of string, number, boolean and None.
        InvalidArgumentError: a number that is not finite, or an integer beyond 64 bits; text that
            a database cannot hold.
    """
    if value is None:
        return None
    if isinstance(value, bool):  # a bool is an int to Python
        return "boolean"
    if isinstance(value, str):
        check_text("the value", value)
        return "string"
    if isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise InvalidArgumentError(f"{value} is beyond 64 bits: write it as text.")
        return "number"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidArgumentError(f"{value} is not a finite number: leave it out.")
        return "number"
    raise AttributeTypeError(
        f"a value of type {type(value).__name__} is none that attributes have: expected a string, "
        "a number, a boolean or null."
    )


def new_types(
    known: Mapping[str, FieldType],
    described: Iterable[tuple[str, Mapping[str, AttributeValue]]],
) -> dict[str, FieldType]:
    """The types of attributes that are not known yet; all values held against those that are.

    Args:
        known: the types there are.
        described: what an item is called in messages, and its attributes.

    Raises:
        AttributeTypeError: a value of another type than its attribute has.
        InvalidArgumentError: a name or a value that no attribute can have.
    """
    new: dict[str, FieldType] = {}
    for item, attributes in described:
        for name, value in attributes.items():
            expected = known.get(name) or new.get(name)
            try:
                if expected is None:
                    check_name(name)
                kind = type_of(value)
            except InvalidArgumentError as error:
                raise type(error)(f"{item}, attribute {name!r}: {error}") from error
            if kind is None:
                continue
            if expected is None:
                new[name] = kind
            elif kind != expected:
                raise AttributeTypeError(
                    f"{item}, attribute {name!r}: {value!r} is a {kind}, but the gallery's values "
                    f"of it are a {expected} each. Convert it, or give it another name."
                )
    return new
