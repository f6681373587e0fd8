"""Items for galleries in tests: no photo is read, vectors are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from index import NewItem
from index.photos import AttributeValue

DIM = 8

#: Wherever the photos are said to lie.
ROOT = Path("/photos")


def unit(n: int, seed: int = 0) -> np.ndarray:
    """float32 (n, DIM), directions at random."""
    x = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def item(
    path: str,
    vector: np.ndarray,
    *,
    root: Path = ROOT,
    label: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    sku: str | None = None,
) -> NewItem:
    return NewItem(
        root=root,
        path=path,
        sha256="0" * 64,
        size=1,
        mtime_ns=1,
        label=label,
        attributes={} if attributes is None else dict(attributes),
        vector=vector,
        external_id=sku,
    )


def items(vectors: np.ndarray, *, prefix: str = "") -> list[NewItem]:
    return [item(f"{prefix}{i}.jpg", vector) for i, vector in enumerate(vectors)]


def brute_force(stored: Mapping[int, np.ndarray], query: np.ndarray, k: int) -> list[int]:
    """Ids by float64 score, descending, then by id."""
    scores = {i: float(v.astype(np.float64) @ query.astype(np.float64)) for i, v in stored.items()}
    return sorted(stored, key=lambda i: (-scores[i], i))[:k]
