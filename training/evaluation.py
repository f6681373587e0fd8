"""The figures of a finished model, and the files from which a report is made.

``evaluation/`` in a run folder: figures as rows of ``evaluation.json``, and the embeddings and
labels they were computed from as ``.npy``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.files import replace_folder
from index.metrics import RetrievalMetrics
from training.data import Photos

__all__ = ["KS", "row", "write_evaluation"]

#: The K of recall@K.
KS = (1, 2, 4, 8)


def row(name: str, metrics: RetrievalMetrics) -> dict[str, Any]:
    """One line of the table of figures, as JSON values."""
    values = dataclasses.asdict(metrics)
    return {"name": name, **values, "recall": {str(k): v for k, v in metrics.recall.items()}}


def write_evaluation(
    folder: Path,
    *,
    protocol: str,
    photos: Photos,
    embeddings: NDArray[np.float32],
    rows: list[dict[str, Any]],
    queries: NDArray[np.bool_] | None = None,
    also: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write figures and what they come from, whole or not at all.

    Args:
        folder: replaced if it exists.
        protocol: what the figures must be labelled with.
        photos: the n photos that judged.
        embeddings: float32 (n, d), rows of unit length, as exported.
        rows: see ``row``; that of the exported model first.
        queries: bool (n,), which photos are queries, where the protocol says so.
        also: further arrays to keep, by file name without ``.npy``.
    """
    facts = {
        "protocol": protocol,
        "classes": list(photos.classes),
        "paths": [str(path.absolute()) for path in photos.paths],
        "boxes": None if photos.boxes is None else photos.boxes.tolist(),
        "rows": rows,
    }
    arrays: dict[str, NDArray[Any]] = {
        "embeddings": embeddings,
        "labels": photos.labels,
        **(also or {}),
    }
    if queries is not None:
        arrays["queries"] = queries
    with replace_folder(folder) as fresh:
        (fresh / "evaluation.json").write_text(
            json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
