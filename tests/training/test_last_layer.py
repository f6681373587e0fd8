"""The last layer alone: against a naive loop, the closed form, and any loss that is plugged in."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.errors import InvalidArgumentError
from training.last_layer import fit_closed_form, fit_iterative
from training.lda import Projection
from training.losses import DeepSpectralClusteringLoss, NonFiniteEmbeddingsError
from training.sampler import ClassBalancedBatches

Features = NDArray[np.float32]
Labels = NDArray[np.int64]

N, P, CLASSES, DIM = 90, 12, 6, 4


def features_of_classes(*, scale: float = 1.0, shift: float = 3.0) -> tuple[Features, Labels]:
    rng = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    centres = rng.normal(size=(CLASSES, P))
    features = (centres[labels] + rng.normal(size=(N, P))) * np.logspace(0.3, -0.3, P) + shift
    return (scale * features).astype(np.float32), labels


class Proxies(nn.Module):
    """Softmax over one proxy for each class; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.proxies = nn.Parameter(torch.randn(CLASSES, DIM, generator=generator))
        self.labels: list[Labels] = []
        self.values: list[float] = []

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        assert (embeddings.dtype, labels.dtype) == (torch.float32, torch.int64)
        value = nn.functional.cross_entropy(embeddings @ self.proxies.T, labels)
        self.labels.append(labels.numpy())
        self.values.append(value.item())
        return value


def fit(
    features: Features,
    labels: Labels,
    criterion: nn.Module,
    *,
    epochs: int = 5,
    lr: float = 0.01,
    weight_decay: float = 0.1,
    seed: int = 0,
    sampler: ClassBalancedBatches | None = None,
    start: Projection | None = None,
) -> Projection:
    return fit_iterative(
        features,
        labels,
        criterion,
        dim=DIM,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
        sampler=sampler,
        start=start,
    )


def make_sampler(labels: Labels) -> ClassBalancedBatches:
    return ClassBalancedBatches(labels, classes_per_batch=4, images_per_class=5, seed=3)


def dscl(embeddings: NDArray[np.float64], labels: Labels) -> float:
    loss = DeepSpectralClusteringLoss(ridge=0)
    return float(loss(torch.from_numpy(embeddings), torch.from_numpy(labels)))


@pytest.mark.parametrize("minibatches", [False, True])
def test_it_is_adamw_along_a_cosine_on_features_of_unit_deviation(minibatches: bool) -> None:
    features, labels = features_of_classes()
    sampler = make_sampler(labels) if minibatches else None
    start = Projection(np.random.default_rng(2).normal(size=(DIM, P)), np.arange(DIM) / 10)
    found = fit(features, labels, Proxies(), sampler=sampler, start=start)

    # The same in float64, step by step
    mean = features.astype(np.float64).mean(0)
    deviation = math.sqrt(features.astype(np.float64).var(0).mean())
    x = torch.from_numpy((features - mean) / deviation)
    W = torch.from_numpy(start.weight * deviation).requires_grad_()
    b = torch.from_numpy(start.bias + start.weight @ mean).requires_grad_()
    proxies = Proxies().proxies.detach().double().requires_grad_()
    decayed = torch.optim.AdamW([W], weight_decay=0.1)
    plain = torch.optim.AdamW([b, proxies], weight_decay=0)
    everything = np.arange(N)
    plans = [sampler.epoch(e) if sampler else [everything] for e in range(5)]
    steps = [rows for plan in plans for rows in plan]
    for t, rows in enumerate(steps):
        rate = 0.01 * (1 + math.cos(math.pi * t / len(steps))) / 2
        logits = (x[rows] @ W.T + b) @ proxies.T
        gradients = torch.autograd.grad(
            nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows])), [W, b, proxies]
        )
        for parameter, gradient in zip([W, b, proxies], gradients, strict=True):
            parameter.grad = gradient
        for optimizer in (decayed, plain):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    expected = x.numpy() @ W.detach().numpy().T + b.detach().numpy()
    np.testing.assert_allclose(found.apply(features), expected, atol=1e-4)
    assert np.abs(found.apply(features) - start.apply(features)).max() > 0.05


def test_it_comes_close_to_the_closed_form_and_not_below() -> None:
    features, labels = features_of_classes()
    least = dscl(fit_closed_form(features, labels, dim=DIM, ridge=0).apply(features), labels)
    found = fit(
        features,
        labels,
        DeepSpectralClusteringLoss(ridge=0),
        epochs=300,
        lr=0.03,
        weight_decay=0,
    )
    reached = dscl(found.apply(features), labels)
    assert least - 1e-9 <= reached < least + 1e-3


def test_the_closed_form_is_a_fixed_point() -> None:
    features, labels = features_of_classes()
    start = fit_closed_form(features, labels, dim=DIM, ridge=0)
    loss = DeepSpectralClusteringLoss(ridge=0)
    found = fit(features, labels, loss, lr=1e-4, weight_decay=0, start=start)
    least = dscl(start.apply(features), labels)
    assert dscl(found.apply(features), labels) == pytest.approx(least, abs=1e-5)


def test_the_closed_form_takes_views_one_below_the_other() -> None:
    features, labels = features_of_classes()
    once = fit_closed_form(features, labels, dim=DIM, ridge=0.1)
    twice = fit_closed_form(
        np.concatenate([features, features]), np.tile(labels, 2), dim=DIM, ridge=0.1
    )
    np.testing.assert_allclose(
        np.abs(twice.apply(features)), np.abs(once.apply(features)), atol=1e-9
    )


def test_batches_are_those_of_the_sampler_and_epochs_are_reported() -> None:
    features, labels = features_of_classes()
    sampler, criterion = make_sampler(labels), Proxies()
    reported: list[tuple[int, float]] = []
    fit_iterative(
        features,
        labels,
        criterion,
        dim=DIM,
        epochs=3,
        lr=0.01,
        weight_decay=0,
        seed=0,
        sampler=sampler,
        on_epoch=lambda epoch, loss: reported.append((epoch, loss)),
    )
    expected = [labels[rows] for epoch in range(3) for rows in sampler.epoch(epoch)]
    assert len(criterion.labels) == len(expected) == 3 * len(sampler)
    for found, rows in zip(criterion.labels, expected, strict=True):
        np.testing.assert_array_equal(found, rows)
    means = np.mean(np.reshape(criterion.values, (3, len(sampler))), axis=1)
    assert [epoch for epoch, _ in reported] == [1, 2, 3]
    assert [loss for _, loss in reported] == pytest.approx(means)


def test_proxies_are_trained_along() -> None:
    features, labels = features_of_classes()
    criterion = Proxies()
    before = criterion.proxies.detach().clone()
    fit(features, labels, criterion, epochs=60, lr=0.05)
    assert not torch.allclose(criterion.proxies, before, atol=0.1)
    assert criterion.values[-1] < 0.5 * criterion.values[0]


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 3.0), (1e3, 3.0), (1.0, 50.0)])
def test_unit_and_offset_of_the_features_do_not_matter(scale: float, shift: float) -> None:
    plain, labels = features_of_classes()
    expected = fit(plain, labels, Proxies()).apply(plain)
    features, _ = features_of_classes(scale=scale, shift=shift)
    np.testing.assert_allclose(
        fit(features, labels, Proxies()).apply(features), expected, atol=1e-3
    )


def test_the_first_weight_is_orthogonal_and_has_the_seed_alone() -> None:
    features, labels = features_of_classes()
    deviation = math.sqrt(features.astype(np.float64).var(0).mean())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = [fit(features, labels, Proxies(), lr=1e-9, seed=seed) for seed in (0, 1, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    weight = found[0].weight * deviation
    np.testing.assert_allclose(weight @ weight.T, np.eye(DIM), atol=1e-5)
    np.testing.assert_array_equal(found[0].weight, found[2].weight)
    assert np.abs(found[0].weight - found[1].weight).max() > 0.1


def test_features_may_be_mapped_from_disk(tmp_path: Path) -> None:
    features, labels = features_of_classes()
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    expected = fit(features, labels, Proxies())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(mapped, labels, Proxies())
    np.testing.assert_array_equal(found.weight, expected.weight)


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_features_that_are_all_alike_stay_finite(constant: float) -> None:
    features = np.full((N, P), constant, np.float32)
    found = fit(features, np.arange(N) % CLASSES, Proxies())
    assert np.isfinite(found.apply(features)).all()


class Diverging(nn.Module):
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return embeddings.sum() * math.inf


def test_a_loss_that_is_not_finite_names_the_epoch_and_the_rate() -> None:
    features, labels = features_of_classes()
    with pytest.raises(NonFiniteEmbeddingsError, match=r"in epoch 1 .* learning rate, 0\.5"):
        fit(features, labels, Diverging(), lr=0.5)


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (np.ones(5), np.zeros(5, int), {}, r"features are float64 \[5\]"),
        (np.ones((5, 2), int), np.zeros(5, int), {}, r"features are int64 \[5, 2\]"),
        (np.ones((5, 2)), np.zeros(4, int), {}, r"\[5, 2\] and labels \[4\]"),
        (np.ones((5, 2)), np.zeros(5, int), {"epochs": 0}, "0 epochs"),
        (np.ones((5, 2)), np.zeros(5, int), {"lr": 0.0}, r"at lr 0\.0"),
        (np.ones((5, 2)), np.zeros(5, int), {"lr": math.nan}, "at lr nan"),
        (
            np.ones((5, 2)),
            np.zeros(5, int),
            {"start": Projection(np.ones((4, 3)), np.ones(4))},
            r"first weight is \[4, 3\]: expected \[4, 2\]",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    features: Features, labels: Labels, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        fit(features, labels, Proxies(), **options)  # type: ignore[arg-type]
