"""The tables of ``docs/training.md``, made from what they describe.

``python -m tests.training.training_guide`` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.fields import SettingField, sections
from training.loss_expression import LOSSES
from training.presets import list_presets

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def with_tables(text: str) -> str:
    """``text`` with the tables between its marks as they should be."""
    tables = {"losses": losses(), "presets": presets(), "settings": settings()}
    for mark, table in tables.items():
        start, end = f"<!-- {mark} -->\n", "\n<!-- end -->"
        before, _, after = text.partition(start)
        _, found, rest = after.partition(end.lstrip())
        assert found, f"no mark {start.strip()} … {end.strip()} in {GUIDE.name}"
        text = before + start + table + end + rest
    return text


def settings() -> str:
    rows = ["| | default | |", "|---|---|---|"]
    for section, fields in sections().items():
        rows.append(f"| **{section}** | | |")
        rows += [
            f"| `{name(field)}` | {default(field)} | {description(field)} |" for field in fields
        ]
    return "\n".join(rows)


def name(field: SettingField) -> str:
    return f"{field.option}/--no-{field.option[2:]}" if field.kind is bool else field.option


def default(field: SettingField) -> str:
    if field.default in (None, ""):
        stated = re.search(r"\[default: (.*)\]", field.help)
        return stated[1].replace("--size", "`--size`") if stated else ""
    return {True: "yes", False: "no"}[field.default] if field.kind is bool else f"`{field.default}`"


def description(field: SettingField) -> str:
    return re.sub(r"\s*\[default: .*\]", "", field.help).replace("|", "\\|")


def losses() -> str:
    rows = ["| loss | hyper-parameters |", "|---|---|"]
    for loss, parameters in LOSSES.items():
        given = ", ".join(f"{key}={item.default:g}" for key, item in parameters.items())
        rows.append(f"| `{loss}` | {f'`{given}`' if given else ''} |")
    return "\n".join(rows)


def presets() -> str:
    rows = ["| preset | |", "|---|---|"]
    rows += [
        f"| [`{key}`](../training/presets/{key}.toml) | {text} |" for key, text in list_presets()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    GUIDE.write_text(with_tables(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
