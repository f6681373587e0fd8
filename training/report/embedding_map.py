"""A 2-D map of an embedding: which photos are drawn, and where."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST", "MOST", "map_embeddings", "sample"]

#: Photos on a map: with fewer there is nothing to see, with more nobody would.
LEAST, MOST = 4, 3000

#: Where classes are too many to show all, those that are shown have up to this many photos: a class
#: is seen to hold together, or not, only by several of them.
PER_CLASS = 10


def sample(labels: NDArray[np.int64], *, most: int = MOST, seed: int = 0) -> NDArray[np.int64]:
    """Choose at most ``most`` photos at random, as evenly over the classes as these allow.

    Args:
        labels: int64 (n,).
        most: how many photos.
        seed: of the choice.

    Returns:
        int64 (m,), ascending positions, m <= ``most``; all of them if they are no more.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(labels))
    share = max(PER_CLASS, most // len(classes))
    chosen: list[NDArray[np.int64]] = []
    left = most
    for label in classes:
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[: min(share, left)])
        left -= len(chosen[-1])
        if left == 0:
            break
    return np.sort(np.concatenate(chosen))


def map_embeddings(embeddings: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float64]:
    """Lay rows out in the plane by t-SNE (van der Maaten and Hinton, JMLR 2008), started from PCA.

    Args:
        embeddings: float32 (n, d), unit rows, n >= ``LEAST``; their squared distances are
            2 − 2 × cosine.
        seed: of the little that is random about it.

    Returns:
        float64 (n, 2), each axis in 0 … 1. Only nearness has a meaning; axes have none.
    """
    n, d = embeddings.shape
    if d > 2:
        plane = _tsne(embeddings, seed)
    else:
        plane = np.zeros((n, 2))
        plane[:, :d] = embeddings
    low, high = plane.min(0), plane.max(0)
    scaled: NDArray[np.float64] = (plane - low) / np.maximum(high - low, np.finfo(float).tiny)
    return scaled


def _tsne(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    # scikit-learn takes seconds to import, and only a map needs it.
    from sklearn.manifold import TSNE

    n = len(embeddings)
    centred = embeddings.astype(np.float64) - embeddings.mean(0, dtype=np.float64)
    axes, spreads, _ = np.linalg.svd(centred, full_matrices=False)
    start = axes[:, :2] * spreads[:2]
    spread = start[:, 0].std()
    # Rows that are all alike have no axes; scikit-learn's own start from PCA would be NaN, on which
    # its tree crashes. Nor may points coincide.
    if not spread > np.finfo(np.float32).eps:
        return np.zeros((n, 2))
    start = 1e-4 * start / spread + np.random.default_rng(seed).normal(scale=1e-6, size=(n, 2))
    # Perplexity must be below n; a third of it keeps small maps from collapsing.
    tsne = TSNE(init=start, perplexity=min(30.0, (n - 1) / 3), random_state=seed)
    return np.asarray(tsne.fit_transform(embeddings), np.float64)
