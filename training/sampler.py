"""Class-balanced batches: which photos meet in a batch, and when.

DSCL compares classes within one batch, so each batch has P classes with K images each. Works on
labels alone; photos and pixels are the business of ``training.augment``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.errors import InvalidArgumentError

__all__ = ["ClassBalancedBatches", "plan_batch"]


class ClassBalancedBatches:
    """Batches of P classes × K images that visit every image in every epoch.

    Each class is shuffled and cut into groups of K, its last group filled up with other images of
    the class. A batch takes one group of each of P classes, those with the most groups left first:
    no schedule has fewer batches. Where fewer than P classes have groups left, other classes chosen
    at random fill the batch.

    An epoch depends on its number and the seed alone, so a resumed run meets the same batches.
    """

    def __init__(
        self, labels: ArrayLike, *, classes_per_batch: int, images_per_class: int, seed: int
    ) -> None:
        """Plan batches for ``labels``.

        Args:
            labels: int (n,), the class of each image.
            classes_per_batch: P, at least 1.
            images_per_class: K, at least 2. A class with fewer images repeats them in a group.
            seed: at least 0.

        Raises:
            InvalidArgumentError: for values out of range, or fewer than P classes.
        """
        flat = np.asarray(labels)
        classes, class_of = np.unique(flat, return_inverse=True)
        if images_per_class < 2:
            raise InvalidArgumentError(
                f"{images_per_class} images per class in a batch teach nothing about what a class "
                "has in common: use at least 2."
            )
        if classes_per_batch < 1 or seed < 0:
            raise InvalidArgumentError(
                f"{classes_per_batch} classes per batch with seed {seed}: expected at least 1 "
                "class, and a seed of at least 0."
            )
        if len(classes) < classes_per_batch:
            raise InvalidArgumentError(
                f"a batch of {classes_per_batch} classes needs as many training classes, but there "
                f"are {len(classes)}: lower the classes per batch (a smaller --batch-size or more "
                "--images-per-class) or add classes."
            )
        self.seed = seed
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self._members = [np.flatnonzero(class_of == c) for c in range(len(classes))]
        self._groups = np.array([-(-len(m) // images_per_class) for m in self._members])

    def __len__(self) -> int:
        """Batches in each epoch."""
        full = -(-int(self._groups.sum()) // self.classes_per_batch)
        return max(full, int(self._groups.max()))

    def epoch(self, number: int) -> list[NDArray[np.int64]]:
        """The batches of epoch ``number`` (from 0): image indices, int64 (P·K,).

        Within a batch the classes take turns. BatchNorm in training mode normalises by the part
        that is embedded at a time, and would take from parts of a class or two what sets them apart
        from the others.
        """
        rng = np.random.default_rng((self.seed, number))
        waiting = [self._cut(members, rng) for members in self._members]
        left = self._groups.copy()
        batches = []
        for _ in range(len(self)):
            most_left_first = np.lexsort((rng.random(len(left)), -left))
            chosen = most_left_first[: self.classes_per_batch]
            batches.append(
                np.stack(
                    [
                        waiting[c].pop() if waiting[c] else self._draw(self._members[c], rng)
                        for c in chosen
                    ],
                    axis=1,
                ).ravel()
            )
            left[chosen] = np.maximum(left[chosen] - 1, 0)
        return batches

    def _cut(self, members: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """All images of a class in random groups of K."""
        k, shuffled = self.images_per_class, rng.permutation(members)
        if len(members) < k:
            return [self._draw(members, rng)]
        whole = len(members) // k * k
        groups = list(shuffled[:whole].reshape(-1, k))
        if rest := len(members) - whole:
            filling = rng.choice(shuffled[:whole], k - rest, replace=False)
            groups.append(np.concatenate([shuffled[whole:], filling]))
        return groups

    def _draw(self, members: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """K random images of a class, each as often as any other, give or take one."""
        return np.resize(rng.permutation(members), self.images_per_class)


def plan_batch(batch_size: int, images_per_class: int, classes: int) -> tuple[int, int]:
    """Divide a batch into P classes × K images: (P, K), with P·K ≤ ``batch_size``.

    As many classes as fit with ``images_per_class`` each; where all of them fit, they share the
    whole batch: the more of the classes a DSCL step sees, the better it separates them.

    Args:
        batch_size: images in a batch, at most.
        images_per_class: K at least.
        classes: number of training classes.

    Raises:
        InvalidArgumentError: if the batch has no room for two classes.
    """
    p = min(classes, batch_size // images_per_class)
    if p < 2:
        raise InvalidArgumentError(
            f"a batch of {batch_size} with {images_per_class} images per class has room for "
            f"{batch_size // images_per_class} of {classes} classes, but needs two to compare: "
            "raise --batch-size or lower --images-per-class."
        )
    return p, batch_size // p if p == classes else images_per_class
