"""Losses by name: against pytorch-metric-learning called directly and against their formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, regularizers
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from index.errors import InvalidArgumentError
from training.criteria import Criterion, build_criterion
from training.loss_expression import LOSSES
from training.losses import DeepSpectralClusteringLoss, NonFiniteEmbeddingsError
from training.two_pass import backward

N, D, C = 24, 6, 4
PROXY_LOSSES = ["proxy-anchor", "proxy-nca", "arcface", "normalized-softmax", "soft-triple"]


def build(expression: str, *, dim: int = D, classes: int = C) -> Criterion:
    torch.manual_seed(0)
    return build_criterion(expression, dim=dim, classes=classes, ridge=1e-3)


def batch(
    n: int = N, classes: int = C, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Classes that overlap, so that miners find hard pairs and easy ones."""
    labels = torch.arange(n) % classes
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, D, generator=generator, dtype=torch.float64)
    embeddings = noise + 2 * one_hot(labels, D)
    return embeddings.to(dtype).requires_grad_(), labels


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return normalize(a) @ normalize(b).T


# pytorch-metric-learning, set up by hand as the papers say


def semihard() -> tuple[nn.Module, nn.Module]:
    distance = distances.LpDistance(power=2)
    return (
        losses.TripletMarginLoss(margin=0.2, distance=distance),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=distance),
    )


def soft_triple() -> nn.Module:
    centers = regularizers.SparseCentersRegularizer(C, 10)
    return losses.SoftTripleLoss(
        C, D, 10, la=20, gamma=0.1, margin=0.01, weight_regularizer=centers, weight_reg_weight=0.2
    )


DIRECT: dict[str, Callable[[], tuple[nn.Module, nn.Module | None]]] = {
    "proxy-anchor": lambda: (losses.ProxyAnchorLoss(C, D, margin=0.1, alpha=32), None),
    "proxy-nca": lambda: (losses.ProxyNCALoss(C, D, softmax_scale=9), None),
    "multi-similarity": lambda: (
        losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
        miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "triplet": semihard,
    "arcface": lambda: (losses.ArcFaceLoss(C, D, margin=28.6, scale=64), None),
    "normalized-softmax": lambda: (losses.NormalizedSoftmaxLoss(C, D, temperature=0.05), None),
    "soft-triple": lambda: (soft_triple(), None),
    "contrastive": lambda: (losses.ContrastiveLoss(pos_margin=0, neg_margin=1), None),
    "circle": lambda: (losses.CircleLoss(m=0.4, gamma=80), None),
    "supcon": lambda: (losses.SupConLoss(temperature=0.1), None),
}


def test_every_name_is_checked_against_the_library() -> None:
    assert DIRECT.keys() | {"dscl"} == LOSSES.keys()


@pytest.mark.parametrize("name", DIRECT)
def test_value_and_gradients_are_those_of_the_library_with_the_defaults_of_the_paper(
    name: str,
) -> None:
    criterion = build(name)
    loss, miner = DIRECT[name]()
    proxies, expected_proxies = list(criterion.parameters()), list(loss.parameters())
    assert len(proxies) == len(expected_proxies) == int(name in PROXY_LOSSES)
    for mine, theirs in zip(proxies, expected_proxies, strict=True):
        theirs.data.copy_(mine)

    embeddings, labels = batch()
    value = criterion(embeddings, labels)
    value.backward()
    expected_embeddings = embeddings.detach().clone().requires_grad_()
    mined = miner(expected_embeddings, labels) if miner else None
    expected = loss(expected_embeddings, labels, mined)
    expected.backward()

    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(embeddings.grad, expected_embeddings.grad, rtol=1e-5, atol=1e-7)
    assert embeddings.grad is not None
    assert embeddings.grad.norm() > 1e-3
    for mine, theirs in zip(proxies, expected_proxies, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)
        assert mine.grad is not None
        assert mine.grad.norm() > 1e-3


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, key) for name in LOSSES for key in LOSSES[name]]
)
def test_every_parameter_reaches_its_loss(name: str, parameter: str) -> None:
    embeddings, labels = batch()
    default = LOSSES[name][parameter].default
    other = 0.3 * default if default else 0.5
    if LOSSES[name][parameter].whole:
        other = 3
    changed = build(f"{name}({parameter}={other})")(embeddings, labels)
    assert not torch.isclose(changed, build(name)(embeddings, labels), rtol=1e-4)


# Formulas, by loops in float64


def naive_proxy_anchor(x: Tensor, y: Tensor, proxies: Tensor) -> Tensor:
    s = cosines(x, proxies)
    pull = [torch.log1p(torch.exp(-32 * (s[y == c, c] - 0.1)).sum()) for c in y.unique().tolist()]
    push = [torch.log1p(torch.exp(32 * (s[y != c, c] + 0.1)).sum()) for c in range(len(proxies))]
    return torch.stack(pull).mean() + torch.stack(push).mean()


def naive_proxy_nca(x: Tensor, y: Tensor, proxies: Tensor) -> Tensor:
    squared = (normalize(x)[:, None] - normalize(proxies)).square().sum(2)
    return -torch.log_softmax(-9 * squared, dim=1)[torch.arange(len(y)), y].mean()


def naive_arcface(x: Tensor, y: Tensor, proxies: Tensor) -> Tensor:
    angles = torch.acos(cosines(x, proxies.T))
    margin = math.radians(28.6)
    # Beyond 180°, as in the authors' code
    beyond = torch.cos(angles) - margin * math.sin(margin)
    target = torch.where(angles + margin <= math.pi, torch.cos(angles + margin), beyond)
    s = 64 * torch.where(one_hot(y, angles.shape[1]) == 1, target, torch.cos(angles))
    return -torch.log_softmax(s, dim=1)[torch.arange(len(y)), y].mean()


def naive_multi_similarity(x: Tensor, y: Tensor) -> Tensor:
    s = cosines(x, x)
    total = x.new_zeros(())
    for i in range(len(x)):
        positives, negatives = s[i, (y == y[i]) & (torch.arange(len(y)) != i)], s[i, y != y[i]]
        hard = positives[positives - 0.1 < negatives.max()]
        near = negatives[negatives + 0.1 > positives.min()]
        if len(hard):
            total = total + torch.log1p(torch.exp(-2 * (hard - 0.5)).sum()) / 2
        if len(near):
            total = total + torch.log1p(torch.exp(50 * (near - 0.5)).sum()) / 50
    return total / len(x)


def naive_triplet(x: Tensor, y: Tensor) -> Tensor:
    squared = (normalize(x)[:, None] - normalize(x)).square().sum(2)
    terms = [
        squared[a, p] - squared[a, n] + 0.2
        for a in range(len(x))
        for p in range(len(x))
        for n in range(len(x))
        if a != p and y[a] == y[p] != y[n]
    ]
    return torch.stack([term for term in terms if 0 < term < 0.2]).mean()


@pytest.mark.parametrize(
    ("name", "naive"),
    [
        ("proxy-anchor", naive_proxy_anchor),
        ("proxy-nca", naive_proxy_nca),
        ("arcface", naive_arcface),
        ("multi-similarity", naive_multi_similarity),
        ("triplet", naive_triplet),
    ],
)
def test_value_and_gradients_follow_the_formula_of_the_paper(
    name: str, naive: Callable[..., Tensor]
) -> None:
    criterion = build(name).double()
    embeddings, labels = batch(dtype=torch.float64)
    inputs = [embeddings, *criterion.parameters()]
    expected = naive(embeddings, labels, *criterion.parameters())
    value = criterion(embeddings, labels)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(value, inputs),
        torch.autograd.grad(expected, inputs),
        rtol=1e-7,
        atol=1e-10,
    )


def test_semihard_triplets_of_a_large_batch_are_those_of_the_library() -> None:
    embeddings, labels = batch(300, classes=6)  # 14,700 pairs × 300: more than one block
    loss, miner = semihard()
    expected = loss(embeddings, labels, miner(embeddings, labels))
    torch.testing.assert_close(build("triplet")(embeddings, labels), expected, rtol=1e-6, atol=0)


def test_dscl_is_the_loss_of_that_name_with_the_ridge_of_the_settings() -> None:
    embeddings, labels = batch()
    value = build_criterion("dscl", dim=D, classes=C, ridge=0.3)(embeddings, labels)
    assert value == DeepSpectralClusteringLoss(ridge=0.3)(embeddings, labels)
    assert value != build("dscl")(embeddings, labels)


# Sums


def test_a_sum_has_the_weighted_value_and_gradients_of_its_terms() -> None:
    embeddings, labels = batch()
    whole = build("2*dscl+0.2*proxy-anchor+0.5*multi-similarity")
    parts = [(2, build("dscl")), (0.2, build("proxy-anchor")), (0.5, build("multi-similarity"))]
    value = whole(embeddings, labels)
    value.backward()
    expected_embeddings = embeddings.detach().clone().requires_grad_()
    expected = sum(weight * part(expected_embeddings, labels) for weight, part in parts)
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(embeddings.grad, expected_embeddings.grad)
    (proxies,), (expected_proxies,) = whole.parameters(), parts[1][1].parameters()
    torch.testing.assert_close(proxies.grad, expected_proxies.grad)


def test_the_expression_of_a_criterion_is_canonical() -> None:
    assert build("1*dscl + .2 * triplet(margin=0.20)").expression == "dscl+0.2*triplet"


@pytest.mark.parametrize(("expression", "weight"), [("dscl", 1), ("3*dscl", 3)])
def test_random_level_is_known_for_dscl_alone(expression: str, weight: float) -> None:
    level = DeepSpectralClusteringLoss(ridge=1e-3).random_level(64, D, C)
    assert build(expression).random_level(64, D, C) == weight * level
    assert build(f"{expression}+0.2*triplet").random_level(64, D, C) is None
    assert build("triplet").random_level(64, D, C) is None


# Proxies, dtypes and corner cases


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_the_same_seed_gives_the_same_proxies(name: str) -> None:
    (first,), (again,) = build(name).parameters(), build(name).parameters()
    assert torch.equal(first, again)
    torch.manual_seed(1)
    (other,) = build_criterion(name, dim=D, classes=C, ridge=0).parameters()
    assert not torch.equal(first, other)
    assert C in first.shape or 10 * C in first.shape


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_and_autocast_do_not_touch_the_loss(name: str) -> None:
    criterion = build(name)
    embeddings, labels = batch(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = criterion(embeddings, labels)
    value.backward()
    exact = embeddings.detach().float().requires_grad_()
    expected = criterion(exact, labels)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(embeddings.grad, expected_gradient.bfloat16(), rtol=0.01, atol=1e-7)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in criterion.parameters())


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_embeddings_in_float64_leave_the_dtype_of_proxies_alone(name: str) -> None:
    criterion = build(name)
    embeddings, labels = batch(dtype=torch.float64)
    criterion(embeddings, labels).backward()
    assert all(p.dtype == torch.float32 for p in criterion.parameters())
    assert embeddings.grad is not None
    assert embeddings.grad.dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_may_hold_some_of_the_classes_only(name: str) -> None:
    embeddings, labels = batch(classes=2)
    criterion = build(name, classes=7)
    criterion(embeddings, 2 * labels + 1).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.norm() > 0


def test_a_batch_without_semihard_triplets_scores_zero() -> None:
    labels = torch.arange(N) % C
    embeddings = one_hot(labels, D).float().requires_grad_()
    value = build("triplet")(embeddings, labels)
    value.backward()
    assert value == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


@pytest.mark.parametrize("expression", ["dscl+0.2*multi-similarity", "proxy-anchor", "triplet"])
def test_two_passes_give_network_and_proxies_the_gradients_of_one(expression: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, D)).double()
    criterion = build(expression).double()
    labels = torch.arange(N) % C
    images = torch.randn(N, 3, 2, 2, dtype=torch.float64) + labels[:, None, None, None]
    reference = copy.deepcopy(nn.ModuleList([network, criterion]))
    expected = reference[1](reference[0](images), labels)
    expected.backward()
    value = backward(network, images, labels, criterion, chunk_size=5, device="cpu")
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(
        [*network.parameters(), *criterion.parameters()], reference.parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_state_of_the_proxies_can_be_kept_and_loaded() -> None:
    embeddings, labels = batch()
    trained, fresh = build("dscl+proxy-anchor"), build("dscl+proxy-anchor")
    with torch.no_grad():
        for proxies in trained.parameters():
            proxies.add_(torch.randn_like(proxies))
    state: dict[str, Any] = trained.state_dict()
    fresh.load_state_dict(state)
    assert fresh(embeddings, labels) == trained(embeddings, labels)


def test_errors_of_dscl_come_through() -> None:
    embeddings, labels = batch()
    with pytest.raises(InvalidArgumentError, match="cannot train a 6-dimensional"):
        build("dscl")(embeddings[:6], labels[:6])
    with pytest.raises(NonFiniteEmbeddingsError, match="24 of 24"):
        build("triplet+dscl")(embeddings * math.nan, labels)
    with pytest.raises(InvalidArgumentError, match="ridge"):
        build_criterion("dscl", dim=D, classes=C, ridge=-1)
