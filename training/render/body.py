"""The surfaces of a drawn car: from the parameters of a model to painted pieces in space.

Car coordinates in metres: x forwards from the middle of the wheelbase, y to the car's left, z up
from the ground. The body is a profile in (x, z) that is carried across the width; windows, doors,
lamps and the rest are flat shapes laid on it. A car is symmetric, so only its left side is built:
a photo of the right side is a mirrored one. Cameras and colours live elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.render.model import BodyType, CarModel
from training.render.shapes import Array, dense, polyline

__all__ = [
    "BACKLIGHT",
    "BONNET",
    "DECK",
    "FRONT",
    "LEFT",
    "NOSE",
    "REAR",
    "ROOF",
    "SCREEN",
    "TAIL",
    "TOP",
    "UNDERTAIL",
    "VALANCE",
    "Face",
    "Material",
    "Patch",
    "Place",
    "Surface",
    "segment_rows",
    "shell",
]

FRONT, LEFT, TOP = np.eye(3)
REAR = -FRONT

#: Lays flat places [n, 2] on the body: points [n, 3].
Place = Callable[[Array], Array]

#: Positions across the car, from its right edge (−1) to its left (1), closer near the edges.
ACROSS = np.array([-1, -0.96, -0.89, -0.75, -0.5, -0.2, 0.2, 0.5, 0.75, 0.89, 0.96, 1])

#: Points along each of the nine segments of the profile.
SEGMENT_POINTS = 11
VALANCE, NOSE, BONNET, SCREEN, ROOF, BACKLIGHT, DECK, TAIL, UNDERTAIL = range(9)


class Material(IntEnum):
    """What a piece is made of; how it looks is the painter's business."""

    PAINT = 0
    GLASS = 1
    TRIM = 2
    GAP = 3
    CHROME = 4
    LAMP = 5
    LENS = 6
    TAIL_LAMP = 7
    TAIL_LENS = 8
    PLATE = 9
    RUBBER = 10
    RIM = 11
    DARK_RIM = 12
    CREASE = 13
    SIGNAL = 14
    SIGN = 15
    SHADE = 16


class Patch(NamedTuple):
    """A polygon, or a line if ``width`` (metres) is not zero, on or near the body."""

    points: Array
    material: Material
    #: Unit vector outwards.
    normal: Array
    width: float

    @classmethod
    def polygon(cls, points: Array, material: Material, facing: Array) -> Patch:
        """A polygon [n, 3]; of its two sides the one towards ``facing`` is painted."""
        # Newell's method: holds for polygons that are not quite flat.
        normal = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
        size = float(np.linalg.norm(normal))
        if size < 1e-9:
            return cls(points, material, facing, 0.0)
        return cls(points, material, normal / np.copysign(size, normal @ facing), 0.0)

    @classmethod
    def line(cls, points: Array, material: Material, facing: Array, width: float) -> Patch:
        """A line through points [n, 3]."""
        return cls(points, material, facing, width)


@dataclass(frozen=True)
class Face:
    """One face of the body, on which flat shapes [n, 2] can be laid."""

    place: Place
    facing: Array

    def polygon(self, shape: Array, material: Material) -> Patch:
        """Lay a polygon on the face."""
        return Patch.polygon(self.place(dense(shape)), material, self.facing)

    def line(self, points: Array, material: Material, width: float) -> Patch:
        """Lay a line of ``width`` metres on the face."""
        return Patch.line(self.place(polyline(points)), material, self.facing, width)


class Surface:
    """The body's outer surface: profile, half width, and places on it."""

    def __init__(self, model: CarModel) -> None:
        self.model = model
        self.front_x = model.wheelbase / 2 + model.front_overhang
        self.rear_x = -(model.wheelbase / 2 + model.rear_overhang)
        self.bumper_z = model.clearance + 0.5 * (model.nose_height - model.clearance)
        self.deck_z = model.cowl_height + model.belt_rise
        corners, offsets, radii, bulges = self._corners()
        #: Profile [rows, 2] in (x, z) at the car's middle and at its edge, from chin to rear end.
        self.centre = _profile(corners, radii, bulges)
        self.edge = _profile(corners + offsets, radii, bulges)
        self.corners = corners + offsets

    def _corners(self) -> tuple[Array, Array, Array, Array]:
        """Corners of the profile, from chin to rear end, with how each edge of the car differs."""
        m = self.model
        cowl_x = self.front_x - m.bonnet * m.length
        tail_x = self.rear_x + m.tail_rake
        deck_x = tail_x + m.deck * m.length
        roof_x = deck_x + m.backlight * m.length
        header_x = cowl_x - m.screen * m.length
        rear_bumper_z = m.clearance + 0.42 * (self.deck_z - m.clearance)
        nose, tail = m.nose_bow, m.tail_bow
        table = np.array(
            [  # x, z, edge's x and z from there, radius of the corner, bulge of what follows
                (self.front_x - 0.1, m.clearance + 0.02, -nose, 0.0, 0.06, 0.01),
                (self.front_x, self.bumper_z, -nose, 0.0, 0.16, 0.02),
                (self.front_x - m.nose_rake, m.nose_height, -0.85 * nose, -0.05, 0.13, 0.03),
                (cowl_x, m.cowl_height, -0.16, -0.05, 0.12, 0.03),
                (header_x, m.height - 0.02, -0.07, -0.06, 0.3, m.roof_arch * (header_x - roof_x)),
                (roof_x, m.height - m.roof_drop, 0.06, -0.06, 0.2, 0.03),
                (deck_x, self.deck_z, 0.08, -0.035, 0.12, 0.015),
                (tail_x, self.deck_z - 0.03, 0.8 * tail, -0.035, 0.07, 0.02),
                (self.rear_x, rear_bumper_z, tail, 0.0, 0.14, 0.01),
                (self.rear_x + 0.1, m.clearance + 0.06, tail, 0.0, 0.06, 0.0),
            ]
        )
        return table[:, :2], table[:, 2:4], table[:, 4], table[:-1, 5]

    def belt(self, x: Array) -> Array:
        """Height of the line under the side windows."""
        (front_x, _), (rear_x, _) = self.corners[BONNET + 1], self.corners[DECK]
        share = (front_x - x) / (front_x - rear_x)
        height: Array = self.model.cowl_height - 0.05 + self.model.belt_rise * share
        return height

    def crease(self, x: Array) -> Array:
        """Height of the crease along the side."""
        m = self.model
        base = m.clearance + m.crease * (m.cowl_height - 0.05 - m.clearance)
        return base + m.crease_rise * (self.front_x - x) / m.length

    def half_width(self, x: Array, z: Array) -> Array:
        """Half the car's width at (x, z) of the side view."""
        m = self.model
        belt, crease = self.belt(x), self.crease(x)
        below = np.clip((crease - z) / (crease - m.clearance), 0, 1.2)
        above = np.clip((z - crease) / (belt - crease), 0, 1)
        glasshouse = np.maximum(z - belt, 0)
        width = m.width / 2 - 0.07 * below**1.8 - 0.05 * above**1.5
        width -= m.tumblehome * glasshouse + 0.025 * np.minimum(glasshouse / 0.06, 1)
        width -= 0.12 * np.clip((x - self.front_x + 0.85) / 0.85, 0, 1) ** 2
        width -= 0.08 * np.clip((self.rear_x + 0.7 - x) / 0.7, 0, 1) ** 2
        for axle in (m.wheelbase / 2, -m.wheelbase / 2):
            flare = np.exp(-(((x - axle) / (1.25 * m.wheel_radius)) ** 2) - ((z - 0.5) / 0.3) ** 2)
            width += 0.03 * flare
        return width

    def loft(self, rows: Array, across: Array) -> Array:
        """Points [n, 3] at fractional profile rows and positions −1…1 across the car."""
        index = np.arange(len(self.centre))
        cx, cz = (np.interp(rows, index, self.centre[:, i]) for i in (0, 1))
        ex, ez = (np.interp(rows, index, self.edge[:, i]) for i in (0, 1))
        swept, crowned = np.abs(across) ** 2.4, np.abs(across) ** 3
        x, z = cx + (ex - cx) * swept, cz + (ez - cz) * crowned
        return np.stack([x, across * self.half_width(ex, ez), z], axis=-1)

    def at_front(self, places: Array) -> Array:
        """Points [n, 3] of the front face at [n, 2]: position −1…1 across, height z."""
        across, z = places.T
        rows = segment_rows(VALANCE, NOSE)
        return self.loft(np.interp(z, self.centre[rows, 1], rows), across)

    def at_rear(self, places: Array) -> Array:
        """Points [n, 3] of the rear face at [n, 2]: position −1…1 across, height z."""
        across, z = places.T
        rows = segment_rows(TAIL, UNDERTAIL)[::-1]
        return self.loft(np.interp(z, self.centre[rows, 1], rows), across)

    def at_left(self, places: Array) -> Array:
        """Points [n, 3] of the left side at [n, 2]: x and z."""
        x, z = places.T
        return np.stack([x, self.half_width(x, z), z], axis=-1)

    def underside(self, x: Array) -> Array:
        """Height of the body's lower edge, the bumpers' upward turn included."""
        rows = np.concatenate([segment_rows(UNDERTAIL), segment_rows(VALANCE)])
        ends = self.edge[rows]
        turn = len(rows) // 2
        sill = np.array(
            [
                [ends[turn - 1, 0] + 0.3, self.model.clearance],
                [ends[turn, 0] - 0.3, self.model.clearance],
            ]
        )
        line = np.concatenate([ends[:turn], sill, ends[turn:]])
        height: Array = np.interp(x, line[:, 0], line[:, 1])
        return height


def segment_rows(first: int, last: int | None = None) -> NDArray[np.int64]:
    """Profile rows of the segments first…last, both ends included."""
    stop = (first if last is None else last) + 1
    return np.arange(first * (SEGMENT_POINTS - 1), stop * (SEGMENT_POINTS - 1) + 1)


def _profile(corners: Array, radii: Array, bulges: Array) -> Array:
    """Round the corners of a polyline and bow its segments: [rows, 2]."""
    steps = np.diff(corners, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    steps = steps / lengths[:, None]
    reach = np.minimum(radii[1:-1], 0.45 * np.minimum(lengths[:-1], lengths[1:]))
    reach = np.concatenate([[0.0], reach, [0.0]])
    rows = []
    for i, (step, bulge) in enumerate(zip(steps, bulges, strict=True)):
        start, end = corners[i] + reach[i] * step, corners[i + 1] - reach[i + 1] * step
        before = corners[i] - reach[i] * steps[i - 1] if i else start
        after = corners[i + 1] + reach[i + 1] * steps[i + 1] if i + 1 < len(steps) else end
        u = np.linspace(0, 1, SEGMENT_POINTS - 4)[:, None]
        outward = np.array([step[1], -step[0]])
        middle = start + u * (end - start) + bulge * 4 * u * (1 - u) * outward
        first = _bezier(before, corners[i], start, np.array([0.5, 0.75]))
        last = _bezier(end, corners[i + 1], after, np.array([0.25, 0.5]))
        rows.append(np.concatenate([first, middle, last])[: None if i + 1 == len(steps) else -1])
    return np.concatenate(rows)


def _bezier(a: Array, b: Array, c: Array, t: Array) -> Array:
    t = t[:, None]
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def shell(surface: Surface) -> tuple[Array, NDArray[np.int64]]:
    """The closed skin of the car's top, ends and left side.

    Returns:
        float64 [n, 4, 3], the corners of each quad in turn, counter-clockwise seen from outside,
        and int64 [n], its ``Material``.
    """
    top, materials = _top(surface)
    side = _side(surface)
    paint = np.full(len(side), Material.PAINT, dtype=np.int64)
    return np.concatenate([top, side]), np.concatenate([materials, paint])


def _top(surface: Surface) -> tuple[Array, NDArray[np.int64]]:
    """The profile carried across the car: bonnet, screen, roof and so on, as quads."""
    m = surface.model
    rows = len(surface.centre)
    r, t = np.meshgrid(np.arange(rows, dtype=float), ACROSS, indexing="ij")
    grid = surface.loft(r.ravel(), t.ravel()).reshape(rows, len(ACROSS), 3)
    quads = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=2)
    materials = np.full(quads.shape[:2], Material.PAINT, dtype=np.int64)
    inner = slice(1, len(ACROSS) - 2)

    def cover(segment: int, first: int, last: int, columns: slice, material: Material) -> None:
        start = segment * (SEGMENT_POINTS - 1)
        materials[start + first : start + last, columns] = material

    cover(SCREEN, 1, SEGMENT_POINTS - 2, inner, Material.GLASS)
    if m.glazed:
        cover(BACKLIGHT, 1, SEGMENT_POINTS - 2, inner, Material.GLASS)
    if m.sunroof:
        cover(ROOF, 2, 6, slice(3, len(ACROSS) - 4), Material.GLASS)
    if m.body is BodyType.PICKUP:
        cover(DECK, 1, SEGMENT_POINTS - 1, slice(1, len(ACROSS) - 2), Material.TRIM)
    if m.cladding:
        cover(VALANCE, 0, SEGMENT_POINTS // 2, slice(None), Material.TRIM)
        cover(UNDERTAIL, SEGMENT_POINTS // 3, SEGMENT_POINTS, slice(None), Material.TRIM)
    return quads.reshape(-1, 4, 3), materials.ravel()


def _side(surface: Surface) -> Array:
    """The left side between lower edge and profile, as quads in rows of one height."""
    edge = surface.edge
    front, rear = int(np.argmax(edge[:, 0])), int(np.argmin(edge[:, 0]))
    upper = edge[front : rear + 1][::-1]
    even = np.linspace(upper[0, 0], upper[-1, 0], 24)
    x: Array = np.unique(np.concatenate([upper[:, 0], even]).round(3))
    top = np.interp(x, upper[:, 0], upper[:, 1])
    bottom = np.minimum(surface.underside(x), top)
    share = np.array([0, 0.2, 0.45, 0.7, 0.9, 1.0])[:, None]
    crease, belt = surface.crease(x), surface.belt(x)
    lower = surface.model.clearance + share * (crease - surface.model.clearance)
    middle = crease + share[2:] * (belt - crease)
    glasshouse = belt + np.array([0.06, 0.3, 1.5])[:, None]
    lowest = np.full((1, len(x)), 0.0)
    levels = np.concatenate([lowest, lower, middle, glasshouse])
    z = np.clip(levels, bottom, top)
    grid = surface.at_left(np.stack([np.broadcast_to(x, z.shape).ravel(), z.ravel()], axis=1))
    grid = grid.reshape(*z.shape, 3)
    quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=2)
    tall = (z[1:] - z[:-1])[:, :-1] + (z[1:] - z[:-1])[:, 1:] > 1e-6
    kept: Array = quads[tall]
    return kept
