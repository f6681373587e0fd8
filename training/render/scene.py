"""Where a drawn car stands: its paint, the view, the light, the backdrop and the shadow.

Everything here belongs to one photo and none of it to the model of car. What stands before the car
is in ``obstacles``.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training.render.paint import Camera, Light
from training.render.shapes import Array, box

__all__ = ["backdrop", "lit", "random_light", "random_paint", "random_view", "rgb"]

#: Common paints (RGB 0…1) and how often they are seen.
PAINTS = (
    ((0.90, 0.90, 0.89), 0.17),  # white
    ((0.68, 0.69, 0.71), 0.14),  # silver
    ((0.36, 0.37, 0.39), 0.13),  # grey
    ((0.06, 0.06, 0.065), 0.14),  # black
    ((0.06, 0.13, 0.38), 0.11),  # blue
    ((0.25, 0.45, 0.70), 0.05),  # light blue
    ((0.62, 0.05, 0.06), 0.11),  # red
    ((0.07, 0.24, 0.15), 0.05),  # green
    ((0.70, 0.64, 0.50), 0.04),  # beige
    ((0.85, 0.36, 0.06), 0.03),  # orange
    ((0.86, 0.68, 0.10), 0.03),  # yellow
)

#: Sky overhead, sky at the horizon, sun (RGB 0…1) by weather.
SKIES = (
    ((0.30, 0.52, 0.86), (0.76, 0.86, 0.94), (0.70, 0.66, 0.58)),  # clear
    ((0.45, 0.62, 0.86), (0.86, 0.90, 0.94), (0.58, 0.56, 0.52)),  # hazy
    ((0.66, 0.70, 0.75), (0.84, 0.86, 0.88), (0.20, 0.20, 0.20)),  # overcast
    ((0.42, 0.48, 0.68), (0.96, 0.80, 0.62), (0.66, 0.50, 0.34)),  # evening
)

GROUNDS = (
    (0.36, 0.36, 0.37),  # asphalt
    (0.48, 0.47, 0.45),  # concrete
    (0.52, 0.46, 0.38),  # gravel
    (0.30, 0.40, 0.22),  # grass
)


def random_paint(rng: np.random.Generator) -> Array:
    """A car colour (RGB 0…1)."""
    colours, weights = zip(*PAINTS, strict=True)
    shares = np.array(weights) / sum(weights)
    colour = np.array(colours[int(rng.choice(len(colours), p=shares))])
    return np.clip(colour * rng.uniform(0.85, 1.12) + rng.normal(0, 0.02, 3), 0.02, 0.95)


def random_view(rng: np.random.Generator) -> Camera:
    """A camera to the car's left: from the side, or three-quarter from the front or the rear."""
    yaw = float(
        rng.choice(
            [rng.uniform(30, 62), rng.uniform(68, 108), rng.uniform(118, 148)], p=[0.45, 0.3, 0.25]
        )
    )
    turn, rise = np.radians(yaw), np.radians(rng.uniform(2.5, 11))
    direction = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
    target = np.array([0.0, 0.0, 0.65])
    return Camera(
        target + rng.uniform(6.8, 12) * direction,
        target,
        roll=float(np.radians(rng.normal(0, 1.2))),
    )


def random_light(rng: np.random.Generator, camera: Camera) -> Light:
    """Weather and a sun that stands somewhere behind the camera, more or less."""
    sky, horizon, sun = (np.array(colour) for colour in SKIES[int(rng.integers(len(SKIES)))])
    ground = np.array(GROUNDS[int(rng.integers(len(GROUNDS)))]) * rng.uniform(0.8, 1.15)
    towards = camera.position[:2]
    turn = np.arctan2(towards[1], towards[0]) + rng.uniform(-1.5, 1.5)
    rise = np.radians(rng.uniform(28, 68))
    direction = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
    return Light(
        sun=direction,
        sun_colour=sun,
        sky=sky,
        horizon=horizon,
        ground=ground,
        band=float(rng.uniform(0.2, 0.5)),
    )


# Backdrop ---------------------------------------------------------------------------------------


def backdrop(
    rng: np.random.Generator,
    camera: Camera,
    light: Light,
    footprint: Array,
    height: float,
    size: tuple[int, int],
) -> Image.Image:
    """Sky, surroundings, ground and the car's shadow, a little out of focus.

    Args:
        rng: source of chance.
        camera: framed for a picture of ``size``.
        light: the photo's light.
        footprint: [n, 2], outline of the car on the ground, metres.
        height: of the car, metres.
        size: (width, height) in pixels.
    """
    width, _ = size
    horizon = camera.horizon
    image = _sky_and_ground(rng, light, horizon, size)
    draw = ImageDraw.Draw(image)
    scenery = (_city, _wall, _park, _parked, _studio)[int(rng.integers(5))]
    scenery(rng, draw, light, horizon, size)
    if rng.random() < 0.5:
        _markings(rng, draw, camera, light)
    image = image.filter(ImageFilter.GaussianBlur(width * float(rng.uniform(0.003, 0.011))))
    return _shadow(image, camera, light, footprint, height)


def _sky_and_ground(
    rng: np.random.Generator, light: Light, horizon: float, size: tuple[int, int]
) -> Image.Image:
    width, height = size
    rows = np.arange(height)[:, None]
    up = np.clip((horizon - rows) / (0.8 * height), 0, 1) ** 0.7
    down = np.clip((rows - horizon) / (0.9 * height), 0, 1)
    bright = 0.78 + 0.45 * float(light.sun_colour.mean())
    ground = light.ground * (bright * (1.12 - 0.3 * down))
    ground = ground + np.exp(-down * 7) * 0.35 * (light.horizon - ground)
    column = np.where(rows < horizon, light.horizon + up * (light.sky - light.horizon), ground)
    pixels = np.repeat(column[:, None, :], width, axis=1)
    grain = rng.normal(0, 1, (height // 2 + 1, width // 4 + 1)).astype(np.float32)
    grain = np.repeat(np.repeat(grain, 2, axis=0), 4, axis=1)[:height, :width]
    pixels += (0.022 * grain * (rows >= horizon))[:, :, None]
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def rgb(colour: Array) -> tuple[int, int, int]:
    """A colour 0…1 as Pillow wants it."""
    red, green, blue = (np.clip(colour, 0, 1) * 255).astype(int).tolist()
    return red, green, blue


def lit(light: Light, colour: Array) -> Array:
    """A colour under the photo's light, hazed as by distance."""
    bright = 0.75 + 0.45 * float(light.sun_colour.mean())
    hazed: Array = 0.85 * bright * colour + 0.15 * light.horizon
    return hazed


def _city(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    horizon: float,
    size: tuple[int, int],
) -> None:
    """A row of houses with windows."""
    width, height = size
    x = -rng.uniform(0, 0.2) * width
    foot = horizon + 0.03 * height
    while x < width:
        w, h = rng.uniform(0.14, 0.38) * width, rng.uniform(0.18, 0.75) * height
        wall = rng.uniform(0.25, 0.8) * np.array([1, rng.uniform(0.85, 1), rng.uniform(0.7, 1)])
        draw.rectangle((x, foot - h, x + w, foot), fill=rgb(lit(light, wall)))
        pane, step = rgb(lit(light, wall * rng.uniform(0.35, 0.6))), 0.08 * width
        for u in np.arange(x + 0.25 * step, x + w - 0.5 * step, step):
            for v in np.arange(foot - h + 0.4 * step, foot - 0.8 * step, 1.2 * step):
                draw.rectangle((u, v, u + 0.5 * step, v + 0.7 * step), fill=pane)
        x += w + rng.choice([0.0, 0.0, 0.04]) * width


def _wall(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    horizon: float,
    size: tuple[int, int],
) -> None:
    """One wall: bricks, or panels like a garage door's."""
    width, height = size
    foot, top = horizon + rng.uniform(0.02, 0.08) * height, horizon - rng.uniform(0.2, 1) * height
    wall = rng.uniform(0.35, 0.8) * np.array([1, rng.uniform(0.8, 1), rng.uniform(0.65, 1)])
    draw.rectangle((-1, top, width, foot), fill=rgb(lit(light, wall)))
    seam = rgb(lit(light, 0.82 * wall))
    step = rng.uniform(0.03, 0.12) * height
    brick = rng.random() < 0.5
    for k, v in enumerate(np.arange(foot, max(top, 0), -step)):
        draw.line((0, v, width, v), fill=seam)
        if brick:
            for u in np.arange((k % 2) * step, width, 2 * step):
                draw.line((u, v, u, v - step), fill=seam)
    draw.rectangle((-1, foot - 0.012 * height, width, foot), fill=rgb(lit(light, 0.5 * wall)))


def _park(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    horizon: float,
    size: tuple[int, int],
) -> None:
    """Hills and trees."""
    width, height = size
    hill = np.array([0.36, 0.47, 0.4]) * rng.uniform(0.8, 1.15)
    u = np.linspace(0, width, 24)
    waves = sum(np.sin(u / width * k * 3 + rng.uniform(0, 6)) / k for k in (1, 2, 3))
    v = horizon - height * (0.06 + 0.03 * np.asarray(waves))
    ridge = [(0.0, horizon + 2), *zip(u.tolist(), v.tolist(), strict=True), (width, horizon + 2)]
    draw.polygon(ridge, fill=rgb(0.6 * lit(light, hill) + 0.4 * light.horizon))
    green = np.array([0.2, 0.36, 0.14]) * rng.uniform(0.7, 1.3)
    lawn = horizon + rng.uniform(0.02, 0.07) * height
    draw.rectangle((-1, horizon, width, lawn), fill=rgb(lit(light, 1.15 * green)))
    for x in rng.uniform(0, 1, int(rng.integers(4, 11))) * width:
        tall = rng.uniform(0.16, 0.5) * height
        trunk = 0.05 * tall
        draw.rectangle(
            (x - trunk, lawn - 0.5 * tall, x + trunk, lawn),
            fill=rgb(lit(light, np.array([0.28, 0.2, 0.14]))),
        )
        for _ in range(7):
            cx, cy = x + rng.normal(0, 0.16) * tall, lawn - tall * rng.uniform(0.5, 0.95)
            r = rng.uniform(0.12, 0.24) * tall
            shade = rgb(lit(light, green * rng.uniform(0.75, 1.25)))
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=shade)


def _parked(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    horizon: float,
    size: tuple[int, int],
) -> None:
    """A car park: distant cars, a hedge, lamp posts."""
    width, height = size
    foot = horizon + 0.05 * height
    hedge = np.array([0.2, 0.32, 0.16]) * rng.uniform(0.7, 1.2)
    draw.rectangle(
        (-1, horizon - rng.uniform(0.03, 0.12) * height, width, horizon + 2),
        fill=rgb(lit(light, hedge)),
    )
    for x in rng.uniform(0, 1, 3) * width:
        draw.line(
            (x, foot, x, foot - 0.6 * height),
            fill=rgb(lit(light, np.full(3, 0.4))),
            width=max(1, width // 90),
        )
    x = rng.uniform(-0.1, 0.05) * width
    while x < width:
        w = rng.uniform(0.13, 0.2) * width
        h = 0.36 * w
        paint = rgb(lit(light, random_paint(rng)))
        draw.rounded_rectangle((x, foot - 0.6 * h, x + w, foot - 0.12 * h), 0.2 * h, fill=paint)
        draw.rounded_rectangle(
            (x + 0.2 * w, foot - h, x + 0.8 * w, foot - 0.5 * h),
            0.2 * h,
            fill=rgb(lit(light, np.full(3, 0.15))),
        )
        for u in (0.2, 0.8):
            cx, r = x + u * w, 0.17 * h
            draw.ellipse((cx - r, foot - 2 * r, cx + r, foot), fill=(25, 25, 27))
        x += w * rng.uniform(1.1, 2.2)


def _studio(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    light: Light,
    horizon: float,
    size: tuple[int, int],
) -> None:
    """A plain backdrop that runs into the floor."""
    width, height = size
    floor = light.ground * (0.78 + 0.45 * float(light.sun_colour.mean())) * 1.05
    wall = np.full(3, rng.uniform(0.35, 0.9)) * (1 + rng.normal(0, 0.04, 3))
    bottom = int(horizon + 0.14 * height)
    for v in range(max(0, bottom)):
        share = np.clip((v - horizon + 0.05 * height) / (0.19 * height), 0, 1)
        shade = wall * (0.8 + 0.25 * v / height)
        draw.line((0, v, width, v), fill=rgb(shade + share * (floor - shade)))


def _markings(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, camera: Camera, light: Light
) -> None:
    """Painted lines on the ground: one along the kerb, or those of parking bays."""
    if rng.random() < 0.4:
        lines = [(0.0, -rng.uniform(1.6, 1.8), 14.0, 0.075)]
    else:
        start = rng.uniform(-3.2, -2.6)
        lines = [(start + 5.6 * k, 0.0, 0.06, 2.0) for k in range(-3, 4)]
    for x, y, half_x, half_y in lines:
        corners = box(x - half_x, y - half_y, x + half_x, y + half_y)
        outline = camera.project(np.pad(corners, ((0, 0), (0, 1))))
        draw.polygon(outline.ravel().tolist(), fill=rgb(lit(light, np.full(3, 0.95))))


def _shadow(
    image: Image.Image, camera: Camera, light: Light, footprint: Array, height: float
) -> Image.Image:
    """Darken the ground under the car and away from the sun."""
    cast = Image.new("L", image.size)
    under = Image.new("L", image.size)
    strength = float(light.sun_colour.mean())
    ground = np.pad(footprint, ((0, 0), (0, 1)))
    step = np.append(-light.sun[:2] / light.sun[2], 0.0)
    draw = ImageDraw.Draw(cast)
    for share in np.linspace(0, 0.85, 7):
        narrowed = ground * [1 - 0.25 * share, 1 - 0.2 * share, 1]
        outline = camera.project(narrowed + share * height * step)
        draw.polygon(outline.ravel().tolist(), fill=int(255 * min(0.75, strength)))
    outline = camera.project(ground * [0.97, 0.94, 1])
    ImageDraw.Draw(under).polygon(outline.ravel().tolist(), fill=190)
    blur = 0.06 * camera.pixels_per_metre
    cast = cast.filter(ImageFilter.GaussianBlur(blur * 1.2))
    under = under.filter(ImageFilter.GaussianBlur(blur * 2))
    dark = np.maximum(np.asarray(cast), np.asarray(under))[:, :, None] / np.float32(255)
    return Image.fromarray((np.asarray(image) * (1 - 0.88 * dark)).astype(np.uint8))
