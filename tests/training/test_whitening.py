"""Whitening against its definition, scikit-learn, and the loss that leaves it open."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from index.errors import InvalidArgumentError
from training.losses import DeepSpectralClusteringLoss
from training.whitening import Whitening


def correlated(n: int, d: int, seed: int = 0) -> Tensor:
    """float64 (n, d) with a mean and directions of very different variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, d)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return x @ mix + torch.randn(d, generator=generator, dtype=torch.float64)


def cosines(embeddings: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(embeddings)
    return unit @ unit.T


def covariance(embeddings: Tensor) -> NDArray[np.float64]:
    return np.atleast_2d(np.cov(embeddings.numpy(), rowvar=False))


def test_without_ridge_the_training_embeddings_get_the_identity_as_covariance() -> None:
    x = correlated(200, 12)
    white = Whitening.fit(x, ridge=0).apply(x)
    assert white.dtype == torch.float64
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(covariance(white), np.eye(12), atol=1e-9)


@pytest.mark.parametrize("dim", [1, 5, 12])
def test_without_ridge_it_is_scikit_learns_pca(dim: int) -> None:
    train, test = correlated(250, 12).split([200, 50])
    expected = PCA(dim, whiten=True, svd_solver="full").fit(train.numpy()).transform(test.numpy())
    white = Whitening.fit(train, ridge=0, dim=dim).apply(test).numpy()
    assert white.shape == (50, dim)
    # Axes are known up to their direction.
    signs = np.sign((white * expected).sum(0))
    np.testing.assert_allclose(white * signs, expected, rtol=1e-8, atol=1e-9)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_what_the_loss_does_not_see_does_not_change_the_search(seed: int, scale: float) -> None:
    x = correlated(60, 6, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    A = scale * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    shift = scale * torch.randn(6, generator=generator, dtype=torch.float64)
    mapped = x @ A + shift
    labels = torch.arange(60) % 4
    loss = DeepSpectralClusteringLoss(ridge=0)
    # Rounding grows with the condition of what is inverted.
    rounding = 1e-12 * np.linalg.cond(mapped - mapped.mean(0)) ** 2
    assert loss(mapped, labels).item() == pytest.approx(loss(x, labels).item(), abs=rounding)
    before = cosines(Whitening.fit(x, ridge=0).apply(x))
    after = cosines(Whitening.fit(mapped, ridge=0).apply(mapped))
    torch.testing.assert_close(after, before, rtol=0, atol=rounding)


@pytest.mark.parametrize("ridge", [0.01, 0.1, 3.0])
def test_the_ridge_is_added_to_each_variance_in_units_of_their_mean(ridge: float) -> None:
    x = correlated(200, 8)
    variances = np.sort(np.linalg.eigvalsh(covariance(x)))[::-1]
    white = covariance(Whitening.fit(x, ridge=ridge).apply(x))
    expected = np.diag(variances / (variances + ridge * variances.mean()))
    np.testing.assert_allclose(white, expected, rtol=1e-9, atol=1e-12)


@given(scale=st.floats(1e-6, 1e6), ridge=st.floats(0, 2))
@settings(max_examples=25, deadline=None)
def test_the_unit_of_the_embeddings_does_not_matter(scale: float, ridge: float) -> None:
    x = correlated(50, 5)
    expected = Whitening.fit(x, ridge=ridge).apply(x)
    found = Whitening.fit(scale * x, ridge=ridge).apply(scale * x)
    torch.testing.assert_close(cosines(found), cosines(expected), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-5, atol=1e-7)


def test_fewer_dimensions_are_the_first_of_all() -> None:
    x = correlated(100, 8)
    whole, part = (Whitening.fit(x, dim=dim) for dim in (None, 3))
    assert torch.equal(part.matrix, whole.matrix[:, :3])
    assert part.apply(x[:7]).shape == (7, 3)


@pytest.mark.parametrize("ridge", [0, 0.1])
def test_directions_that_do_not_vary_carry_nothing(ridge: float) -> None:
    x = correlated(100, 6)
    # 0.1 and ⅓ are no binary fractions, so that centring leaves their rounding behind.
    constant = torch.tensor([0.1, 1 / 3, 0.0], dtype=torch.float64).expand(100, 3)
    turn = torch.linalg.qr(correlated(9, 9, seed=1)).Q
    padded = torch.cat([x, constant], dim=1) @ turn
    # The mean variance counts every direction.
    expected = Whitening.fit(x, ridge=ridge * 6 / 9).apply(x)
    found = Whitening.fit(padded, ridge=ridge).apply(padded)
    torch.testing.assert_close(found.norm(dim=1), expected.norm(dim=1), rtol=1e-9, atol=0)
    torch.testing.assert_close(cosines(found), cosines(expected), rtol=0, atol=1e-9)


def test_fewer_photos_than_dimensions_span_what_they_can() -> None:
    x = correlated(5, 20)
    white = Whitening.fit(x, ridge=0).apply(x)
    # n centred points in general position become the corners of a regular simplex.
    expected = torch.full((5, 5), -1 / 4, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(cosines(white), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [1.0, 0.1])  # three times 0.1, divided by 3, is not 0.1
def test_embeddings_that_are_all_alike_become_zero(value: float) -> None:
    x = torch.full((3, 4), value, dtype=torch.float64)
    white = Whitening.fit(x, ridge=0).apply(x)
    assert torch.equal(white, torch.zeros(3, 4, dtype=torch.float64))


def test_float32_is_whitened_in_float64() -> None:
    x = correlated(200, 12).float()
    expected = Whitening.fit(x.double(), ridge=0).apply(x.double())
    assert torch.equal(Whitening.fit(x, ridge=0).apply(x), expected)


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (1, {}, "at least 2 photos, and got 1"),
        (0, {}, "at least 2 photos, and got 0"),
        (9, {"dim": 0}, "--dim is 0: whitening keeps 1 … 4"),
        (9, {"dim": 5}, "--dim is 5: whitening keeps 1 … 4"),
        (9, {"ridge": -0.1}, "ridge is -0.1: expected 0 or more"),
        (9, {"ridge": math.nan}, "ridge is nan: expected 0 or more"),
    ],
)
def test_what_cannot_be_whitened_is_refused(n: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Whitening.fit(correlated(n, 4), **options)


# Within classes


#: 5 classes of different sizes, their photos mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [40, 10, 25, 3, 60]))


def classes_apart(d: int, seed: int = 0) -> Tensor:
    """float64 (138, d): photos vary about the mean of their class, classes vary more."""
    means = 10 * correlated(5, d, seed + 1)
    return correlated(len(LABELS), d, seed) + means[torch.from_numpy(LABELS)]


def within(x: Tensor, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scatter of photos about the mean of their class, divided by n − 1: photo by photo."""
    rows = x.numpy()
    d = rows.shape[1]
    scatter = np.zeros((d, d))
    for label in set(labels.tolist()):
        members = [row for row, other in zip(rows, labels, strict=True) if other == label]
        mean = sum(members) / len(members)
        for member in members:
            for i in range(d):
                for j in range(d):
                    scatter[i, j] += (member[i] - mean[i]) * (member[j] - mean[j])
    return scatter / (len(rows) - 1)


@pytest.mark.parametrize("ridge", [0, 0.1, 3.0])
def test_whitening_within_classes_inverts_their_damped_scatter(ridge: float) -> None:
    x = classes_apart(6)
    fitted = Whitening.fit_within(x, LABELS, ridge=ridge)
    scatter = within(x, LABELS)
    damped = scatter + ridge * np.trace(scatter) / 6 * np.eye(6)
    found = (fitted.matrix @ fitted.matrix.T).numpy()
    np.testing.assert_allclose(found @ damped, np.eye(6), rtol=0, atol=1e-8)
    np.testing.assert_allclose(fitted.mean.numpy(), x.numpy().mean(0), rtol=1e-12)


def test_without_ridge_the_scatter_within_classes_becomes_the_identity() -> None:
    x = classes_apart(8)
    white = Whitening.fit_within(x, LABELS, ridge=0).apply(x)
    assert white.dtype == torch.float64
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(within(white, LABELS), np.eye(8), atol=1e-9)
    # While that of all photos still tells the classes apart.
    assert np.trace(covariance(white)) > 2 * 8


@pytest.mark.parametrize("ridge", [0.01, 0.1, 3.0])
def test_within_classes_the_ridge_is_in_units_of_their_mean_variance(ridge: float) -> None:
    x = classes_apart(8)
    variances = np.sort(np.linalg.eigvalsh(within(x, LABELS)))[::-1]
    white = within(Whitening.fit_within(x, LABELS, ridge=ridge).apply(x), LABELS)
    expected = np.diag(variances / (variances + ridge * variances.mean()))
    np.testing.assert_allclose(white, expected, rtol=1e-9, atol=1e-12)


def test_how_far_classes_are_apart_does_not_matter_within_them() -> None:
    x = classes_apart(6)
    moved = x + 5 * correlated(5, 6, seed=9)[torch.from_numpy(LABELS)]
    before, after = (Whitening.fit_within(each, LABELS).matrix for each in (x, moved))
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=1e-9, atol=0)


def test_one_class_alone_is_whitened_as_all_photos_are() -> None:
    x = correlated(50, 6)
    expected = Whitening.fit(x).apply(x)
    found = Whitening.fit_within(x, np.zeros(50, np.int64)).apply(x)
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-9, atol=1e-12)


def test_classes_may_be_named_by_any_integers() -> None:
    x = classes_apart(6)
    names = np.array([7, -3, 2**40, 0, 12])
    expected = Whitening.fit_within(x, LABELS)
    found = Whitening.fit_within(x, names[LABELS])
    assert torch.equal(found.matrix, expected.matrix)
    assert torch.equal(found.mean, expected.mean)


@pytest.mark.parametrize("shape", [(137,), (139,), (138, 1), (0,)])
def test_labels_that_are_not_one_for_each_photo_are_refused(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, np.int64)
    expected = rf"labels have shape \[{', '.join(map(str, shape))}\]: expected \[138\]"
    with pytest.raises(InvalidArgumentError, match=expected):
        Whitening.fit_within(classes_apart(4), labels)


@pytest.mark.parametrize(
    ("n", "ridge", "message"),
    [
        (1, 0.1, "at least 2 photos, and got 1"),
        (9, -0.1, "ridge is -0.1: expected 0 or more"),
        (9, math.nan, "ridge is nan: expected 0 or more"),
    ],
)
def test_what_cannot_be_whitened_within_classes_is_refused(
    n: int, ridge: float, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Whitening.fit_within(correlated(n, 4), np.zeros(n, np.int64), ridge=ridge)
