"""Templates → pages: the one place that knows how values become text and text becomes HTML.

Templates escape whatever they are given; only ``charts`` hands them finished markup.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from training.report.charts import COLORS

__all__ = ["percent", "render", "setting_text"]


def render(template: str, **values: Any) -> bytes:
    """Fill a template of this package; styles and script go into the page."""
    files = importlib.resources.files("training.report") / "templates"
    style = (files / "style.css").read_text(encoding="utf-8")
    filled = _environment().get_template(template)
    return filled.render(style=Markup(style), colors=COLORS, **values).encode()


@functools.cache  # it keeps the compiled templates
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("training.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["grouped"] = _grouped
    environment.filters["moment"] = _moment
    return environment


def setting_text(value: object) -> str:
    """A setting as a reader knows it from the command line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def percent(share: float | None) -> str:
    """A share as percent with one decimal, without the sign."""
    return "–" if share is None else f"{100 * share:.1f}"


def _grouped(number: int) -> str:
    return f"{number:,}"


def _moment(iso: str) -> str:
    """An ISO time to the minute, as it was written down: 2026-11-24 21:14."""
    return iso[:16].replace("T", " ")
