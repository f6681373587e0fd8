"""Charts as inline SVG: lines, grouped bars, a scatter plot. Numbers in, markup out.

Text goes through ``Markup.format``, which escapes it. Colours are the page's custom properties
(``--series-0`` …), so that charts follow its light and dark looks; what they tell apart is also
told by dashes, order or labels. Nothing here knows what the numbers mean.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from markupsafe import Markup

__all__ = [
    "COLORS",
    "Bars",
    "Cloud",
    "Line",
    "grouped_bars",
    "hue",
    "line_chart",
    "scatter",
    "ticks",
]

#: How many series colours the page defines; further series start again.
COLORS = 8

#: Size of lines and bars in SVG units, about CSS pixels of a chart on a phone.
WIDTH, HEIGHT = 440.0, 264.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 14.0, 40.0

#: Size of the scatter plot, and its margin.
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 960.0, 640.0, 24.0

#: A percentage of two digits is this wide.
NUMBER_WIDTH = 14.0

#: Points up to which a line shows a dot at each.
DOTS = 60

#: Classes up to which a map names them all at once, and characters it has for a name.
NAMED, NAME_LENGTH = 20, 36

#: Width of a letter and height of a line in the map's names.
LETTER, LINE = 7.8, 17.0

#: Full turn over the golden ratio, in degrees: hues in sequence that stay apart.
GOLDEN_ANGLE = 137.508


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a line chart; None and NaN leave a gap."""

    name: str
    values: Sequence[float | None]
    color: int | None = 0  #: None: neutral
    reference: bool = False  #: dashed and thin: a level that others are seen against
    listed: bool = True  #: whether the legend has it


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One bar in each group of a bar chart."""

    name: str
    values: Sequence[float | None]
    color: int | None = 0  #: None: neutral, for what others are seen against
    hollow: bool = False  #: an outline: measured another way than the filled ones


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """The points of one class in a scatter plot, each in 0 … 1 from the left and the bottom."""

    name: str
    points: Sequence[tuple[float, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 × a power of ten apart) that span ``low`` … ``high``.

    Args:
        low: the least value.
        high: the largest; room is made around them if they are the same.
        count: about how many steps.

    Returns:
        At least two values, ascending; the first is <= ``low``, the last is >= ``high``.
    """
    if high == low:
        pad = abs(low) / 10 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line], *, xs: Sequence[int], label: str, x_label: str, percent: bool = False
) -> Markup:
    """Draw lines over whole numbers.

    Args:
        lines: values at each of ``xs``.
        xs: ascending, at least one.
        label: what the chart shows, for those who do not see it.
        x_label: under the axis.
        percent: values are shares, 0 … 1.
    """
    known = [value for line in lines for value in line.values if _is_known(value)]
    marks = ticks(min(known, default=0.0), max(known, default=1.0))
    if percent:
        marks = [mark for mark in marks if -1e-9 <= mark <= 1 + 1e-9]
    first, last = (xs[0], xs[-1]) if len(xs) > 1 else (xs[0] - 1, xs[0] + 1)
    across = _Scale(low=first, high=last, start=LEFT, end=WIDTH - RIGHT)
    up = _Scale(low=marks[0], high=marks[-1], start=HEIGHT - BOTTOM, end=TOP)

    parts = [_y_axis(marks, up, percent=percent)]
    parts += [_text("tick", across(x), HEIGHT - BOTTOM + 17, str(x)) for x in _whole_ticks(xs)]
    parts.append(_text("axis", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label))
    for line in lines:
        places = [
            (across(x), up(value), f"{line.name}, {x_label} {x}: {_number(value, percent)}")
            if _is_known(value)
            else None
            for x, value in zip(xs, line.values, strict=True)
        ]
        parts.append(_line(line, places))
    entries = [
        ("key-line reference" if line.reference else "key-line", line.color, line.name)
        for line in lines
        if line.listed
    ]
    return _figure(parts, WIDTH, HEIGHT, label) + _legend(entries)


def grouped_bars(bars: Sequence[Bars], *, groups: Sequence[str], label: str) -> Markup:
    """Draw shares (0 … 1) as percent, bars of a group side by side, from zero.

    Args:
        bars: a value for each of ``groups``; None leaves its place empty.
        groups: names under the axis.
        label: what the chart shows, for those who do not see it.
    """
    up = _Scale(low=0, high=1, start=HEIGHT - BOTTOM, end=TOP)
    parts = [_y_axis([0.0, 0.25, 0.5, 0.75, 1.0], up, percent=True)]
    group_width = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(34.0, 0.84 * group_width / len(bars))
    gap = min(3.0, 0.2 * width)
    for g, group in enumerate(groups):
        middle = LEFT + (g + 0.5) * group_width
        parts.append(_text("tick", middle, HEIGHT - BOTTOM + 18, group))
        for b, bar in enumerate(bars):
            value = bar.values[g]
            if value is None:
                continue
            left = middle + (b - len(bars) / 2) * width
            rect = Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>'
            ).format(left + gap / 2, up(value), width - gap, up(0) - up(value))
            # A number wider than its bar would run into the next one.
            number = f"{100 * value:.0f}" if width >= NUMBER_WIDTH else ""
            parts.append(
                Markup('<g class="{}" style="{}"><title>{}, {}: {}</title>{}{}</g>').format(
                    "bar hollow" if bar.hollow else "bar",
                    _color(bar.color),
                    bar.name,
                    group,
                    _number(value, percent=True),
                    rect,
                    _text("value", left + width / 2, up(value) - 4, number),
                )
            )
    entries = [("key-bar hollow" if bar.hollow else "key-bar", bar.color, bar.name) for bar in bars]
    return _figure(parts, WIDTH, HEIGHT, label) + _legend(entries)


def scatter(clouds: Sequence[Cloud], *, label: str) -> Markup:
    """Draw points, a colour and one of two shapes for each class; classes of few points on top.

    Up to ``NAMED`` classes are named where they lie; the others by the pointer.
    """
    order = sorted(range(len(clouds)), key=lambda i: (-len(clouds[i].points), i))
    named = len(clouds) <= NAMED
    shapes: list[Markup] = []
    names: list[Markup] = []
    taken: list[_Label] = []
    for i in order:
        cloud = clouds[i]
        places = [
            (
                MAP_MARGIN + (MAP_WIDTH - 2 * MAP_MARGIN) * x,
                MAP_HEIGHT - MAP_MARGIN - (MAP_HEIGHT - 2 * MAP_MARGIN) * y,
            )
            for x, y in cloud.points
        ]
        # A stroke without length is a dot whose size the page sets, on small screens a larger one.
        path = "".join(f"M{x:.1f} {y:.1f}h.01" for x, y in places)
        shapes.append(
            Markup(
                '<path class="{}" data-class="{}" style="{}" d="{}"><title>{}</title></path>'
            ).format("dots square" if i % 2 else "dots", i, hue(i), path, cloud.name)
        )
        name = _Label.at(_middle(places), _shortened(cloud.name))
        if named:
            name = name.clear_of(taken)
            taken.append(name)
        names.append(
            Markup(
                '<text data-class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
            ).format(i, name.x, name.y, name.text)
        )
    kind = "map named" if named else "map"
    return _figure([*shapes, *names], MAP_WIDTH, MAP_HEIGHT, label, kind=kind)


def hue(i: int) -> str:
    """The style that colours class ``i`` of a scatter plot."""
    return f"--hue:{i * GOLDEN_ANGLE % 360:.0f}"


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Values ``low`` … ``high`` → places ``start`` … ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class _Label:
    """A name on the map, around its middle."""

    text: str
    x: float
    y: float
    width: float

    @classmethod
    def at(cls, place: tuple[float, float], text: str) -> _Label:
        """At ``place``, or as near as the map's edges allow."""
        width = LETTER * len(text)
        x = min(max(place[0], MAP_MARGIN + width / 2), MAP_WIDTH - MAP_MARGIN - width / 2)
        return cls(text=text, x=x, y=place[1], width=width)

    def clear_of(self, others: Sequence[_Label]) -> _Label:
        """The nearest place above or below that no other name takes; this one if there is none."""
        for lines in (0, 1, -1, 2, -2, 3, -3):
            moved = replace(self, y=self.y + lines * LINE)
            inside = LINE < moved.y < MAP_HEIGHT - LINE / 2
            if inside and not any(moved._overlaps(other) for other in others):
                return moved
        return self

    def _overlaps(self, other: _Label) -> bool:
        apart = (self.width + other.width) / 2
        return abs(self.x - other.x) < apart and abs(self.y - other.y) < LINE


def _line(line: Line, places: Sequence[tuple[float, float, str] | None]) -> Markup:
    """A path through the places that are known, each with its tooltip."""
    commands, dots = [], []
    pen = "M"
    for place in places:
        if place is None:
            pen = "M"
            continue
        x, y, title = place
        commands.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
        # The dot is seen; the ring around it is there for the pointer to meet.
        dots.append(
            Markup(
                '<g>{}<circle class="reach" cx="{:.1f}" cy="{:.1f}" r="8"/><title>{}</title></g>'
            ).format(
                Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.4"/>').format(x, y)
                if len(places) <= DOTS and not line.reference
                else "",
                x,
                y,
                title,
            )
        )
    return Markup('<g class="{}" style="{}"><path d="{}"/>{}</g>').format(
        "line reference" if line.reference else "line",
        _color(line.color),
        "".join(commands),
        Markup("").join(dots),
    )


def _y_axis(marks: Sequence[float], up: _Scale, *, percent: bool) -> Markup:
    shown = [100 * mark if percent else mark for mark in marks]
    step = min(b - a for a, b in itertools.pairwise(shown))
    decimals = next((n for n in range(6) if abs(step - round(step, n)) < 1e-9), 6)
    parts = []
    for mark, value in zip(marks, shown, strict=True):
        parts.append(
            Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, up(mark), up(mark)
            )
        )
        number = f"{value + 0.0:.{decimals}f}" + " %" * percent
        parts.append(_text("tick", LEFT - 6, up(mark) + 4, number, anchor="end"))
    return Markup("").join(parts)


def _whole_ticks(xs: Sequence[int]) -> list[int]:
    """Whole numbers from ``xs`` to mark, the first and the last among them."""
    step = max(1, round(ticks(0, len(xs), 7)[1]))
    # The first and the last may stand closer than a step to the marks beside them.
    inner = [x for x in xs if x % step == 0 and min(x - xs[0], xs[-1] - x) >= 0.6 * step]
    return sorted({xs[0], *inner, xs[-1]})


def _text(kind: str, x: float, y: float, text: str, *, anchor: str = "middle") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _figure(
    parts: Sequence[Markup], width: float, height: float, label: str, *, kind: str = "plot"
) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>'
                  ).format(kind, width, height, label, Markup("").join(parts))  # fmt: skip


def _legend(entries: Sequence[tuple[str, int | None, str]]) -> Markup:
    """A list of (class of the key, its colour, name)."""
    items = [
        Markup('<li><span class="{}" style="{}"></span>{}</li>').format(kind, _color(color), name)
        for kind, color, name in entries
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _color(color: int | None) -> str:
    name = "neutral" if color is None else f"series-{color % COLORS}"
    return f"--color:var(--{name})"


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def _middle(places: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The place nearest to the medians of both axes: always on a point, never between two heaps."""
    x, y = (statistics.median(axis) for axis in zip(*places, strict=True))
    return min(places, key=lambda place: math.dist(place, (x, y)))


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "…"
