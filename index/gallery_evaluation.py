"""Which items of a gallery, or photos beside it, are judged, and what the protocol is called.

What is measured, and how, is for ``index.evaluation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.contents import Contents, Index
from index.errors import InvalidArgumentError
from index.evaluation import Evaluation, Judged, evaluate
from index.filters import Filter, either

__all__ = ["judge_items", "judge_photos"]


def judge_items(
    contents: Contents,
    index: Index,
    name: str,
    queries: Filter | None,
    gallery: Filter | None,
    ks: Sequence[int],
    *,
    exact: bool,
    **wanted: Any,
) -> Evaluation:
    """Labelled items looked up among labelled items; see ``Gallery.evaluate``.

    Args:
        contents: of the gallery.
        index: what it is searched by.
        name: of the gallery, in errors.
        queries: which items are queries; None for all.
        gallery: which items are looked among; None for all.
        ks: the K of recall@K.
        exact: rank by exact search, else by ``index``.
        wanted: what else ``index.evaluation.evaluate`` is to tell.

    Raises:
        InvalidArgumentError: no labelled items, or no query with a right answer.
    """
    judged, unlabelled = _judged(contents, name, queries, gallery)
    if _key(queries) == _key(gallery):
        protocol = f"gallery leave-one-out, {_search_name(index, exact)}"
        if gallery is not None:
            protocol += f", where {gallery.key}"
    else:
        protocol = (
            f"{_items_name(queries)} looked up in {_items_name(gallery)}, "
            f"{_search_name(index, exact)}"
        )
    return evaluate(
        judged,
        ks,
        protocol=protocol,
        unlabelled=unlabelled,
        index=None if exact else index,
        **wanted,
    )


def judge_photos(
    contents: Contents,
    index: Index,
    name: str,
    vectors: NDArray[np.float32],
    labels: Sequence[str],
    gallery: Filter | None,
    ks: Sequence[int],
    *,
    exact: bool,
    **wanted: Any,
) -> Evaluation:
    """Labelled photos looked up in the gallery; see ``Gallery.evaluate_photos``.

    Args:
        vectors: float32 (q, d), unit rows.
        labels: of each.
        contents: and all others: as for ``judge_items``.

    Raises:
        InvalidArgumentError: as ``judge_items``.
    """
    ids, among, names = _labelled(contents, name, gallery)
    outside = np.arange(len(ids) + len(labels)) >= len(ids)
    return evaluate(
        Judged.of(
            np.concatenate([ids, -1 - np.arange(len(labels))]),
            np.concatenate([among, vectors]),
            [*names, *labels],
            queries=outside,
            gallery=~outside,
        ),
        ks,
        protocol=f"{len(labels)} photos looked up in {_items_name(gallery)}, "
        f"{_search_name(index, exact)}",
        unlabelled=contents.count(gallery) - len(ids),
        index=None if exact else index,
        **wanted,
    )


def _judged(
    contents: Contents, name: str, queries: Filter | None, gallery: Filter | None
) -> tuple[Judged, int]:
    """Items of both sides, and how many more there are without a label."""
    ids, vectors, labels = _labelled(contents, name, gallery)
    if _key(queries) == _key(gallery):
        everything = np.ones(len(ids), np.bool_)
        judged = Judged.of(ids, vectors, labels, queries=everything, gallery=everything)
        return judged, contents.count(gallery) - len(ids)
    asking, asking_vectors, asking_labels = _labelled(contents, name, queries)
    all_ids, first = np.unique(np.concatenate([ids, asking]), return_index=True)
    all_labels = labels + asking_labels
    judged = Judged.of(
        all_ids,
        np.concatenate([vectors, asking_vectors])[first],
        [all_labels[row] for row in first],
        queries=np.isin(all_ids, asking),
        gallery=np.isin(all_ids, ids),
    )
    union = None if queries is None or gallery is None else either(queries, gallery)
    return judged, contents.count(union) - len(all_ids)


def _labelled(
    contents: Contents, name: str, where: Filter | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], list[str]]:
    ids, vectors, labels = contents.labelled(where)
    if not labels:
        among = "" if where is None else f", where {where.key}"
        raise InvalidArgumentError(
            f"gallery {name} has no labelled items{among}, and recall@K needs labels: index photos "
            "from class folders, or a CSV with a `label` column."
        )
    return ids, vectors, labels


def _key(where: Filter | None) -> str | None:
    return None if where is None else where.key


def _items_name(where: Filter | None) -> str:
    return "all items" if where is None else f"items where {where.key}"


def _search_name(index: Index, exact: bool) -> str:
    return "exact search" if exact else f"search by its {index.kind} index"
