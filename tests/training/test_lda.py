"""The closed form against the loss it minimises, SciPy, scikit-learn and gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from index.errors import InvalidArgumentError
from training.lda import Projection, discriminant_projection
from training.losses import DeepSpectralClusteringLoss

Array = NDArray[np.float64]


def features_of_classes(
    n: int = 120, p: int = 10, classes: int = 5, *, seed: int = 0, signal: float = 1.0
) -> tuple[Array, NDArray[np.int64]]:
    """Correlated features (n, p) with a mean, and classes of unequal sizes that overlap."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    x = rng.normal(size=(n, p)) + signal * rng.normal(size=(classes, p))[labels]
    return x * np.logspace(0, -1, p) @ rng.normal(size=(p, p)) + 3 * rng.normal(size=p), labels


def scatters(features: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    """S_t and S_b by their definitions."""
    mean = features.mean(0)
    total = sum(np.outer(x - mean, x - mean) for x in features)
    between = np.zeros_like(total)
    for label in np.unique(labels):
        members = features[labels == label]
        between += len(members) * np.outer(members.mean(0) - mean, members.mean(0) - mean)
    return np.asarray(total), between


def damped(total: Array, ridge: float) -> Array:
    return np.asarray(total + ridge * np.trace(total) / len(total) * np.eye(len(total)))


def eigenvalues(features: Array, labels: NDArray[np.int64], ridge: float) -> Array:
    """Generalised eigenvalues of (S_b, S_λ), largest first."""
    total, between = scatters(features, labels)
    return np.asarray(scipy.linalg.eigh(between, damped(total, ridge), eigvals_only=True)[::-1])


def dscl(embeddings: Array, labels: NDArray[np.int64], ridge: float = 0.0) -> float:
    loss = DeepSpectralClusteringLoss(ridge=ridge, normalize=False)
    return float(loss(torch.from_numpy(embeddings), torch.from_numpy(labels)))


def projector(weight: Array) -> Array:
    """Onto the space that the rows of a weight (dim, p) span."""
    Q = np.linalg.qr(weight.T)[0]
    return Q @ Q.T


def descend(objective: Callable[[Tensor], Tensor], shape: tuple[int, int], seed: int) -> Array:
    """The W (p, d) that L-BFGS comes to from a random one."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [W], max_iter=300, tolerance_grad=1e-8, tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        optimizer.zero_grad()
        value = objective(W)
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    return W.detach().numpy()


@pytest.mark.parametrize("dim", [1, 3, 4, 7])
def test_its_dscl_loss_is_the_least_there_is(dim: int) -> None:
    x, labels = features_of_classes()
    least = 4 - eigenvalues(x, labels, 0)[:dim].sum()
    found = dscl(discriminant_projection(x, labels, dim=dim, ridge=0).apply(x), labels)
    assert found == pytest.approx(least, abs=1e-10)

    rng = np.random.default_rng(0)
    for _ in range(50):
        assert dscl(x @ rng.normal(size=(10, dim)), labels) > least + 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_descent_on_the_dscl_loss_comes_to_the_same_subspace(seed: int) -> None:
    x, labels = features_of_classes()
    X, y = torch.from_numpy(x), torch.from_numpy(labels)
    loss = DeepSpectralClusteringLoss(ridge=0, normalize=False)
    W = descend(lambda W: loss(X @ W, y), (10, 3), seed)
    closed = discriminant_projection(x, labels, dim=3, ridge=0)
    assert dscl(x @ W, labels) == pytest.approx(dscl(closed.apply(x), labels), abs=1e-9)
    np.testing.assert_allclose(projector(W.T), projector(closed.weight), atol=1e-4)


@pytest.mark.parametrize(("n", "p"), [(120, 10), (40, 60)])
def test_gradient_descent_on_the_regularised_criterion_is_no_better(n: int, p: int) -> None:
    ridge = 0.3
    x, labels = features_of_classes(n, p)
    total, between = (torch.from_numpy(s) for s in scatters(x, labels))
    S = torch.from_numpy(damped(total.numpy(), ridge))

    def criterion(W: Tensor) -> Tensor:
        return 4 - torch.linalg.solve(W.T @ S @ W, W.T @ between @ W).trace()

    closed = discriminant_projection(x, labels, dim=3, ridge=ridge)
    least = float(criterion(torch.from_numpy(closed.weight.T)))
    assert least == pytest.approx(4 - eigenvalues(x, labels, ridge)[:3].sum(), abs=1e-10)
    W = descend(criterion, (p, 3), seed=0)
    assert float(criterion(torch.from_numpy(W))) == pytest.approx(least, abs=1e-9)
    np.testing.assert_allclose(projector(W.T), projector(closed.weight), atol=1e-4)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_with_orthonormal_weights_its_ridge_is_that_of_the_loss(ridge: float) -> None:
    x, labels = features_of_classes()
    weight = np.linalg.qr(discriminant_projection(x, labels, dim=3, ridge=ridge).weight.T)[0].T
    embeddings = x @ weight.T
    same = ridge * x.var(0).mean() / embeddings.var(0).mean()
    least = 4 - eigenvalues(x, labels, ridge)[:3].sum()
    assert dscl(embeddings, labels, ridge=same) == pytest.approx(least, abs=1e-10)


def test_the_ridge_of_the_loss_changes_the_scale_of_the_best_directions_alone() -> None:
    r, dim = 0.5, 3
    x, labels = features_of_classes()
    rho = eigenvalues(x, labels, 0)[:dim]
    shares = np.sqrt(rho)
    g = shares * (dim + dim * r) / shares.sum() - r  # Σ g = dim, and all of them are above 0
    assert g.min() > 0
    closed = discriminant_projection(x, labels, dim=dim, ridge=0)
    least = 4 - (rho * g / (g + r)).sum()
    assert dscl(closed.apply(x) * np.sqrt(g), labels, ridge=r) == pytest.approx(least, abs=1e-10)

    X, y = torch.from_numpy(x), torch.from_numpy(labels)
    loss = DeepSpectralClusteringLoss(ridge=r, normalize=False)
    W = descend(lambda W: loss(X @ W, y), (10, dim), seed=0)
    assert dscl(x @ W, labels, ridge=r) == pytest.approx(least, abs=1e-9)
    np.testing.assert_allclose(projector(W.T), projector(closed.weight), atol=1e-4)


@pytest.mark.parametrize("solver", ["svd", "eigen"])
@pytest.mark.parametrize("dim", [2, 4])
def test_without_ridge_its_subspace_is_scikit_learns(solver: str, dim: int) -> None:
    x, labels = features_of_classes()
    model = LinearDiscriminantAnalysis(solver=solver, n_components=dim).fit(x, labels)
    closed = discriminant_projection(x, labels, dim=dim, ridge=0)
    np.testing.assert_allclose(
        projector(closed.weight), projector(model.scalings_[:, :dim].T), atol=1e-9
    )


@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("dim", [3, 9])
def test_the_embedding_is_centred_and_of_unit_variance_less_what_the_ridge_takes(
    ridge: float, dim: int
) -> None:
    x, labels = features_of_classes()
    closed = discriminant_projection(x, labels, dim=dim, ridge=ridge)
    assert closed.weight.shape == (dim, 10)
    assert closed.weight.dtype == closed.bias.dtype == np.float64
    np.testing.assert_allclose(closed.apply(x).mean(0), 0, atol=1e-10)
    metric = closed.weight @ damped(scatters(x, labels)[0], ridge) @ closed.weight.T
    np.testing.assert_allclose(metric / len(x), np.eye(dim), atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_the_directions_come_in_the_order_of_their_eigenvalues(ridge: float) -> None:
    x, labels = features_of_classes()
    weight = discriminant_projection(x, labels, dim=9, ridge=ridge).weight
    total, between = scatters(x, labels)
    ratios = np.diag(weight @ between @ weight.T) / np.diag(
        weight @ damped(total, ridge) @ weight.T
    )
    np.testing.assert_allclose(ratios, eigenvalues(x, labels, ridge)[:9], atol=1e-10)
    assert ratios[4:] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_beyond_the_classes_come_the_principal_directions_that_leave_class_means_alone(
    ridge: float,
) -> None:
    x, labels = features_of_classes()
    filling = discriminant_projection(x, labels, dim=7, ridge=ridge).weight[4:]
    means = np.array([x[labels == label].mean(0) for label in range(5)]) - x.mean(0)
    Q = np.eye(10) - projector(means[:4])  # the fifth follows from them
    expected = np.linalg.svd((x - x.mean(0)) @ Q)[2][:3]
    unit = filling / np.linalg.norm(filling, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((unit * expected).sum(1)), 1, atol=1e-10)


@pytest.mark.parametrize(("n", "p", "dim"), [(120, 10, 10), (30, 50, 29)])
def test_the_head_has_full_rank_up_to_all_directions_in_which_features_vary(
    n: int, p: int, dim: int
) -> None:
    x, labels = features_of_classes(n, p)
    closed = discriminant_projection(x, labels, dim=dim, ridge=0.1)
    assert np.linalg.matrix_rank(closed.weight) == dim
    assert np.linalg.matrix_rank(closed.apply(x)) == dim
    with pytest.raises(InvalidArgumentError, match=f"vary in {dim} of {p} directions"):
        discriminant_projection(x, labels, dim=dim + 1, ridge=0.1)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_collinear_and_constant_features_change_nothing(ridge: float) -> None:
    x, labels = features_of_classes(p=6)
    rng = np.random.default_rng(1)
    # 12 features of rank 6: turned copies, and constants whose mean is not exact in binary.
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    collinear = np.concatenate([x @ turn[:6] / math.sqrt(2)] * 2, axis=1)
    padded = np.concatenate([collinear, np.full((len(x), 2), [0.1, 1 / 3])], axis=1)
    expected = discriminant_projection(x, labels, dim=4, ridge=ridge * 6 / 20).apply(x)
    # The mean variance counts every feature.
    found = discriminant_projection(padded, labels, dim=4, ridge=ridge).apply(padded)
    np.testing.assert_allclose(np.abs((found * expected).sum(0)), (expected**2).sum(0), rtol=1e-8)


def test_ill_conditioned_features_keep_the_precision_that_rounding_has_left_them() -> None:
    x, labels = features_of_classes(p=8)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    spread = x * np.logspace(0, -9, 8) @ turn  # whose scatter has condition 1e18
    closed = discriminant_projection(spread, labels, dim=3, ridge=0)
    least = 4 - eigenvalues(x, labels, 0)[:3].sum()
    assert dscl(closed.apply(spread), labels) == pytest.approx(least, abs=1e-5)


def test_more_features_than_photos_separate_the_training_classes_without_ridge() -> None:
    x, labels = features_of_classes(30, 200, signal=0)
    embeddings = discriminant_projection(x, labels, dim=4, ridge=0).apply(x)
    assert dscl(embeddings, labels) == pytest.approx(0, abs=1e-9)


def test_the_ridge_keeps_what_holds_for_photos_it_has_not_seen() -> None:
    x, labels = features_of_classes(400, 90, signal=0.5)
    train, test = slice(0, 110), slice(110, 400)

    def loss(ridge: float) -> float:
        closed = discriminant_projection(x[train], labels[train], dim=4, ridge=ridge)
        return dscl(closed.apply(x[test]), labels[test])

    assert loss(0.1) < loss(0) - 0.3


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_features_and_the_numbers_of_the_classes_do_not_matter(
    scale: float,
) -> None:
    x, labels = features_of_classes()
    expected = discriminant_projection(x, labels, dim=7, ridge=0.1).apply(x)
    found = discriminant_projection(scale * x, 7 * labels - 3, dim=7, ridge=0.1).apply(scale * x)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_features_are_computed_in_float64(dtype: type[np.floating]) -> None:
    x, labels = features_of_classes()
    narrow = x.astype(dtype)
    expected = discriminant_projection(narrow.astype(np.float64), labels, dim=4, ridge=0.1)
    found = discriminant_projection(narrow, labels, dim=4, ridge=0.1)
    np.testing.assert_array_equal(found.weight, expected.weight)
    np.testing.assert_array_equal(narrow, x.astype(dtype))  # the caller's array is left alone


def test_a_head_computes_what_the_projection_does() -> None:
    x, labels = features_of_classes()
    closed = discriminant_projection(x, labels, dim=4, ridge=0.1)
    head = nn.Linear(10, 4)
    closed.copy_to(head)
    assert head.weight.dtype == torch.float32
    assert head.weight.requires_grad
    found = head(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(found, closed.apply(x), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "--dim is 0: .* 1 … 10"),
        ({"dim": 11}, "--dim is 11: .* 1 … 10"),
        ({"ridge": -1.0}, "ridge of the closed form is -1.0"),
        ({"ridge": math.nan}, "ridge of the closed form is nan"),
        ({"features": np.ones((120, 10, 1))}, r"features are float64 \[120, 10, 1\]"),
        ({"features": np.ones((120, 10), np.int64)}, r"features are int64 \[120, 10\]"),
        ({"features": np.full((120, 10), np.inf)}, "120 of 120 rows .* NaN or infinity"),
        ({"features": np.ones((120, 10))}, "vary in 0 of 10 directions"),
        ({"labels": np.arange(119)}, r"labels are int64 \[119\]: expected integers \[120\]"),
        ({"labels": np.linspace(0, 1, 120)}, "labels are float64"),
        ({"labels": np.zeros(120, np.int64)}, "same label"),
    ],
)
def test_what_cannot_be_projected_is_refused(changes: dict[str, object], message: str) -> None:
    x, labels = features_of_classes()
    arguments = {"features": x, "labels": labels, "dim": 4, "ridge": 0.1, **changes}
    with pytest.raises(InvalidArgumentError, match=message):
        discriminant_projection(**arguments)  # type: ignore[arg-type]


def test_a_projection_is_affine() -> None:
    projection = Projection(weight=np.array([[1.0, 2.0]]), bias=np.array([3.0]))
    np.testing.assert_array_equal(projection.apply(np.array([[4.0, 5.0]])), [[17.0]])
