"""Presets: settings for one purpose, as commented TOML files.

The shipped ones lie beside this module; a user's own may lie anywhere. What is read here is checked
for names and types; ranges are checked by ``TrainSettings``, together with what else it is told.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from index.errors import DsclError
from training.fields import SettingField, setting_fields

__all__ = ["PresetError", "list_presets", "load_preset"]


class PresetError(DsclError):
    """A preset that does not exist, cannot be read, or names what there is not."""

    code = "preset_invalid"


def load_preset(name_or_path: str) -> dict[str, Any]:
    """The settings that a preset names, and no others.

    Args:
        name_or_path: a shipped preset, or else the path of a TOML file. Its keys are fields of
            ``TrainSettings`` (``batch_size`` or ``batch-size``) and ``out``, the run folder.

    Returns:
        Values by field name, of the field's type.

    Raises:
        PresetError: no such preset or file; no TOML; an unknown key or a value of another type.
    """
    shipped = _shipped()
    source: Traversable = shipped.get(name_or_path, Path(name_or_path))
    if not source.is_file():
        raise PresetError(
            f"there is no preset and no file {name_or_path!r}: {_nearest(name_or_path, shipped)}"
        )
    try:
        given = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PresetError(f"{source} cannot be read as TOML: {error}.") from error
    known = {field.name: field for field in setting_fields()}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in values:
            raise PresetError(f"{source}: {name} stands twice, with - and with _: keep one.")
        if name == "out":
            values[name] = _text(source, value)
        elif name in known:
            values[name] = _checked(source, known[name], value)
        else:
            raise PresetError(f"{source}: unknown key {key!r}: {_nearest(name, [*known, 'out'])}")
    return values


def list_presets() -> list[tuple[str, str]]:
    """The shipped presets: name and first line of comment, by name."""
    return [
        (name, source.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip())
        for name, source in _shipped().items()
    ]


def _shipped() -> dict[str, Traversable]:
    found = [item for item in files(__name__).iterdir() if item.name.endswith(".toml")]
    return {item.name.removesuffix(".toml"): item for item in sorted(found, key=lambda i: i.name)}


def _checked(source: Traversable, field: SettingField, value: object) -> object:
    if not field.accepts(value):
        raise _mistyped(source, field.name, value, field.expected)
    return float(value) if field.kind is float and isinstance(value, int) else value


def _text(source: Traversable, value: object) -> str:
    if not isinstance(value, str):
        raise _mistyped(source, "out", value, "text in quotes")
    return value


def _mistyped(source: Traversable, key: str, value: object, expected: str) -> PresetError:
    # JSON spells numbers, texts and truth as TOML does.
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return PresetError(f"{source}: {key} is {shown}: expected {expected}.")


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word, names)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names)}."
