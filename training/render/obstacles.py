"""Things that stand between the camera and a drawn car and hide a part of it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from training.render.paint import Camera, Light
from training.render.scene import lit, rgb
from training.render.shapes import Array

__all__ = ["occlude"]


def occlude(
    rng: np.random.Generator, image: Image.Image, camera: Camera, light: Light, car: Array
) -> None:
    """In three photos of ten, put something between camera and car.

    Args:
        rng: source of chance.
        image: painted on, in place.
        camera: framed for ``image``.
        light: the photo's light.
        car: pixels [n, 2] that the car covers.
    """
    if rng.random() > 0.3:
        return
    low, high = car.min(axis=0), car.max(axis=0)
    x = float(rng.uniform(low[0], high[0]))
    metre = 1.15 * camera.pixels_per_metre
    foot = float(high[1] + rng.uniform(0.1, 0.35) * metre)
    thing = (_post, _cone, _bush, _rail)[int(rng.integers(4))]
    thing(rng, ImageDraw.Draw(image), light, x, foot, metre)


def _post(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    x: float,
    foot: float,
    metre: float,
) -> None:
    """A bollard, a lamp post or the trunk of a tree."""
    half, tall = rng.uniform(0.05, 0.15) * metre, rng.choice([0.9, 6.0]) * metre
    colour = np.array([(0.35, 0.36, 0.38), (0.3, 0.23, 0.17), (0.75, 0.74, 0.7)][rng.integers(3)])
    for k in range(6):
        shade = 0.65 + 0.5 * np.sin(np.pi * (k + 1.2) / 6)
        left = x - half + 2 * half * k / 6
        draw.rectangle(
            (left, foot - tall, left + half / 3 + 1, foot), fill=rgb(shade * lit(light, colour))
        )


def _cone(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    x: float,
    foot: float,
    metre: float,
) -> None:
    """A traffic cone."""
    tall = rng.uniform(0.5, 0.75) * metre
    orange, white = np.array([0.92, 0.36, 0.08]), np.array([0.92, 0.92, 0.9])
    base = 0.32 * tall
    draw.polygon(
        (
            x - base,
            foot,
            x - 0.85 * base,
            foot - 0.07 * tall,
            x + 0.85 * base,
            foot - 0.07 * tall,
            x + base,
            foot,
        ),
        fill=rgb(lit(light, 0.75 * orange)),
    )
    for low, high, colour in ((0.06, 1, orange), (0.35, 0.52, white), (0.65, 0.78, white)):
        wide, narrow = (0.25 * tall * (1.06 - share) for share in (low, high))
        draw.polygon(
            (
                x - wide,
                foot - low * tall,
                x - narrow,
                foot - high * tall,
                x + narrow,
                foot - high * tall,
                x + wide,
                foot - low * tall,
            ),
            fill=rgb(lit(light, colour)),
        )


def _bush(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    x: float,
    foot: float,
    metre: float,
) -> None:
    """A round shrub."""
    size = rng.uniform(0.35, 0.75) * metre
    green = np.array([0.2, 0.36, 0.13]) * rng.uniform(0.6, 1.2)
    for k in range(70):
        depth = k / 70
        turn, reach = rng.uniform(0, np.pi), size * np.sqrt(rng.uniform(0, 1))
        cx, cy = x + reach * np.cos(turn), foot - 0.1 * size - 0.9 * reach * np.sin(turn)
        r = size * (0.2 - 0.13 * depth)
        colour = green * (0.45 + 0.55 * depth * rng.uniform(0.6, 1.1))
        draw.ellipse((cx - r, cy - r, cx + r, cy + 0.9 * r), fill=rgb(lit(light, colour)))


def _rail(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    x: float,
    foot: float,
    metre: float,
) -> None:
    """A low barrier that hides the lower edge of one end of the car."""
    colour = np.array([0.62, 0.63, 0.64]) * rng.uniform(0.6, 1.2)
    span = rng.uniform(0.8, 1.6) * metre
    for u in (x - 0.8 * span, x + 0.8 * span):
        draw.rectangle(
            (u - 0.04 * metre, foot - 0.6 * metre, u + 0.04 * metre, foot),
            fill=rgb(lit(light, 0.6 * colour)),
        )
    for v, shade in ((0.6, 1.15), (0.56, 1.0), (0.5, 0.8), (0.46, 0.95)):
        draw.rectangle(
            (x - span, foot - v * metre, x + span, foot - (v - 0.06) * metre),
            fill=rgb(shade * lit(light, colour)),
        )
