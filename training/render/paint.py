"""From pieces in space to pixels: camera, light, materials and the painter.

Nothing here knows what a car looks like or what stands around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.render.body import Material, Patch
from training.render.shapes import Array

__all__ = ["Camera", "Light", "Painter"]

#: Colour (RGB, 0…1) and gloss (share reflected head-on) of each material but paint.
LOOKS: dict[Material, tuple[tuple[float, float, float], float]] = {
    Material.GLASS: ((0.05, 0.065, 0.075), 0.26),
    Material.TRIM: ((0.07, 0.07, 0.075), 0.03),
    Material.GAP: ((0.02, 0.02, 0.022), 0.0),
    Material.CHROME: ((0.55, 0.56, 0.58), 0.45),
    Material.LAMP: ((0.78, 0.81, 0.84), 0.2),
    Material.LENS: ((0.3, 0.33, 0.36), 0.3),
    Material.TAIL_LAMP: ((0.62, 0.04, 0.05), 0.08),
    Material.TAIL_LENS: ((0.85, 0.72, 0.66), 0.1),
    Material.PLATE: ((0.86, 0.86, 0.84), 0.02),
    Material.RUBBER: ((0.065, 0.065, 0.07), 0.01),
    Material.RIM: ((0.6, 0.61, 0.63), 0.12),
    Material.DARK_RIM: ((0.17, 0.17, 0.18), 0.06),
    Material.SIGNAL: ((0.95, 0.25, 0.2), 0.05),
    Material.SIGN: ((0.25, 0.26, 0.32), 0.0),
}

#: Materials that are the car's paint in shade.
SHADED = {Material.CREASE: 0.62, Material.SHADE: 0.0}


@dataclass(frozen=True)
class Light:
    """Sun, sky and ground as they fall on things and are mirrored in them. Colours are RGB 0…1."""

    #: Unit vector towards the sun.
    sun: Array
    sun_colour: Array
    sky: Array
    horizon: Array
    ground: Array
    #: Brightness of the dark band (trees, houses) that is mirrored at the horizon.
    band: float

    def shade(self, normals: Array, views: Array, albedo: Array, gloss: Array) -> Array:
        """Colours [n, 3] of surfaces.

        Args:
            normals: unit [n, 3], outwards.
            views: unit [n, 3], from the camera to the surface.
            albedo: [n, 3], 0…1.
            gloss: [n], mirrored share head-on (Schlick's approximation of Fresnel's law).
        """
        up = normals[:, 2:]
        facing = np.clip(-np.sum(views * normals, axis=1, keepdims=True), 0, 1)
        overhead = 0.35 * self.sky + 0.4 * self.horizon + 0.2
        ambient = (0.5 + 0.5 * up) * overhead + (0.5 - 0.5 * up) * 0.6 * self.ground
        direct = np.clip(normals @ self.sun, 0, 1)[:, None] * self.sun_colour
        mirrored = views + 2 * facing * normals
        gloss = gloss[:, None]
        fresnel = gloss + (1 - gloss) * (1 - facing) ** 5 * (gloss > 0.015)
        glint = np.clip(mirrored @ self.sun, 0, 1)[:, None] ** 24 * self.sun_colour
        body = albedo * (ambient + direct)
        colours: Array = (
            body * (1 - fresnel) + fresnel * self.mirror(mirrored) + 1.5 * gloss * glint
        )
        return colours

    def mirror(self, directions: Array) -> Array:
        """Colours [n, 3] of the surroundings in unit directions [n, 3]."""
        z = directions[:, 2:]
        sky = self.horizon + np.sqrt(np.clip(z, 0, 1)) * (self.sky - self.horizon)
        far = _ramp(z, 0.02, 0.14)
        near = _ramp(z, -0.12, 0.0)
        around = self.ground * (1 - near) + near * self.band * self.horizon
        return around * (1 - far) + far * sky


def _ramp(x: Array, low: float, high: float) -> Array:
    share = np.clip((x - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


class Camera:
    """A pinhole camera that stands at ``position`` and looks at ``target`` (metres)."""

    def __init__(self, position: Array, target: Array, *, roll: float = 0.0) -> None:
        self.position = position
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        cos, sin = np.cos(roll), np.sin(roll)
        #: Rows: right, down, forward.
        self.axes = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
        self.distance = float(np.linalg.norm(target - position))
        self.zoom = 1.0
        self.offset = np.zeros(2)

    def frame(
        self, points: Array, *, width: float, height: float, fill: float, shift: Array
    ) -> None:
        """Zoom and shift so that ``points`` fill the share ``fill`` of the picture (pixels).

        ``shift`` is where they stand in the room that is left: −1 at left or top, 1 at right or
        bottom.
        """
        self.zoom, self.offset = 1.0, np.zeros(2)
        flat = self.project(points)
        low, high = flat.min(axis=0), flat.max(axis=0)
        room = np.array([width, height])
        self.zoom = fill * float(np.min(room / (high - low)))
        spare = room - self.zoom * (high - low)
        self.offset = spare * (0.5 + 0.5 * shift) - self.zoom * low

    def project(self, points: Array) -> Array:
        """Pixels [..., 2] of points [..., 3] in front of the camera."""
        seen = (points - self.position) @ self.axes.T
        depth = np.maximum(seen[..., 2:], 0.1)
        pixels: Array = seen[..., :2] / depth * self.zoom + self.offset
        return pixels

    @property
    def pixels_per_metre(self) -> float:
        """Scale at the target."""
        return self.zoom / self.distance

    @property
    def horizon(self) -> float:
        """Pixel row where the ground meets the sky, at the target's column."""
        forward = self.axes[2] * [1, 1, 0]
        seen = self.axes @ forward
        return float(seen[1] / seen[2] * self.zoom + self.offset[1])


class Painter:
    """Paints pieces onto a picture from back to front."""

    def __init__(self, image: Image.Image, camera: Camera, light: Light, paint: Array) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.camera = camera
        self.light = light
        self.albedo = np.zeros((len(Material), 3))
        self.gloss = np.zeros(len(Material))
        for material, (colour, gloss) in LOOKS.items():
            self.albedo[material], self.gloss[material] = colour, gloss
        self.albedo[Material.PAINT], self.gloss[Material.PAINT] = paint, 0.12
        for material, share in SHADED.items():
            self.albedo[material], self.gloss[material] = share * paint, 0.0

    def shell(self, quads: Array, materials: NDArray[np.int64]) -> None:
        """Paint quads [n, 4, 3], counter-clockwise from outside, the farthest first."""
        normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        views = quads.mean(axis=1) - self.camera.position
        distance = np.linalg.norm(views, axis=1)
        views /= distance[:, None]
        seen = np.flatnonzero(np.sum(views * normals, axis=1) < 0)
        seen = seen[np.argsort(-distance[seen])]
        colours = self._colours(normals[seen], views[seen], materials[seen])
        corners = self.camera.project(quads[seen]).reshape(len(seen), 8)
        for polygon, colour in zip(corners.tolist(), colours, strict=True):
            self.draw.polygon(polygon, fill=colour)

    def patches(self, patches: Sequence[Patch]) -> None:
        """Paint patches in the given order, leaving out those that face away."""
        middles = np.array([patch.points.mean(axis=0) for patch in patches])
        normals = np.array([patch.normal for patch in patches])
        materials = np.array([patch.material for patch in patches])
        views = middles - self.camera.position
        views /= np.linalg.norm(views, axis=1, keepdims=True)
        colours = self._colours(normals, views, materials)
        pixels = self.camera.project(np.concatenate([patch.points for patch in patches]))
        pieces = np.split(pixels, np.cumsum([len(patch.points) for patch in patches])[:-1])
        for i in np.flatnonzero(np.sum(views * normals, axis=1) < 0).tolist():
            patch, outline = patches[i], pieces[i].ravel().tolist()
            if patch.width:
                width = max(1, round(patch.width * self.camera.pixels_per_metre))
                self.draw.line(outline, fill=colours[i], width=width, joint="curve")
            elif patch.material is Material.GLASS:
                self._pane(pieces[i], normals[i], views[i])
            else:
                self.draw.polygon(outline, fill=colours[i])

    def _pane(self, outline: Array, normal: Array, view: Array) -> None:
        """Paint a window: slightly curved, so that it mirrors more sky towards its top."""
        tilted = normal + np.array([0.0, 0.0, 1.0]) * np.linspace(0.4, -0.06, 6)[:, None]
        tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
        glass = np.full(len(tilted), Material.GLASS)
        left, top = (int(low) for low in np.floor(outline.min(axis=0)))
        right, bottom = (int(high) + 1 for high in np.ceil(outline.max(axis=0)))
        ramp = Image.new("RGB", (1, len(tilted)))
        ramp.putdata(self._colours(tilted, np.tile(view, (len(tilted), 1)), glass))
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon((outline - [left, top]).ravel().tolist(), fill=255)
        self.image.paste(ramp.resize(mask.size, Image.Resampling.BILINEAR), (left, top), mask)

    def _colours(
        self, normals: Array, views: Array, materials: NDArray[np.int64]
    ) -> list[tuple[int, int, int]]:
        shaded = self.light.shade(normals, views, self.albedo[materials], self.gloss[materials])
        levels = (np.clip(shaded, 0, 1) * 255 + 0.5).astype(int)
        return [(red, green, blue) for red, green, blue in levels.tolist()]
