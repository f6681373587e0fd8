"""What lies on the left side and the roof of a drawn car: windows, doors, arches, mirrors, rails.

Shapes of the side are drawn in (x, z), metres. Patches come in painting order. How materials look
is in ``paint``.
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
    Surface,
    segment_rows,
)
from training.render.model import BodyType
from training.render.shapes import Array, box, clip, disc, grown, rounded

__all__ = ["left", "mirror", "roof"]


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
    for facing, material in (
        (TOP, Material.PAINT),
        (FRONT, Material.PAINT),
        (REAR, Material.GLASS),
        (LEFT, Material.PAINT),
    ):
        depth = int(np.flatnonzero(facing)[0])
        points = np.tile(middle + 0.85 * half * facing, (len(outline), 1))
        flat = [axis for axis in range(3) if axis != depth]
        points[:, flat] += outline * half[flat]
        flip = np.array([1, side, 1])
        patches.append(Patch.polygon(points * flip, material, facing * flip))
    return patches
