"""DSCL against its definition by pseudo-inverses, finite differences and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from index.errors import InvalidArgumentError
from training.losses import (
    BatchStatistics,
    DeepSpectralClusteringLoss,
    NonFiniteEmbeddingsError,
    solve,
)

SETTINGS = [
    pytest.param(
        {"ridge": ridge, "center": center, "normalize": normalize},
        id=f"ridge={ridge}-center={center}-normalize={normalize}",
    )
    for ridge in (0.0, 1e-2)
    for center in (False, True)
    for normalize in (False, True)
]
EXACT = {"ridge": 0.0, "center": False, "normalize": False}


def projector(X: Tensor) -> Tensor:
    return X @ torch.linalg.pinv(X)


def naive_loss(F: Tensor, labels: Tensor, *, ridge: float, center: bool, normalize: bool) -> Tensor:
    """The definition, n × n projectors and all; with a ridge, (FᵀF + shift I)⁻¹ by inversion."""
    Y = torch.nn.functional.one_hot(labels.unique(return_inverse=True)[1]).double()
    k = Y.shape[1] - int(center)
    if center:
        F, Y = F - F.mean(0), Y - Y.mean(0)
    if ridge:
        gram = F.T @ F
        shift = ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=F.dtype)
        P = F @ torch.linalg.inv(gram + shift) @ F.T
    else:
        P = projector(F)
    loss = k - (P @ projector(Y)).trace()
    return loss / k if normalize else loss


def batch(
    seed: int, n: int = 24, d: int = 5, classes: int = 4, *, grad: bool = False
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    F = torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5
    labels = torch.cat(
        [torch.arange(classes), torch.randint(classes, (n - classes,), generator=generator)]
    )
    F[:, 0] += labels
    return F.requires_grad_(grad), labels


def value_and_gradient(loss: torch.nn.Module, F: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    F = F.detach().clone().requires_grad_()
    value = loss(F, labels)
    value.backward()
    assert F.grad is not None
    return value.detach(), F.grad


def naive_value_and_gradient(F: Tensor, labels: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    F = F.detach().double().requires_grad_()
    value = naive_loss(F, labels, **options)
    (gradient,) = torch.autograd.grad(value, F)
    return value.detach(), gradient


@pytest.mark.parametrize("options", SETTINGS)
def test_value_and_gradient_equal_autograd_through_the_definition(options: dict) -> None:
    F, labels = batch(0)
    value, gradient = value_and_gradient(DeepSpectralClusteringLoss(**options), F, labels)
    expected, expected_gradient = naive_value_and_gradient(F, labels, **options)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", SETTINGS)
def test_gradient_equals_finite_differences(options: dict) -> None:
    F, labels = batch(1, n=12, d=3, classes=3, grad=True)
    loss = DeepSpectralClusteringLoss(**options)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), F)


def test_gradient_is_the_closed_form_of_the_paper() -> None:
    F, labels = batch(2)
    Y = torch.nn.functional.one_hot(labels).double()
    expected = 2 * (projector(F) - torch.eye(len(F))) @ projector(Y) @ torch.linalg.pinv(F).T
    _, gradient = value_and_gradient(DeepSpectralClusteringLoss(**EXACT), F, labels)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_centred_loss_is_the_fisher_trace() -> None:
    F, labels = batch(3)
    total = torch.cov(F.T, correction=0) * len(F)
    between = torch.zeros_like(total)
    for label in labels.unique():
        rows = F[labels == label]
        offset = rows.mean(0) - F.mean(0)
        between += len(rows) * torch.outer(offset, offset)
    expected = len(labels.unique()) - 1 - torch.linalg.solve(total, between).trace()
    loss = DeepSpectralClusteringLoss(ridge=0, center=True, normalize=False)
    torch.testing.assert_close(loss(F, labels), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("center", [False, True])
def test_embeddings_that_span_the_classes_score_zero(center: bool) -> None:
    _, labels = batch(4, n=30, d=6, classes=4)
    A = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    F = torch.nn.functional.one_hot(labels).double() @ A  # rank 4 of 6 columns
    value, gradient = value_and_gradient(
        DeepSpectralClusteringLoss(ridge=0, center=center), F, labels
    )
    assert abs(value) < 1e-10
    assert gradient.abs().max() < 1e-9


@given(seed=st.integers(0, 10**6), center=st.booleans(), scale=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_invertible_maps_leave_the_loss_alone_when_there_is_no_ridge(
    seed: int, center: bool, scale: float
) -> None:
    F, labels = batch(seed)
    U, _, V = torch.linalg.svd(
        torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )
    A = scale * U @ torch.diag(torch.logspace(0, 2, 5, dtype=torch.float64)) @ V
    loss = DeepSpectralClusteringLoss(ridge=0, center=center)
    torch.testing.assert_close(loss(F @ A, labels), loss(F, labels), rtol=1e-8, atol=1e-10)


@given(seed=st.integers(0, 10**6), options=st.sampled_from([p.values[0] for p in SETTINGS]))
@settings(max_examples=40, deadline=None)
def test_order_of_rows_and_names_of_classes_do_not_matter(seed: int, options: dict) -> None:
    F, labels = batch(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(F), generator=generator)
    names = torch.tensor([-(2**40), 7, 0, 123456789])[torch.randperm(4, generator=generator)]
    loss = DeepSpectralClusteringLoss(**options)
    torch.testing.assert_close(
        loss(F[rows], names[labels[rows]]), loss(F, labels), rtol=1e-10, atol=1e-12
    )


@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([0.0, 1e-3]), size=st.floats(-1e3, 1e3))
@settings(max_examples=40, deadline=None)
def test_centred_loss_does_not_see_translations(seed: int, ridge: float, size: float) -> None:
    F, labels = batch(seed)
    step = size * torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    loss = DeepSpectralClusteringLoss(ridge=ridge, center=True)
    torch.testing.assert_close(loss(F + step, labels), loss(F, labels), rtol=1e-7, atol=1e-8)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_gradient_is_orthogonal_to_the_embeddings_when_there_is_no_ridge(seed: int) -> None:
    F, labels = batch(seed)
    _, gradient = value_and_gradient(DeepSpectralClusteringLoss(**EXACT), F, labels)
    assert gradient.norm() > 1e-3
    assert (F.T @ gradient).norm() < 1e-9 * F.norm() * gradient.norm()


@given(seed=st.integers(0, 10**6), cut=st.integers(1, 23))
@settings(max_examples=40, deadline=None)
def test_statistics_of_a_concatenation_are_the_sum_of_those_of_its_parts(
    seed: int, cut: int
) -> None:
    F, labels = batch(seed)
    whole = BatchStatistics.of(F, labels, 6)  # classes 4 and 5 are absent
    parts = BatchStatistics.of(F[:cut], labels[:cut], 6) + BatchStatistics.of(
        F[cut:], labels[cut:], 6
    )
    for name in ("gram", "class_sums", "class_counts"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", SETTINGS)
def test_rows_get_their_gradient_from_the_statistics_of_all_chunks(options: dict) -> None:
    F, labels = batch(5)
    chunks = list(zip(F.split(9), labels.split(9), strict=True))
    statistics = [BatchStatistics.of(f, c, 6) for f, c in chunks]
    solution = solve(statistics[0] + statistics[1] + statistics[2], **options)
    in_chunks = torch.cat([solution.gradient(f, c) for f, c in chunks])
    value, gradient = value_and_gradient(DeepSpectralClusteringLoss(**options), F, labels)
    torch.testing.assert_close(solution.loss, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(in_chunks, gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", SETTINGS)
def test_a_part_of_a_batch_gets_its_loss_and_gradient_from_the_statistics_of_all(
    options: dict,
) -> None:
    F, labels = batch(11)
    labels = 10 * labels + 3
    loss = DeepSpectralClusteringLoss(**options)
    expected, expected_gradient = value_and_gradient(loss, F, labels)
    classes = torch.tensor([3, 13, 23, 33, 43])  # the last is absent
    parts = [(F[:4], labels[:4]), (F[4:], labels[4:])]
    total = BatchStatistics.of(F, labels // 10, 5)
    gradients = []
    for rows, names in parts:
        seen = []

        def reduce(statistics: BatchStatistics, seen: list = seen) -> BatchStatistics:
            seen.append(statistics)
            return total

        rows = rows.detach().clone().requires_grad_()
        value = loss(rows, names, classes=classes, reduce=reduce)
        value.backward()
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        assert rows.grad is not None
        gradients.append(rows.grad)
        own = BatchStatistics.of(rows.detach(), names // 10, 5)
        torch.testing.assert_close(vars(seen[0]), vars(own))
    torch.testing.assert_close(torch.cat(gradients), expected_gradient, rtol=1e-9, atol=1e-11)


def test_a_part_is_too_small_only_if_the_batch_is() -> None:
    F, labels = batch(12)
    loss = DeepSpectralClusteringLoss()
    classes = torch.arange(4)
    total = BatchStatistics.of(F, labels, 4)
    loss(F[:1], labels[:1], classes=classes, reduce=lambda statistics: total)
    small = BatchStatistics.of(F[:5], labels[:5], 4)
    with pytest.raises(InvalidArgumentError, match="batch of 5 images"):
        loss(F[:1], labels[:1], classes=classes, reduce=lambda statistics: small)


def test_embeddings_that_are_not_finite_are_an_error_in_every_part() -> None:
    F, labels = batch(13)
    total = BatchStatistics.of(F * math.nan, labels, 4)
    with pytest.raises(NonFiniteEmbeddingsError, match="0 of 4 embeddings of this process"):
        DeepSpectralClusteringLoss()(
            F[:4], labels[:4], classes=torch.arange(4), reduce=lambda statistics: total
        )


def test_a_label_that_is_no_class_of_the_batch_is_an_error() -> None:
    F, labels = batch(14)
    with pytest.raises(InvalidArgumentError, match=r"labels \[2, 3\] are not among the 3 classes"):
        DeepSpectralClusteringLoss()(F, labels, classes=torch.tensor([0, 1, 5]))


@pytest.mark.parametrize("center", [False, True])
def test_embeddings_without_full_rank_get_the_true_projector(center: bool) -> None:
    F, labels = batch(6, d=4)
    F = torch.cat([F, F[:, :2] - F[:, 2:]], dim=1)  # 6 columns of rank 4
    options = {"ridge": 0.0, "center": center, "normalize": False}
    value, gradient = value_and_gradient(DeepSpectralClusteringLoss(**options), F, labels)
    X = F - F.mean(0) if center else F
    Y = torch.nn.functional.one_hot(labels).double()
    Y = Y - Y.mean(0) if center else Y
    U = torch.linalg.svd(X, full_matrices=False)[0][:, :4]
    P, Q = U @ U.T, projector(Y)
    expected = 2 * (P - torch.eye(len(F))) @ Q @ torch.linalg.pinv(X, rtol=1e-10).T
    torch.testing.assert_close(value, 4 - int(center) - (P @ Q).trace(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([0.0, 1e-3]))
@settings(max_examples=40, deadline=None)
def test_collapsed_embeddings_score_the_worst_value_without_exploding(
    seed: int, ridge: float
) -> None:
    F, labels = batch(seed)
    F = F[:1].repeat(len(F), 1)  # what is left of the scatter is rounding
    value, gradient = value_and_gradient(DeepSpectralClusteringLoss(ridge=ridge), F, labels)
    assert value == 1
    assert not gradient.any()


def test_float32_embeddings_of_condition_1e4_score_as_in_float64() -> None:
    generator = torch.Generator().manual_seed(7)
    n, d = 400, 64
    labels = torch.arange(n) % 20
    scales = torch.logspace(0, -4, d, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    F = torch.randn(n, d, generator=generator, dtype=torch.float64) + labels[:, None] % 5
    F = ((torch.linalg.qr(F)[0] * scales) @ mix).float()
    assert torch.linalg.cond(F.double()) > 9e3
    value, gradient = value_and_gradient(DeepSpectralClusteringLoss(**EXACT), F, labels)
    expected, expected_gradient = naive_value_and_gradient(F, labels, **EXACT)
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-7, atol=0)
    error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_do_not_touch_the_solve(dtype: torch.dtype) -> None:
    F, labels = batch(8, n=64, d=8)
    F = F.to(dtype)
    loss = DeepSpectralClusteringLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(loss, F, labels)
    expected, expected_gradient = value_and_gradient(loss, F.double(), labels)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        EXACT,
        {"center": True, "ridge": 0},
        {"center": False, "ridge": 0.1},
        {"ridge": 1e-3},
        {"ridge": 0.1, "normalize": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(("n", "d", "classes"), [(160, 40, 16), (120, 90, 30)])
def test_random_level_is_the_mean_over_random_embeddings(
    options: dict, n: int, d: int, classes: int
) -> None:
    loss = DeepSpectralClusteringLoss(**options)
    labels = torch.arange(n) % classes
    generator = torch.Generator().manual_seed(9)
    draws = torch.stack(
        [
            loss(torch.randn(n, d, generator=generator, dtype=torch.float64), labels)
            for _ in range(100)
        ]
    )
    standard_error = draws.std() / math.sqrt(len(draws))
    difference = abs(draws.mean() - loss.random_level(n, d, classes))
    # The ridge's part is a limit for large n and d.
    assert difference < 3.5 * standard_error + (1e-3 if loss.ridge else 0) * draws.mean()


def test_random_level_without_ridge_is_the_share_of_dimensions_left() -> None:
    exact = DeepSpectralClusteringLoss(**EXACT)
    assert exact.random_level(100, 25, 8) == pytest.approx(8 * 0.75)
    centred = DeepSpectralClusteringLoss(ridge=0, center=True, normalize=False)
    assert centred.random_level(101, 25, 8) == pytest.approx(7 * 0.75)


@pytest.mark.parametrize("n", [9, 96, 128])
def test_no_more_images_than_dimensions_is_an_error(n: int) -> None:
    loss = DeepSpectralClusteringLoss(center=False)
    message = f"batch of {n} images cannot train a 128-dimensional .* above 128 .* lower --dim"
    with pytest.raises(InvalidArgumentError, match=message):
        loss(torch.randn(n, 128), torch.arange(n) % 3)
    with pytest.raises(InvalidArgumentError, match=message):
        loss.random_level(n, 128, 3)


def test_centring_takes_one_more_image() -> None:
    F, labels = torch.randn(6, 5), torch.arange(6) % 2
    with pytest.raises(InvalidArgumentError, match=r"n - 1 <= d.* above 6"):
        DeepSpectralClusteringLoss(center=True)(F, labels)
    DeepSpectralClusteringLoss(center=False)(F, labels)


def test_centred_loss_of_one_class_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 2"):
        DeepSpectralClusteringLoss()(torch.randn(9, 3), torch.zeros(9, dtype=torch.long))


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.randn(9), torch.zeros(9, dtype=torch.long), r"\[9\].*\[n, d\]"),
        (torch.randn(9, 3, 1), torch.zeros(9, dtype=torch.long), r"\[n, d\]"),
        (torch.randn(9, 0), torch.zeros(9, dtype=torch.long), r"\[9, 0\]"),
        (torch.ones(9, 3, dtype=torch.long), torch.zeros(9, dtype=torch.long), "int64"),
        (torch.randn(9, 3), torch.zeros(8, dtype=torch.long), r"\[8\].*\[9\]"),
        (torch.randn(9, 3), torch.zeros(9, 3, dtype=torch.long), r"\[9, 3\]"),
        (torch.randn(9, 3), torch.zeros(9), "float32.*integers"),
        (torch.randn(9, 3), torch.zeros(9, dtype=torch.bool), "bool.*integers"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(
    embeddings: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        DeepSpectralClusteringLoss()(embeddings, labels)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_counted(bad: float) -> None:
    F, labels = batch(10)
    F[3, 1] = F[5] = bad
    with pytest.raises(InvalidArgumentError, match="2 of 24"):
        DeepSpectralClusteringLoss()(F, labels)


@pytest.mark.parametrize("ridge", [-1e-9, math.nan, math.inf])
def test_ridge_must_be_a_finite_number_from_zero(ridge: float) -> None:
    with pytest.raises(InvalidArgumentError, match="ridge"):
        DeepSpectralClusteringLoss(ridge=ridge)
