"""Flat shapes, as polygons [n, 2], and what can be done to them. Nothing here knows about cars."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Array", "box", "clip", "dense", "disc", "grown", "polyline", "rounded"]

Array = NDArray[np.float64]


def box(u0: float, v0: float, u1: float, v1: float) -> Array:
    """Corners [4, 2] of an upright rectangle."""
    return np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)])


def disc(u: float, v: float, radius: float, *, points: int = 28, stretch: float = 1.0) -> Array:
    """Points [n, 2] of a circle; ``stretch`` widens it along u."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([u + radius * stretch * np.cos(turn), v + radius * np.sin(turn)], axis=1)


def rounded(polygon: Array, radius: float) -> Array:
    """The polygon with each corner rounded over at most ``radius`` of both its edges."""
    starts = []
    for neighbour in (np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0)):
        edge = neighbour - polygon
        length = np.maximum(np.linalg.norm(edge, axis=1, keepdims=True), 1e-9)
        starts.append(polygon + edge / length * np.minimum(radius, 0.45 * length))
    t = np.linspace(0, 1, 5)[:, None, None]
    curve = (1 - t) ** 2 * starts[0] + 2 * t * (1 - t) * polygon + t**2 * starts[1]
    outline: Array = curve.transpose(1, 0, 2).reshape(-1, 2)
    return outline


def grown(polygon: Array, by: float) -> Array:
    """The polygon scaled about its middle so that its bounds move outwards by ``by``."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    outline: Array = middle + (polygon - middle) * (1 + by / half)
    return outline


def clip(polygon: Array, point: ArrayLike, inward: ArrayLike) -> Array:
    """The part of a polygon on the inward side of a line (Sutherland & Hodgman 1974)."""
    depth = (polygon - np.asarray(point)) @ np.asarray(inward)
    kept = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if depth[i] >= 0:
            kept.append(polygon[i])
        if (depth[i] >= 0) != (depth[j] >= 0):
            share = depth[i] / (depth[i] - depth[j])
            kept.append(polygon[i] + share * (polygon[j] - polygon[i]))
    return np.array(kept).reshape(-1, 2)


def dense(polygon: Array, step: float = 0.12) -> Array:
    """The polygon with points added along its edges, to follow a curved surface."""
    return _divided(np.concatenate([polygon, polygon[:1]]), step)[:-1]


def polyline(points: Array, step: float = 0.12) -> Array:
    """The open line with points added along its pieces, to follow a curved surface."""
    return _divided(points, step)


def _divided(line: Array, step: float) -> Array:
    parts = np.ceil(np.abs(np.diff(line, axis=0)).max(axis=1) / step).clip(1)
    corners = np.concatenate([[0.0], np.cumsum(parts)])
    places = np.arange(corners[-1] + 1)
    return np.stack([np.interp(places, corners, line[:, i]) for i in (0, 1)], axis=1)
