"""The wheels of a drawn car, as patches in painting order."""

from __future__ import annotations

import numpy as np

from training.render.body import LEFT, Material, Patch, Surface
from training.render.model import CarModel
from training.render.shapes import Array, disc

__all__ = ["treads", "wheels"]

#: How far the outer face stands behind the wheel arch, and the tyre's width (metres).
RECESS, TYRE_WIDTH = 0.035, 0.22


def treads(surface: Surface) -> list[Patch]:
    """Tyres of both sides in their depth, to be painted before the shell hides all but the foot."""
    m = surface.model
    patches: list[Patch] = []
    for side in (-1, 1):
        for axle in (-m.wheelbase / 2, m.wheelbase / 2):
            tyre = disc(axle, m.wheel_radius, m.wheel_radius)
            for depth in np.linspace(TYRE_WIDTH, 0, 4):
                y = side * (_face_y(surface, axle) - depth)
                patches.append(_upright(tyre, y, Material.RUBBER, side))
    return patches


def wheels(surface: Surface, turn: float) -> list[Patch]:
    """The outer faces of the left wheels, turned by ``turn`` radians."""
    m = surface.model
    radius = m.rim * m.wheel_radius
    metal = Material.DARK_RIM if m.dark_rims else Material.RIM
    shapes: list[tuple[Array, Material]] = [
        (disc(0, 0, m.wheel_radius, points=40), Material.RUBBER),
        (disc(0, 0, radius, points=36), metal),
    ]
    if m.wheel_style == "disc":
        shapes += [(disc(0, 0, 0.92 * radius), Material.SHADE), (disc(0, 0, 0.88 * radius), metal)]
        shapes += [(hole, Material.GAP) for hole in _holes(m, radius, turn)]
    else:
        shapes.append((disc(0, 0, 0.9 * radius), Material.GAP))
        shapes += [(spoke, metal) for spoke in _spokes(m, radius, turn)]
    shapes += [
        (disc(0, 0, 0.24 * radius, points=16), metal),
        (disc(0, 0, 0.12 * radius, points=10), Material.SHADE),
    ]
    hubs = np.array([(-m.wheelbase / 2, m.wheel_radius), (m.wheelbase / 2, m.wheel_radius)])
    return [
        _upright(shape + hub, _face_y(surface, hub[0]), material, 1)
        for hub in hubs
        for shape, material in shapes
    ]


def _holes(m: CarModel, radius: float, turn: float) -> list[Array]:
    angles = turn + 2 * np.pi * np.arange(m.spokes) / m.spokes
    size = radius * (0.06 + 0.16 * m.spoke_width)
    return [
        disc(0.62 * radius * np.cos(angle), 0.62 * radius * np.sin(angle), size, points=10)
        for angle in angles
    ]


def _spokes(m: CarModel, radius: float, turn: float) -> list[Array]:
    half = 0.8 * m.spoke_width * np.pi / m.spokes
    shapes = []
    for angle in turn + 2 * np.pi * np.arange(m.spokes) / m.spokes:
        match m.wheel_style:
            case "twin":
                pair = (angle - 0.55 * half, angle + 0.55 * half)
                shapes += [_spoke(radius, one, 0.32 * half, 0.32 * half, 0.0) for one in pair]
            case "turbine":
                shapes.append(_spoke(radius, angle, 0.8 * half, 0.8 * half, 0.45))
            case _:
                shapes.append(_spoke(radius, angle, 1.3 * half, 0.6 * half, 0.0))
    return shapes


def _spoke(radius: float, angle: float, inner: float, outer: float, twist: float) -> Array:
    """A bar [4, 2] from hub to rim; widths are half angles (radians)."""
    distance = radius * np.array([0.2, 0.94, 0.94, 0.2])
    angles = angle + np.array([-1.6 * inner, twist - outer, twist + outer, 1.6 * inner])
    return np.stack([distance * np.cos(angles), distance * np.sin(angles)], axis=1)


def _face_y(surface: Surface, axle: float) -> float:
    return float(surface.half_width(np.array(axle), np.array(0.5))) - RECESS


def _upright(shape: Array, y: float, material: Material, side: int) -> Patch:
    """A flat shape in (x, z), stood up in the plane at ``y``."""
    points = np.stack([shape[:, 0], np.full(len(shape), y), shape[:, 1]], axis=1)
    return Patch.polygon(points, material, side * LEFT)
