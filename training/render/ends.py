"""What lies on the front and the rear of a drawn car: grille, lamps, plates, bumpers.

Shapes are drawn in (position −1…1 across the car, height in metres), those that reach around the
corner in the side's (x, z). Patches come in painting order. How materials look is in ``paint``.
"""

from __future__ import annotations

import numpy as np

from training.render.body import FRONT, LEFT, REAR, Face, Material, Patch, Place, Surface
from training.render.shapes import Array, box, disc, rounded

__all__ = ["front", "rear"]

#: Half of a number plate's sides, metres.
PLATE = (0.26, 0.055)


def front(surface: Surface) -> list[Patch]:
    """Air intake, grille, plate and headlights."""
    m = surface.model
    face = Face(surface.at_front, FRONT)
    low, tall = m.clearance, m.nose_height - m.clearance
    half = m.intake
    mouth = np.array([(-half, 0.08), (half, 0.08), (0.88 * half, 0.3), (-0.88 * half, 0.3)])
    mouth = mouth * [1, tall] + [0, low]
    bar = np.array([(-0.9 * half, low + 0.19 * tall), (0.9 * half, low + 0.19 * tall)])
    patches = [
        face.polygon(rounded(mouth, 0.06), Material.TRIM),
        face.line(bar, Material.GAP, 0.02),
    ]
    if m.cladding:
        skid = box(-0.3, low + 0.02 * tall, 0.3, low + 0.12 * tall)
        patches.append(face.polygon(skid, Material.RIM))
    patches += _grille(surface, face)
    patches += _plate(surface, face, low + 0.36 * tall)
    return patches + _headlights(surface, face)


def _plate(surface: Surface, face: Face, z: float) -> list[Patch]:
    half, tall = PLATE[0] / (surface.model.width / 2), PLATE[1]
    return [
        face.polygon(box(-half, z - tall, half, z + tall), Material.PLATE),
        face.polygon(
            box(-0.75 * half, z - 0.45 * tall, 0.75 * half, z + 0.45 * tall), Material.SIGN
        ),
    ]


def _grille(surface: Surface, face: Face) -> list[Patch]:
    m = surface.model
    tall = m.nose_height - m.clearance
    half, top = m.grille_width, m.nose_height - 0.07 * tall
    bottom = top - m.grille_height * tall
    frame = Material.CHROME if m.chrome else Material.TRIM
    patches: list[Patch] = []

    def framed(shape: Array, share: float, material: Material) -> None:
        middle = (shape.min(axis=0) + shape.max(axis=0)) / 2
        patches.append(face.polygon(rounded(shape, 0.06), material))
        inner = rounded(middle + share * (shape - middle), 0.05)
        patches.append(face.polygon(inner, Material.GAP))

    def slats(reach: float, heights: Array, material: Material) -> None:
        lines = [np.array([(-reach, z), (reach, z)]) for z in heights]
        patches.extend(face.line(line, material, 0.02) for line in lines)

    match m.grille:
        case "bars":
            framed(box(-half, bottom, half, top), 0.9, frame)
            slats(0.88 * half, np.linspace(bottom, top, 5)[1:-1], Material.CHROME)
        case "mesh":
            framed(
                np.array([(-0.8 * half, bottom), (0.8 * half, bottom), (half, top), (-half, top)]),
                0.92,
                frame,
            )
            for u in np.linspace(-0.7 * half, 0.7 * half, 8):
                bar = np.array([(u, bottom + 0.02), (u, top - 0.02)])
                patches.append(face.line(bar, Material.TRIM, 0.015))
        case "pair":
            for side in (-1, 1):
                near, far = 0.03 * side, 0.75 * half * side
                framed(
                    np.array([(near, bottom), (0.9 * far, bottom), (far, top), (near, top)]),
                    0.8,
                    Material.CHROME,
                )
        case "shield":
            low = m.clearance + 0.2 * tall
            middle = (top + bottom) / 2
            framed(
                np.array(
                    [
                        (-0.55 * half, low),
                        (0.55 * half, low),
                        (0.9 * half, middle),
                        (0.75 * half, top),
                        (-0.75 * half, top),
                        (-0.9 * half, middle),
                    ]
                ),
                0.88,
                Material.CHROME,
            )
            slats(0.6 * half, low + np.array([0.3, 0.5, 0.7]) * (top - low), Material.TRIM)
        case "slot":
            slot = box(-1.25 * half, top - 0.07, 1.25 * half, top - 0.01)
            patches.append(face.polygon(rounded(slot, 0.03), Material.GAP))
    if m.badge:
        z = top - 0.04 if m.grille == "closed" else (top + bottom) / 2
        # Upright, whatever the lean of the nose.
        badge = np.insert(disc(0, 0, 0.055, points=16), 0, 0.0, axis=1)
        place = surface.at_front(np.array([[0.0, z]]))
        patches.append(Patch.polygon(place + badge, Material.CHROME, FRONT))
    return patches


def _headlights(surface: Surface, face: Face) -> list[Patch]:
    m = surface.model
    tall, top = m.headlight_height, m.nose_height - 0.05
    inner = 1 - m.headlight_width
    #: Height at the corner, reach along the side, rise and height of the tip there.
    wrap = {
        "block": (tall, 0.12, 0.0, tall),
        "slim": (0.6 * tall, 0.28, 0.02, 0.18 * tall),
        "swept": (0.75 * tall, 0.4, 0.06, 0.19 * tall),
        "split": (0.05, 0.16, 0.0, 0.05),
    }
    patches: list[Patch] = []
    for side in (-1, 1):

        def lamp(shape: Array, material: Material, side: int = side) -> None:
            patches.append(face.polygon(shape * [side, 1], material))

        match m.headlight:
            case "round":
                u, z = 1 - 0.55 * m.headlight_width, top - 0.7 * tall
                lamp(disc(u, z, 0.62 * tall, stretch=1.2), Material.CHROME)
                lamp(disc(u, z, 0.52 * tall, stretch=1.2), Material.LAMP)
                lamp(disc(u, z, 0.22 * tall, points=14, stretch=1.2), Material.LENS)
            case "block":
                lamp(box(inner + 0.08, top - tall, 1, top), Material.LAMP)
                for u in (inner + 0.18, inner + 0.31):
                    lens = disc(u, top - tall / 2, 0.36 * tall, points=14, stretch=1.1)
                    lamp(lens, Material.LENS)
            case "slim":
                low = top - 0.55 * tall
                lamp(
                    np.array(
                        [
                            (inner - 0.06, low),
                            (1, top - 0.6 * tall),
                            (1, top),
                            (inner - 0.06, low + 0.03),
                        ]
                    ),
                    Material.GAP,
                )
                lamp(box(inner, top - 0.04, 1, top - 0.01), Material.LAMP)
            case "swept":
                lamp(
                    np.array(
                        [
                            (inner, top - tall),
                            (1, top - 0.75 * tall),
                            (1, top + 0.02),
                            (inner + 0.12, top - 0.45 * tall),
                        ]
                    ),
                    Material.LAMP,
                )
                lens = disc(inner + 0.2, top - 0.68 * tall, 0.24 * tall, points=14, stretch=1.1)
                lamp(lens, Material.LENS)
            case "split":
                lamp(box(inner, top - 0.05, 1, top), Material.LAMP)
                low = top - 0.12 - 0.8 * tall
                lamp(rounded(box(inner + 0.08, low, 0.9, low + 0.8 * tall), 0.04), Material.GAP)
                lens = disc(inner + 0.2, low + 0.4 * tall, 0.28 * tall, points=14, stretch=1.2)
                lamp(lens, Material.LAMP)
    if m.headlight in wrap:
        height, reach, rise, tip = wrap[m.headlight]
        corner = _corner(surface.at_front, top - height, top)
        end_x = corner[-1, 0] - reach
        shape = np.concatenate([corner, [(end_x, top + rise), (end_x, top + rise - tip)]])
        material = Material.GAP if m.headlight == "slim" else Material.LAMP
        patches.append(Face(surface.at_left, LEFT).polygon(shape, material))
    return patches


def rear(surface: Surface) -> list[Patch]:
    """Lid, bumper, plate, exhausts and tail lamps."""
    m = surface.model
    face = Face(surface.at_rear, REAR)
    low, tall = m.clearance, surface.deck_z - m.clearance
    lid = np.array([(-0.78, 0.95), (-0.74, 0.5), (0.74, 0.5), (0.78, 0.95)])
    lid = lid * [1, tall] + [0, low]
    bumper = box(-0.7, low + 0.1 * tall, 0.7, low + 0.24 * tall)
    z, half = low + 0.62 * tall, PLATE[0] / (m.width / 2) + 0.04
    patches = [
        face.line(lid, Material.GAP, 0.012),
        face.polygon(rounded(bumper, 0.05), Material.TRIM),
        face.polygon(box(-half, z - 0.075, half, z + 0.085), Material.CREASE),
        *_plate(surface, face, z),
    ]
    if m.badge:
        badge = disc(0, low + 0.86 * tall, 0.04, points=12, stretch=1.1)
        patches.append(face.polygon(badge, Material.CHROME))
    for u in (-0.5, 0.5):
        pipe = rounded(box(u - 0.07, low + 0.06 * tall, u + 0.07, low + 0.12 * tall), 0.03)
        patches.append(face.polygon(pipe, Material.CHROME if m.chrome else Material.GAP))
    return patches + _taillights(surface, face)


def _taillights(surface: Surface, face: Face) -> list[Patch]:
    m = surface.model
    size, top = m.taillight_size, surface.deck_z - 0.07
    #: Height of those that reach around the corner.
    heights = {"upright": 0.34, "wide": 0.14, "bar": 0.1, "hook": 0.26}
    tall = heights.get(m.taillight, 0.0) * size
    patches: list[Patch] = []
    for side in (-1, 1):

        def lamp(shape: Array, material: Material, side: int = side) -> None:
            patches.append(face.polygon(shape * [side, 1], material))

        match m.taillight:
            case "upright":
                lamp(box(0.82, top - tall, 1, top), Material.TAIL_LAMP)
                lamp(box(0.84, top - 0.62 * tall, 1, top - 0.42 * tall), Material.TAIL_LENS)
            case "wide":
                lamp(box(0.5, top - tall, 1, top), Material.TAIL_LAMP)
                lamp(box(0.52, top - tall, 0.68, top - 0.45 * tall), Material.TAIL_LENS)
            case "bar":
                lamp(box(0, top - tall, 1, top), Material.TAIL_LAMP)
                lamp(box(0, top - 0.6 * tall, 0.7, top - 0.4 * tall), Material.SIGNAL)
            case "hook":
                lamp(
                    np.array(
                        [
                            (0.48, top - 0.1),
                            (0.84, top - 0.1),
                            (0.84, top - tall),
                            (1, top - tall),
                            (1, top),
                            (0.48, top),
                        ]
                    ),
                    Material.TAIL_LAMP,
                )
            case "round":
                for u in (0.84, 0.62):
                    lamp(disc(u, top - 0.1, 0.085 * size, stretch=1.15), Material.TAIL_LAMP)
                    lamp(disc(u, top - 0.1, 0.035 * size, points=12), Material.TAIL_LENS)
    if tall:
        reach = 0.14 if m.taillight == "upright" else 0.22
        corner = _corner(surface.at_rear, top - tall, top)
        tip = [(corner[-1, 0] + reach, top), (corner[0, 0] + 0.7 * reach, top - tall)]
        wrap = np.concatenate([corner, tip])
        patches.append(Face(surface.at_left, LEFT).polygon(wrap, Material.TAIL_LAMP))
    return patches


def _corner(place: Place, low: float, high: float) -> Array:
    """(x, z) [5, 2] of the car's left corner between two heights."""
    z = np.linspace(low, high, 5)
    return np.stack([place(np.stack([np.ones(5), z], axis=1))[:, 0], z], axis=1)
