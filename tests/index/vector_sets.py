"""Vectors to search, and what exact search by float64 sums says about a result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-6


def unit(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float32]:
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustered(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float32]:
    centres = rng.normal(size=(max(1, n // 50), d))
    x = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def near(rng: np.random.Generator, vectors: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Queries as a gallery gets them: like what it holds, but not the same."""
    chosen = vectors[rng.integers(0, len(vectors), n)]
    x = chosen + 0.5 / np.sqrt(chosen.shape[1]) * rng.normal(size=chosen.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def assert_exact(
    ids: NDArray[np.int64],
    scores: NDArray[np.float32],
    stored: dict[int, NDArray[np.float32]],
    query: NDArray[np.float32],
    k: int,
) -> None:
    """Full k, true scores, ranked by (score descending, id ascending), nothing nearer left out."""
    assert_ranked(ids, scores, stored, query, k)
    if not len(ids):
        return
    truth = {i: float(v.astype(np.float64) @ query.astype(np.float64)) for i, v in stored.items()}
    last, found = int(ids[-1]), set(ids.tolist())
    for i in stored.keys() - found:
        assert truth[i] <= scores[-1] + TOLERANCE
        if np.array_equal(stored[i], stored[last]):
            assert i > last, "of equal vectors the lowest ids come first"


def assert_ranked(
    ids: NDArray[np.int64],
    scores: NDArray[np.float32],
    stored: dict[int, NDArray[np.float32]],
    query: NDArray[np.float32],
    k: int,
) -> None:
    """Full k, true scores, ranked: what approximate search owes too."""
    assert len(ids) == len(scores) == min(k, len(stored))
    assert len(set(ids.tolist())) == len(ids)
    truth = [float(stored[i].astype(np.float64) @ query.astype(np.float64)) for i in ids.tolist()]
    assert np.allclose(scores, np.clip(truth, -1, 1), rtol=0, atol=TOLERANCE)
    assert np.abs(scores).max(initial=0) <= 1
    ranking = list(zip((-scores).tolist(), ids.tolist(), strict=True))
    assert ranking == sorted(ranking)


def brute_force_recall(
    ids: NDArray[np.int64],
    stored_ids: NDArray[np.int64],
    stored: NDArray[np.float32],
    queries: NDArray[np.float32],
) -> float:
    """The share of the true neighbours, as many as were found per query, that are among ids."""
    order = np.argsort(-(queries.astype(np.float64) @ stored.astype(np.float64).T), axis=1)
    truth = stored_ids[order[:, : ids.shape[1]]]
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, ids, strict=True)]))
