"""Normalised spectral clustering: the paper's own evaluation, of all test embeddings together.

The n test photos are embedded as the left singular vectors of their embedding matrix, the rows
brought to unit length (Law, Urtasun and Zemel, "Deep Spectral Clustering Learning", ICML 2017,
experiments; the normalisation is that of Ng, Jordan and Weiss, "On Spectral Clustering: Analysis
and an Algorithm", NIPS 2001). It fixes what the DSCL loss leaves open, the invertible A in F → FA,
by the *test* photos: it whitens with statistics that a search by one photo does not have. So it is
transductive, its figures are a row of their own, and they never compare with those of embeddings
made one photo at a time, ours or others'.

What is indexed and served is whitened with the training photos instead, see
``training.whitening``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.errors import InvalidArgumentError
from index.metrics import RetrievalMetrics, evaluate

__all__ = ["evaluate_transductive", "spectral_embedding"]


def spectral_embedding(
    embeddings: NDArray[np.floating], *, center: bool = True, rank: int | None = None
) -> NDArray[np.float64]:
    """Left singular vectors of the embedding matrix, each row of unit length.

    The cosine of rows i and j is P_ij / √(P_ii P_jj), P being the orthogonal projector onto the
    column space of the embeddings F. So it does not change under F → FA for any invertible A; with
    ``center`` nor under translation. Axes come in the order of their singular values, in which all
    this holds up to an orthogonal map.

    Args:
        embeddings: floating point (n, d), finite, n >= 2; of all photos that are judged together.
        center: subtract the mean first, as the centred DSCL loss does, which leaves it open.
        rank: keep that many leading singular vectors. That gives up the invariance, as A decides
            which ones lead. Default: all r that the embeddings have, up to rounding of their dtype.

    Returns:
        float64 (n, r). Rows at the origin (with ``center``, at the mean) have no direction and
        remain 0.

    Raises:
        InvalidArgumentError: another shape or dtype, NaN or infinity, ``rank`` out of range, or
            embeddings that are all 0 (with ``center``: alike).
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or 0 in embeddings.shape:
        raise InvalidArgumentError(
            f"embeddings are {embeddings.dtype} {list(embeddings.shape)}: expected floating point "
            "[n, d], one row per photo."
        )
    F = embeddings.astype(np.float64)
    if not np.isfinite(F).all():
        raise InvalidArgumentError(
            f"{np.count_nonzero(~np.isfinite(F).all(1))} of {len(F)} embeddings hold NaN or "
            "infinity: leave them out, or mend the model that made them."
        )
    # Entries are rounded to half an eps, which moves no singular value by more than eps/2 · ‖F‖
    # (Weyl); the rest of the factor is room for the arithmetic that made them.
    noise = 4 * float(np.finfo(embeddings.dtype).eps) * float(np.linalg.norm(F))
    if center:
        F -= F.mean(0)
    vectors, values, _ = np.linalg.svd(F, full_matrices=False)
    full = int((values > noise).sum())
    if full == 0:
        raise InvalidArgumentError(
            f"all {len(F)} embeddings are {'alike' if center else '0'}: there is nothing to tell "
            "photos apart by."
        )
    if rank is not None and not 1 <= rank <= full:
        raise InvalidArgumentError(
            f"rank is {rank}: {len(F)} embeddings of {F.shape[1]} dimensions have "
            f"{full} singular vectors to keep, so expected 1 … {full}."
        )
    kept = vectors[:, :rank] if rank is not None else vectors[:, :full]
    at_origin = np.linalg.norm(F, axis=1) <= noise
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    lengths[at_origin] = np.inf
    rows: NDArray[np.float64] = kept / lengths
    return rows


def evaluate_transductive(
    embeddings: NDArray[np.floating],
    labels: ArrayLike,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    center: bool = True,
    rank: int | None = None,
    queries: NDArray[np.bool_] | None = None,
) -> RetrievalMetrics:
    """Judge embeddings by normalised spectral clustering: recall@K, and NMI of k-means, on it.

    These are figures of a whole test set seen at once. Report them under a name that says so, and
    never beside an embedding that sees one photo at a time as if they compared.

    Args:
        embeddings: see ``spectral_embedding``.
        labels: integers or strings [n].
        ks: the K of recall@K.
        seed: of the k-means, which makes as many clusters as there are classes.
        center: see ``spectral_embedding``.
        rank: likewise.
        queries: see ``index.metrics.evaluate``; queries and gallery are embedded together.

    Raises:
        InvalidArgumentError: see ``spectral_embedding`` and ``index.metrics.evaluate``.
    """
    rows = spectral_embedding(embeddings, center=center, rank=rank)
    return evaluate(rows, labels, ks=ks, clustering=True, seed=seed, queries=queries)
