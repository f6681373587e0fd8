"""What lies on the shell of a drawn car: windows, doors, lamps, grille, mirrors.

Each function turns parameters of the model into ``Patch`` pieces in painting order. The shell
itself is in ``body``, wheels are in ``wheels``, and how materials look is in ``paint``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from training.render.body import (
    BACKLIGHT,
    DECK,
    FRONT,
    LEFT,
    REAR,
    ROOF,
    SCREEN,
    TAIL,
    TOP,
    Face,
    Material,
    Patch,
    Place,
    Surface,
    segment_rows,
)
from training.render.model import BodyType
from training.render.shapes import Array, box, clip, disc, grown, rounded

__all__ = ["front", "left", "mirror", "rear", "roof"]

#: Half of a number plate's sides, metres.
PLATE = (0.26, 0.055)


# Front: shapes are (position −1…1 across, height) -------------------------------------------------


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
        face.polygon(box(-0.75 * half, z - 0.45 * tall, 0.75 * half, z + 0.45 * tall),
                     Material.SIGN),
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
            framed(np.array([(-0.8 * half, bottom), (0.8 * half, bottom), (half, top),
                             (-half, top)]), 0.92, frame)
            for u in np.linspace(-0.7 * half, 0.7 * half, 8):
                bar = np.array([(u, bottom + 0.02), (u, top - 0.02)])
                patches.append(face.line(bar, Material.TRIM, 0.015))
        case "pair":
            for side in (-1, 1):
                near, far = 0.03 * side, 0.75 * half * side
                framed(np.array([(near, bottom), (0.9 * far, bottom), (far, top), (near, top)]),
                       0.8, Material.CHROME)
        case "shield":
            low = m.clearance + 0.2 * tall
            middle = (top + bottom) / 2
            framed(np.array([(-0.55 * half, low), (0.55 * half, low), (0.9 * half, middle),
                             (0.75 * half, top), (-0.75 * half, top), (-0.9 * half, middle)]),
                   0.88, Material.CHROME)
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
                lamp(np.array([(inner - 0.06, low), (1, top - 0.6 * tall), (1, top),
                               (inner - 0.06, low + 0.03)]), Material.GAP)
                lamp(box(inner, top - 0.04, 1, top - 0.01), Material.LAMP)
            case "swept":
                lamp(np.array([(inner, top - tall), (1, top - 0.75 * tall), (1, top + 0.02),
                               (inner + 0.12, top - 0.45 * tall)]), Material.LAMP)
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


# Rear: shapes are (position −1…1 across, height) --------------------------------------------------


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
                lamp(np.array([(0.48, top - 0.1), (0.84, top - 0.1), (0.84, top - tall),
                               (1, top - tall), (1, top), (0.48, top)]), Material.TAIL_LAMP)
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


# Left side: shapes are (x, z) ---------------------------------------------------------------------


def left(surface: Surface) -> list[Patch]:
    """Windows, doors, cladding and wheel arches of the left side."""
    m = surface.model
    face = Face(surface.at_left, LEFT)
    opening = _window_opening(surface)
    pillars = _pillars(surface)
    if not m.glazed:
        opening = clip(opening, (pillars[0], m.cowl_height), (1.0, 0.1))
    patches = [face.polygon(rounded(grown(opening, 0.022), 0.06), Material.TRIM)]
    if m.chrome:
        low = opening[opening[:, 1] < opening[:, 1].min() + 0.12]
        ends = low[[np.argmax(low[:, 0]), np.argmin(low[:, 0])]] - [0, 0.02]
        patches.append(face.line(ends, Material.CHROME, 0.03))
    for ahead, behind in pairwise([np.inf, *pillars, -np.inf]):
        pane = opening
        for x, inward in ((ahead - 0.03, -1.0), (behind + 0.03, 1.0)):
            if np.isfinite(x) and len(pane):
                # Pillars lean back a little.
                pane = clip(pane, (x, m.cowl_height), (inward, 0.1 * inward))
        if len(pane) and np.ptp(pane[:, 0]) > 0.12:
            patches.append(face.polygon(rounded(pane, 0.05), Material.GLASS))
    return patches + _doors(surface, face, pillars) + _arches(surface, face)


def _window_opening(surface: Surface) -> Array:
    """Outline [n, 2] of all side windows together."""
    m = surface.model
    cowl, header = surface.corners[SCREEN], surface.corners[ROOF]
    roof_end, base = surface.corners[BACKLIGHT], surface.corners[DECK]
    rows = segment_rows(SCREEN, BACKLIGHT)
    shape = np.concatenate([surface.edge[rows], [base - [0, 0.3], cowl - [0, 0.3]]])
    shape -= [0.0, 0.075]
    # Front pillar, along the windscreen
    slope = (cowl - header) / np.linalg.norm(cowl - header)
    inward = np.array([slope[1], -slope[0]])
    shape = clip(shape, cowl + 0.07 * inward, inward)
    # Rear pillar, steeper than a long rear window
    ahead = np.array([1.0, 0.0])
    foot = base + (0.4 * (roof_end[0] - base[0]) + m.rear_pillar) * ahead
    slope = roof_end + 0.35 * m.rear_pillar * ahead - foot
    shape = clip(shape, foot, (slope[1], -slope[0]))
    # Window line, and the kink where it meets the rear pillar
    ends = np.array([cowl[0], base[0]])
    high = surface.belt(ends) + 0.035
    shape = clip(shape, (ends[0], high[0]), ((high[1] - high[0]) / (ends[0] - ends[1]), 1.0))
    if m.kink > 0.03:
        tip = shape[np.argmin(shape[:, 0] + 0.5 * shape[:, 1])]
        shape = clip(shape, tip + m.kink * ahead, (0.75, 0.65))
    return shape


def _pillars(surface: Surface) -> list[float]:
    """x of the pillars behind each door, at the window line."""
    m = surface.model
    header_x = surface.corners[ROOF][0]
    behind_wheel = m.wheelbase / 2 - m.wheel_radius
    if m.doors == 2:
        return [min(header_x - 0.95, behind_wheel - 1.3)]
    first = min(header_x - 0.62, behind_wheel - 1.0)
    return [first, max(first - 0.85, -m.wheelbase / 2 + 0.12)]


def _doors(surface: Surface, face: Face, pillars: list[float]) -> list[Patch]:
    m = surface.model
    sill = m.clearance + 0.1
    hinge = min(surface.corners[SCREEN][0] - 0.12, m.wheelbase / 2 - m.wheel_radius - 0.14)
    arch = -m.wheelbase / 2 + m.wheel_radius + 0.12
    seams = [hinge, *pillars] if m.glazed else [hinge, pillars[0]]
    patches: list[Patch] = []
    for seam in seams:
        belt = float(surface.belt(np.array(seam)))
        path = [(seam, belt), (seam, sill)]
        if seam < arch:  # the door makes way for the rear wheel
            path = [(seam, belt), (seam, 0.62 * belt), (arch, 0.4 * belt), (arch, sill)]
        patches.append(face.line(np.array(path), Material.GAP, 0.014))
    foot = np.array([(hinge, sill), (max(seams[-1], arch), sill)])
    patches.append(face.line(foot, Material.GAP, 0.014))
    ends = surface.front_x - m.front_overhang - 0.3, surface.rear_x + 0.25
    x = np.linspace(*ends, 14)
    crease = np.stack([x, surface.crease(x)], axis=1)
    patches.append(face.line(crease, Material.CREASE, 0.012))
    for seam in seams[1:]:
        z = float(surface.belt(np.array(seam))) - 0.11
        grip = rounded(box(seam + 0.06, z - 0.018, seam + 0.26, z + 0.018), 0.02)
        patches.append(face.polygon(grown(grip, 0.008), Material.GAP))
        patches.append(face.polygon(grip, Material.CHROME if m.chrome else Material.PAINT))
    if m.body is BodyType.PICKUP:
        x_gap = surface.corners[DECK][0]
        gap = np.array([(x_gap, surface.deck_z - 0.05), (x_gap, m.clearance)])
        patches.append(face.line(gap, Material.GAP, 0.02))
    if m.body is BodyType.VAN:
        z = float(surface.belt(np.array(0.0))) - 0.22
        rail = np.array([(seams[-1] - 0.1, z), (surface.rear_x + 0.3, z)])
        patches.append(face.line(rail, Material.GAP, 0.03))
    return patches


def _arches(surface: Surface, face: Face) -> list[Patch]:
    m = surface.model
    axles = (-m.wheelbase / 2, m.wheelbase / 2)
    radius = m.wheel_radius + 0.065
    up = (0.0, 1.0)
    patches: list[Patch] = []
    if m.cladding:
        for axle in axles:
            ring = disc(axle, m.wheel_radius, radius + 0.075, points=40)
            ring = clip(ring, (axle, m.clearance + 0.01), up)
            patches.append(face.polygon(ring, Material.TRIM))
        rocker = box(surface.rear_x + 0.25, m.clearance, surface.front_x - 0.3, m.clearance + 0.12)
        patches.append(face.polygon(rocker, Material.TRIM))
    for axle in axles:
        arch = disc(axle, m.wheel_radius, radius, points=40)
        arch = clip(arch, (axle, m.clearance - 0.02), up)
        patches.append(face.polygon(arch, Material.GAP))
    return patches


# What stands proud of the shell -------------------------------------------------------------------


def roof(surface: Surface) -> list[Patch]:
    """Roof rails and spoiler."""
    m = surface.model
    patches: list[Patch] = []
    if m.roof_rails:
        rows = segment_rows(ROOF)[1:-1].astype(float)
        for across in (-0.93, 0.93):
            rail = surface.loft(rows, np.full(len(rows), across))
            rail[1:-1, 2] += 0.05
            material = Material.CHROME if m.chrome else Material.TRIM
            patches.append(Patch.line(rail, material, TOP, 0.035))
    if m.spoiler:
        on_boot = m.body in (BodyType.SEDAN, BodyType.COUPE)
        row = segment_rows(TAIL if on_boot else BACKLIGHT)[0]
        lip = surface.loft(np.full(9, float(row)), np.linspace(-0.9, 0.9, 9))
        back = lip + np.array((-0.1, 0, 0.09) if on_boot else (-0.2, 0, 0))
        edge = back + np.array((0.02, 0, -0.06))
        patches.append(Patch.polygon(np.concatenate([lip, back[::-1]]), Material.PAINT, TOP))
        patches.append(Patch.polygon(np.concatenate([back, edge[::-1]]), Material.TRIM, REAR))
    return patches


def mirror(surface: Surface, side: int) -> list[Patch]:
    """The outside mirror on the left (``side`` = 1) or the right (−1)."""
    x = np.array(surface.corners[SCREEN][0] - 0.3)
    z = surface.belt(x) + 0.09
    middle = np.array([x, surface.half_width(x, z) + 0.14, z])
    half = np.array([0.07, 0.11, 0.075])
    outline = rounded(box(-1, -1, 1, 1), 0.8)
    patches = []
    for facing, material in ((TOP, Material.PAINT), (FRONT, Material.PAINT),
                             (REAR, Material.GLASS), (LEFT, Material.PAINT)):
        depth = int(np.flatnonzero(facing)[0])
        points = np.tile(middle + 0.85 * half * facing, (len(outline), 1))
        flat = [axis for axis in range(3) if axis != depth]
        points[:, flat] += outline * half[flat]
        flip = np.array([1, side, 1])
        patches.append(Patch.polygon(points * flip, material, facing * flip))
    return patches
