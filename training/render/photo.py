"""One photo of a drawn car."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from index.errors import InvalidArgumentError
from training.render import scene
from training.render.body import Patch, Surface, shell
from training.render.ends import front, rear
from training.render.flank import left, mirror, roof
from training.render.model import CarModel
from training.render.obstacles import occlude
from training.render.paint import Painter
from training.render.shapes import Array
from training.render.wheels import treads, wheels

__all__ = ["MAX_SIZE", "MIN_SIZE", "check_size", "render_car"]

MIN_SIZE, MAX_SIZE = 32, 1024


def check_size(size: int) -> None:
    """Raise InvalidArgumentError unless photos of this width can be drawn."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InvalidArgumentError(
            f"size is {size}: photos are {MIN_SIZE} to {MAX_SIZE} pixels wide."
        )


def render_car(model: CarModel, rng: np.random.Generator, *, size: int = 192) -> NDArray[np.uint8]:
    """Take one photo of a model: paint, view, light, surroundings and noise by chance.

    Args:
        model: what all photos of a class share.
        rng: source of chance; the same state gives the same photo.
        size: width in pixels, 32…1024; the height is three quarters of it.

    Returns:
        uint8 [h, w, 3], RGB.

    Raises:
        InvalidArgumentError: ``size`` is out of range.
    """
    check_size(size)
    width, height = size, round(size * 3 / 4)
    fine = 3 if size <= 256 else 2
    car = _car(model)
    paint = scene.random_paint(rng)
    camera = scene.random_view(rng)
    light = scene.random_light(rng, camera)
    shift = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.1, 0.8)])
    fill = float(rng.uniform(0.74, 0.97))

    camera.frame(car.hull, width=width, height=height, fill=fill, shift=shift)
    image = scene.backdrop(rng, camera, light, car.footprint, model.height, (width, height))
    image = image.resize((fine * width, fine * height), Image.Resampling.BILINEAR)

    camera.frame(car.hull, width=image.width, height=image.height, fill=fill, shift=shift)
    painter = Painter(image, camera, light, paint)
    painter.patches(car.behind)
    painter.shell(car.quads, car.materials)
    painter.patches(car.ahead)
    painter.patches(wheels(car.surface, float(rng.uniform(0, 2 * np.pi))))
    painter.patches(car.mirror)
    occlude(rng, image, camera, light, camera.project(car.hull))

    photo = _develop(rng, image.reduce(fine))
    # Cars are symmetric and only their left side is built.
    return photo[:, ::-1].copy() if rng.random() < 0.5 else photo


def _develop(rng: np.random.Generator, image: Image.Image) -> NDArray[np.uint8]:
    """What camera and lens do: softness, exposure, contrast, white balance, noise."""
    width, height = image.size
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(width * float(rng.uniform(0.0008, 0.003))))
    pixels = np.asarray(image, dtype=np.float32)
    balance = rng.uniform(0.92, 1.2) * (1 + rng.normal(0, 0.025, 3))
    contrast = rng.uniform(0.9, 1.2)
    gain = (balance * contrast).astype(np.float32)
    lift = np.float32(118 * (1 - contrast) + rng.normal(0, 5))
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    tint = rng.standard_normal((height, width, 3), dtype=np.float32)
    noise = np.float32(rng.uniform(0.5, 5)) * (0.7 * grain + 0.5 * tint)
    photo: NDArray[np.uint8] = np.clip(pixels * gain + lift + noise, 0, 255).astype(np.uint8)
    return photo


@dataclass(frozen=True)
class _Car:
    """The pieces of a model in painting order; the wheels come before the near mirror."""

    surface: Surface
    #: Points [n, 3] that lie around the whole car.
    hull: Array
    #: Outline [n, 2] on the ground.
    footprint: Array
    behind: tuple[Patch, ...]
    quads: Array
    materials: NDArray[np.int64]
    ahead: tuple[Patch, ...]
    mirror: tuple[Patch, ...]


@lru_cache(maxsize=8)
def _car(model: CarModel) -> _Car:
    surface = Surface(model)
    quads, materials = shell(surface)
    behind = treads(surface) + mirror(surface, -1)
    ahead = roof(surface) + front(surface) + rear(surface) + left(surface)
    hull = np.concatenate([quads.reshape(-1, 3), *(patch.points for patch in behind)])
    x, y = np.ptp(hull[:, 0]) / 2, model.width / 2
    # On the ground a car is a rectangle with round corners (a superellipse).
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    squared = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    squared = np.sign(squared) * np.abs(squared) ** 0.4
    middle = (surface.front_x + surface.rear_x) / 2
    return _Car(
        surface,
        hull,
        squared * [x, y] + [middle, 0.0],
        tuple(behind),
        quads,
        materials,
        tuple(ahead),
        tuple(mirror(surface, 1)),
    )
