"""Vectors as points of a plane: t-SNE, for maps of galleries. Arrays in, arrays out.

t-SNE (van der Maaten and Hinton, JMLR 2008) puts items that are neighbours next to one another and
pushes all others apart. Three findings since then make it quick and repeatable:

- The neighbours can count alike: affinities fitted to each item's surroundings give nearly the same
  map (Böhm, Berens and Kobak, "Attraction-Repulsion Spectrum in Neighbor Embeddings", JMLR 2022).
- Starting from the principal components keeps what lies far apart in its place, and leaves nothing
  to chance (Kobak and Berens, "The art of using t-SNE …", Nature Communications 2019).
- The push of all points on all others is a convolution, computed on a grid by FFT (Linderman et
  al., "Fast interpolation-based t-SNE …", Nature Methods 2019): its time grows with n, not n².

openTSNE and scikit-learn have t-SNE too, and would bring 150 MB of SciPy into a service that needs
nothing else of it; the tests hold what is here against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["Progress", "place", "project"]

#: Told (done, total, stage); what it raises stops the work.
Progress = Callable[[int, int, str], None]

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

#: Neighbours that draw an item to them, and principal components in which they are looked for.
NEIGHBOURS = 15
COMPONENTS = 50

#: Items that the principal components are computed from, and queries between two tellings.
COMPONENT_ROWS = 20_000
BLOCK = 1000

#: Steps with the pull exaggerated, in which the groups form, and steps in which they settle.
EARLY_STEPS = 200
STEPS = 600
EXAGGERATION = 12.0

#: Steps between two tellings.
TOLD_EVERY = 10

#: The farthest that a point goes in a step: one that is thrown out would not come back.
MAX_STEP = 5.0

#: Items of a map next to which a new one is put.
PLACED_BY = 5


def project(
    vectors: NDArray[np.float32],
    *,
    start: Floats | None = None,
    progress: Progress | None = None,
) -> Floats:
    """Lay vectors out in two dimensions, neighbours next to one another.

    The same vectors give the same map. 50,000 of 128 dimensions take 80 seconds of a core.

    Args:
        vectors: (n, d), n at least 1.
        start: (n, 2), an earlier map to begin with, so that the new one resembles it.
        progress: told after each block of comparisons, and after every tenth step.

    Returns:
        (n, 2), centred; distances have no unit.
    """
    n = len(vectors)
    reduced = _principal_components(vectors)
    plane = np.zeros((n, 2))
    plane[:, : reduced.shape[1]] = reduced[:, :2]
    if n <= 3:  # as far apart as they are: there is nothing to choose
        return plane
    neighbours = _neighbours(reduced, min(NEIGHBOURS, n - 1), progress)
    return _settle(plane if start is None else start - start.mean(0), neighbours, progress)


def place(
    new: NDArray[np.float32], vectors: NDArray[np.float32], positions: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """Where new items belong on a map that is there: amid their nearest, whatever one of them says.

    Args:
        new: (m, d), unit rows.
        vectors: (n, d), unit rows of the items on the map, n at least 1.
        positions: (n, 2), theirs.

    Returns:
        (m, 2): the medians of the positions of the 5 nearest.
    """
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    _, near = index.search(np.ascontiguousarray(new), min(PLACED_BY, len(vectors)))
    # Their own coordinates, not means of two: a median of an even number lies between groups.
    return np.sort(positions[near], axis=1)[:, near.shape[1] // 2]


def _principal_components(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors, centred, in their principal components: (n, min(d, n, 50))."""
    n, d = vectors.shape
    some = vectors[:: -(-n // COMPONENT_ROWS)].astype(np.float64)
    centre = some.mean(0)
    some -= centre
    _, axes = np.linalg.eigh(some.T @ some)
    axes = axes[:, ::-1][:, : min(d, COMPONENTS)]  # largest first
    # An axis may come out in either direction: take the one in which its largest part is positive.
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return np.ascontiguousarray((vectors - centre.astype(np.float32)) @ axes.astype(np.float32))


def _neighbours(points: NDArray[np.float32], k: int, progress: Progress | None) -> Ids:
    """The k nearest other points of each, int64 (n, k)."""
    n = len(points)
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    found = np.empty((n, k), np.int64)
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(n, start + BLOCK))
        _, near = index.search(points[rows], k + 1)
        # The point itself goes last, or where it is not among its nearest, the farthest is last.
        itself = near == rows[:, None]
        order = np.argsort(itself, axis=1, kind="stable")[:, :-1]
        found[rows] = np.take_along_axis(near, order, axis=1)
        if progress is not None:
            progress(int(rows[-1]) + 1, n, "finding neighbours")
    return found


def _settle(start: Floats, neighbours: Ids, progress: Progress | None) -> Floats:
    """Gradient descent with momentum, and a gain of its own for each coordinate."""
    n = len(start)
    spread = start.std()
    points = start * (1e-4 / spread) if spread > 0 else start
    pull, push = _Pull(neighbours), _Push()
    moved, gains = np.zeros_like(points), np.ones_like(points)
    for step in range(STEPS):
        early = step < EARLY_STEPS
        exaggeration, momentum = (EXAGGERATION, 0.5) if early else (1.0, 0.8)
        rate = max(200.0, n / exaggeration)
        forces, total = push(points)
        gradient = exaggeration * pull(points) - forces / max(total, 1e-12)
        against = (gradient > 0) == (moved > 0)  # still moving away from where it should go
        gains = np.maximum(np.where(against, gains * 0.8, gains + 0.2), 0.01)
        moved = momentum * moved - rate * gains * gradient
        length = np.hypot(moved[:, 0], moved[:, 1])[:, None]
        moved *= np.minimum(1, MAX_STEP / np.maximum(length, 1e-12))
        points = points + moved
        points -= points.mean(0)
        if progress is not None and (step + 1) % TOLD_EVERY == 0:
            progress(step + 1, STEPS, "laying out")
    return points


class _Pull:
    """Σⱼ pᵢⱼ qᵢⱼ (yᵢ − yⱼ), with pᵢⱼ alike for all neighbours and q = 1 / (1 + distance²)."""

    def __init__(self, neighbours: Ids) -> None:
        self._neighbours = neighbours
        self._flat = neighbours.ravel()
        # Each of n·k pairs counts in both directions, and all p add up to 1.
        self._p = 1 / (2 * neighbours.size)

    def __call__(self, points: Floats) -> Floats:
        differences = [axis[:, None] - axis[self._neighbours] for axis in points.T]
        q = 1 / (1 + np.square(differences[0]) + np.square(differences[1]))
        sums = np.empty_like(points)
        for axis, difference in enumerate(differences):
            difference *= q
            back = np.bincount(self._flat, difference.ravel(), len(points))
            sums[:, axis] = difference.sum(1) - back
        return self._p * sums


class _Push:
    """Σⱼ qᵢⱼ² (yᵢ − yⱼ) and Σᵢⱼ qᵢⱼ (i ≠ j), on a grid.

    Each point is shared out among the 4 × 4 nodes around it, so that cubic interpolation from there
    would give it back; what nodes do to nodes is a convolution; the forces on the nodes are
    interpolated at the points.
    """

    #: Distance of nodes, smaller only on the smallest grid and larger only on the largest; q
    #: changes over distances of 1.
    SPACING = 0.4

    #: Nodes along a side: sizes for which FFT is quick, and nodes that remain free at the border.
    SIDES = (64, 80, 96, 128, 160, 192, 240, 288, 320, 384, 432, 480, 512)
    BORDER = 6

    #: How much the points may spread before the grid is laid out anew.
    ROOM = 1.2

    def __init__(self) -> None:
        self._reach = 0.0  # the largest side of a square of points that the grid has room for

    def __call__(self, points: Floats) -> tuple[Floats, float]:
        low = points.min(0)
        side = float((points.max(0) - low).max())
        if side >= self._reach:
            self._lay_out(side)
        nodes, weights = self._shares(points - low)
        density: Floats = np.bincount(nodes.ravel(), weights.ravel(), self._side**2).astype(float)
        spectrum = self._spectrum(density.reshape(self._side, self._side))
        forces = np.empty_like(points)
        for axis, kernel in enumerate(self._forces):
            field = self._back(spectrum * kernel).ravel()
            forces[:, axis] = np.einsum("wn,wn->n", weights, field[nodes])
        # By Parseval's theorem; in it, each point has pushed itself as well.
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        total = float(np.einsum("xy,xy,y->", power, self._q, self._twice, dtype=np.float64))
        itself = float(np.einsum("wn,wn->", weights, self._q_around @ weights))
        return forces, total / (2 * self._side) ** 2 - itself

    def _lay_out(self, side: float) -> None:
        side = max(self.ROOM * side, 1e-6)
        nodes = side / self.SPACING + self.BORDER
        self._side = next((n for n in self.SIDES if n >= nodes), self.SIDES[-1])
        inner = self._side - self.BORDER
        self._h = side / inner
        if self._side not in (self.SIDES[0], self.SIDES[-1]):
            self._h = self.SPACING
        self._reach = self._h * inner
        # Around twice the side, so that no point meets the others again beyond the edge.
        n = 2 * self._side
        offset = self._h * np.minimum(np.arange(n), n - np.arange(n))
        signed = np.where(np.arange(n) < self._side, offset, -offset)
        x, y = signed[:, None], signed[None, :]
        q = 1 / (1 + x**2 + y**2)
        self._q = self._spectrum(q).real
        near = np.indices((4, 4)).reshape(2, 16)
        self._q_around = q[*(near[:, :, None] - near[:, None])]  # between the nodes around a point
        self._forces = [self._spectrum(q**2 * x), self._spectrum(q**2 * y)]
        # A real signal's spectrum is stored by half: all columns but the outer ones stand for two.
        self._twice = np.full(self._side + 1, 2.0, np.float32)
        self._twice[[0, -1]] = 1

    def _shares(self, points: Floats) -> tuple[Ids, Floats]:
        """The 16 nodes of each point and their weights, (16, n) both."""
        at = points / self._h + self.BORDER / 2
        first = np.floor(at).astype(np.int64)
        t = (at - first).T
        first -= 1
        # Lagrange's polynomials through −1, 0, 1, 2
        x, y = np.stack(
            [
                -t * (t - 1) * (t - 2) / 6,
                (t + 1) * (t - 1) * (t - 2) / 2,
                -(t + 1) * t * (t - 2) / 2,
                (t + 1) * t * (t - 1) / 6,
            ],
            axis=1,
        )
        steps = np.arange(4)
        around = (steps[:, None] * self._side + steps).reshape(16, 1)
        nodes = first[:, 0] * self._side + first[:, 1] + around
        return nodes, (x[:, None] * y[None]).reshape(16, -1)

    def _spectrum(self, values: Floats) -> NDArray[np.complex64]:
        n = 2 * self._side
        spectrum: Any = np.fft.rfft2(values.astype(np.float32), (n, n))
        return np.asarray(spectrum)

    def _back(self, spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
        n = 2 * self._side
        values: Any = np.fft.irfft2(spectrum, (n, n))
        return np.asarray(values[: self._side, : self._side])
