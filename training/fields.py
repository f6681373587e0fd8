"""What each field of ``TrainSettings`` says about itself: type, choices, default, section, help.

Presets check their values by it, the command line makes its options of it. No setting is declared
here: that is ``training.settings``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from training.settings import TrainSettings

__all__ = ["SettingField", "sections", "setting_fields"]

Kind = type[bool] | type[int] | type[float] | type[str]

_EXPECTED: dict[Kind, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
}


@dataclass(frozen=True, kw_only=True)
class SettingField:
    """One field of ``TrainSettings``.

    Attributes:
        name: as in ``TrainSettings``, with underscores.
        kind: the type of its values, ``None`` aside.
        choices: the only values it can have, or empty.
        optional: whether it can be ``None``, "chosen by what is there".
        default: its default.
        section: the heading it stands under.
        help: one sentence for the user.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...]
    optional: bool
    default: bool | int | float | str | None
    section: str
    help: str

    @property
    def option(self) -> str:
        """As typed on the command line: ``--batch-size``."""
        return "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        return _EXPECTED[self.kind]

    def accepts(self, value: object) -> bool:
        """Whether ``value``, as read from TOML, has the type and is among the choices.

        A whole number counts as a number, ``true`` does not. Ranges are for ``TrainSettings``.
        """
        if self.choices:
            return value in self.choices
        if isinstance(value, bool):
            return self.kind is bool
        return isinstance(value, int | float if self.kind is float else self.kind)


def setting_fields() -> tuple[SettingField, ...]:
    """All fields of ``TrainSettings``, in their order.

    Raises:
        TypeError: a field without a default, or of a type that neither an option nor a TOML key
            could have.
    """
    hints = get_type_hints(TrainSettings)
    return tuple(_describe(item, hints[item.name]) for item in dataclasses.fields(TrainSettings))


def sections() -> dict[str, list[SettingField]]:
    """The fields by section; both in the order in which ``TrainSettings`` first names them."""
    found: dict[str, list[SettingField]] = {}
    for field in setting_fields():
        found.setdefault(field.section, []).append(field)
    return found


def _describe(item: dataclasses.Field[Any], hint: Any) -> SettingField:
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = [part for part in parts if part is not type(None)]
    choices = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else ()
    kind = str if choices else kinds[0]
    if len(kinds) > 1 or kind not in _EXPECTED or item.default is dataclasses.MISSING:
        raise TypeError(f"no option can be made of TrainSettings.{item.name}: {hint}")
    return SettingField(
        name=item.name,
        kind=kind,
        choices=choices,
        optional=len(parts) > 1,
        default=item.default,
        section=item.metadata.get("section", "Settings"),
        help=item.metadata["help"],
    )
