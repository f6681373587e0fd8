"""Normalised spectral clustering against projectors, scikit-learn and what it must not see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from index.errors import InvalidArgumentError
from index.metrics import evaluate
from training.transductive import evaluate_transductive, spectral_embedding

Array = NDArray[np.float64]


def embeddings_of_classes(
    n: int = 60, d: int = 6, classes: int = 5, *, seed: int = 0, noise: float = 1.0
) -> tuple[Array, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = 3 * rng.normal(size=(classes, d))
    return centres[labels] + noise * rng.normal(size=(n, d)) + rng.normal(size=d), labels


def cosines(rows: Array) -> Array:
    return rows @ rows.T


@pytest.mark.parametrize("center", [True, False])
def test_cosines_are_the_normalised_entries_of_the_projector(center: bool) -> None:
    F, _ = embeddings_of_classes()
    rows = spectral_embedding(F, center=center)
    assert rows.shape == (60, 6)
    assert rows.dtype == np.float64
    G = F - F.mean(0) if center else F
    P = G @ np.linalg.inv(G.T @ G) @ G.T
    expected = P / np.sqrt(np.outer(np.diag(P), np.diag(P)))
    np.testing.assert_allclose(cosines(rows), expected, atol=1e-12)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None)
def test_invertible_maps_and_translations_change_nothing(seed: int, scale: float) -> None:
    F, _ = embeddings_of_classes(seed=seed)
    rng = np.random.default_rng(seed + 1)
    A = scale * rng.normal(size=(6, 6))
    expected = cosines(spectral_embedding(F))
    found = cosines(spectral_embedding(F @ A + scale * rng.normal(size=6)))
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.linalg.cond(A))


def test_without_centring_only_translation_matters() -> None:
    F, _ = embeddings_of_classes()
    A = np.random.default_rng(1).normal(size=(6, 6))
    expected = cosines(spectral_embedding(F, center=False))
    np.testing.assert_allclose(
        cosines(spectral_embedding(F @ A, center=False)), expected, atol=1e-10
    )
    assert np.abs(cosines(spectral_embedding(F + 5, center=False)) - expected).max() > 0.1


def test_it_is_the_whitening_of_the_test_photos() -> None:
    F, _ = embeddings_of_classes()
    white = (F - F.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(F.T))).T
    unit = white / np.linalg.norm(white, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines(spectral_embedding(F)), cosines(unit), atol=1e-12)


def test_recall_is_that_of_a_naive_ranking_by_the_projector() -> None:
    F, labels = embeddings_of_classes(noise=2.0)
    metrics = evaluate_transductive(F, labels, ks=[1, 3])

    G = F - F.mean(0)
    P = G @ np.linalg.pinv(G)
    for k in (1, 3):
        hits = 0
        for i in range(len(F)):
            others = [j for j in range(len(F)) if j != i]
            ranking = sorted(others, key=lambda j: -P[i, j] / np.sqrt(P[j, j]))
            hits += any(labels[j] == labels[i] for j in ranking[:k])
        assert 0.2 < metrics.recall[k] < 1
        assert metrics.recall[k] == pytest.approx(hits / len(F))
    assert metrics.queries == 60


def test_clusters_are_those_that_scikit_learn_finds_on_the_same_rows() -> None:
    F, labels = embeddings_of_classes(120, d=4, noise=0.6)
    G = F - F.mean(0)
    U = np.linalg.svd(G, full_matrices=False)[0]
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    clusters = KMeans(5, n_init=10, random_state=0).fit_predict(U)
    expected = normalized_mutual_info_score(labels, clusters)
    assert expected < 0.99
    # k-means ends in a local optimum that depends on the start.
    found = [evaluate_transductive(F, labels, seed=seed).nmi for seed in range(8)]
    assert max(nmi for nmi in found if nmi is not None) == pytest.approx(expected, abs=0.02)


def test_queries_are_looked_up_in_the_gallery_alone() -> None:
    F, labels = embeddings_of_classes(noise=2.0)
    queries = np.arange(60) < 20
    metrics = evaluate_transductive(F, labels, ks=[1], queries=queries)
    unit = spectral_embedding(F)
    nearest = 20 + (unit[:20] @ unit[20:].T).argmax(1)
    assert metrics.queries == 20
    assert metrics.recall[1] == pytest.approx((labels[nearest] == labels[:20]).mean())


def test_separable_classes_cluster_without_a_mistake_however_the_embedding_is_bent() -> None:
    F, labels = embeddings_of_classes(d=5, noise=1e-3)
    bent = F @ np.diag([1e4, 1, 1e-1, 1e2, 1]) @ np.random.default_rng(0).normal(size=(5, 5))
    metrics = evaluate_transductive(bent, labels, rank=4)
    assert metrics.nmi == pytest.approx(1)
    assert metrics.recall[1] == 1


def test_what_cosine_loses_in_large_noise_is_found() -> None:
    F, labels = embeddings_of_classes(200, 4, noise=0.5)
    noise = 1e3 * np.random.default_rng(1).normal(size=(200, 3))
    bent = np.concatenate([F, noise], axis=1)
    plain = evaluate(bent / np.linalg.norm(bent, axis=1, keepdims=True), labels).recall[1]
    assert evaluate_transductive(bent, labels).recall[1] > plain + 0.2


def test_embeddings_without_full_rank_keep_the_directions_they_have() -> None:
    F, _ = embeddings_of_classes(d=4)
    B = np.random.default_rng(1).normal(size=(4, 9))
    for wide in (F @ B, (F @ B).astype(np.float32)):
        rows = spectral_embedding(wide)
        assert rows.shape == (60, 4)
        np.testing.assert_allclose(cosines(rows), cosines(spectral_embedding(F)), atol=1e-4)


def test_fewer_vectors_are_the_leading_ones() -> None:
    F, _ = embeddings_of_classes()
    U, s, _ = np.linalg.svd(F - F.mean(0), full_matrices=False)
    assert (np.diff(s) < 0).all()
    expected = U[:, :2] / np.linalg.norm(U[:, :2], axis=1, keepdims=True)
    rows = spectral_embedding(F, rank=2)
    np.testing.assert_allclose(cosines(rows), cosines(expected), atol=1e-12)


def test_a_row_at_the_mean_has_no_direction() -> None:
    F, _ = embeddings_of_classes()
    F = np.concatenate([F, F.mean(0, keepdims=True)])
    rows = spectral_embedding(F)
    assert (rows[-1] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(rows[:-1], axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("embeddings", "options", "message"),
    [
        (np.ones((4, 2, 1)), {}, r"float64 \[4, 2, 1\]"),
        (np.ones((4, 2), np.int64), {}, r"int64 \[4, 2\]"),
        (np.array([[1.0], [np.nan]]), {}, "1 of 2 embeddings hold NaN"),
        (np.full((4, 2), 0.1), {}, "all 4 embeddings are alike"),
        (np.zeros((4, 2)), {"center": False}, "all 4 embeddings are 0"),
        (np.arange(8.0).reshape(4, 2) ** 2, {"rank": 3}, "rank is 3: .* expected 1 … 2"),
        (np.arange(8.0).reshape(4, 2) ** 2, {"rank": 0}, "rank is 0"),
    ],
)
def test_what_has_no_singular_vectors_is_refused(
    embeddings: Array, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        spectral_embedding(embeddings, **options)  # type: ignore[arg-type]
