"""Every way to train: methods, solvers, losses, averages, and what may only change the speed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from index.errors import DsclError, InvalidArgumentError
from service.cli import dscl
from tests.training.test_trainer import (
    FORWARDS_A_STEP,
    FORWARDS_AN_EPOCH,
    Outcome,
    assert_same,
    assert_same_course,
    go_on,
    one_thread,  # noqa: F401
    open_run,
    run_to_the_end,
    stop_and_resume,
)
from tests.training.tiny_runs import (
    GENTLE,
    Finished,
    assert_same_but_for_rounding,
    embedded,
    end,
    finished_run,
    learned,
    untrained,
    watched,
    write_cars,
    write_weights,
)
from training import feature_cache
from training.distributed import World
from training.network import EmbeddingNetwork
from training.preparation import resume_network
from training.run import Run
from training.settings import TrainSettings
from training.stop import Stopped
from training.trainer import ChunkTooLargeError, schedule

#: The classes that are left to train on differ in this many directions.
DIFFERENCES = 3


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cars(tmp_path_factory.mktemp("data") / "cars")


@pytest.fixture(scope="module", autouse=True)
def no_report() -> Iterator[None]:
    """Reports have tests of their own, and would take a third of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.finish.write_report", lambda path: path / "report.html")
        yield


@pytest.fixture(scope="module")
def reference(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run with nothing special."""
    return run_to_the_end(tmp_path_factory.mktemp("runs") / "reference", cars)


# The last layer


LAST_LAYER: dict[str, Any] = {
    "method": "last-layer", "dim": DIFFERENCES, "closed_form_ridge": 0.5
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def iterative(cars: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "iterative"
    return finished_run(path, cars, **LAST_LAYER, epochs=30, feature_cache=str(cache))


@pytest.fixture(scope="module")
def solved(cars: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "solved"
    return finished_run(path, cars, **LAST_LAYER, solver="closed-form", feature_cache=str(cache))


def learned_features(finished: Finished) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Frozen features of the photos that train, and their labels: the first 4 of 6 classes."""
    train = finished.data().train
    train = train.subset(train.labels < 4)
    features = embedded(untrained(finished.settings).backbone, finished.settings, train)
    return features.astype(np.float64), train.labels


def damped_loss(
    weight: NDArray[np.float64], X: NDArray[np.float64], labels: NDArray[np.int64], ridge: float
) -> float:
    """(c − 1) − tr((Wᵀ S W)⁻¹ Wᵀ S_b W), S being the total scatter with its mean variance added."""
    d = X.shape[1]
    total, between = np.zeros((d, d)), np.zeros((d, d))
    mean = X.mean(0)
    for label in np.unique(labels):
        members = X[labels == label]
        total += (members - mean).T @ (members - mean)
        offset = members.mean(0) - mean
        between += len(members) * np.outer(offset, offset)
    total += ridge * np.trace(total) / d * np.eye(d)
    W = weight.T
    explained = np.trace(np.linalg.solve(W.T @ total @ W, W.T @ between @ W))
    return float(len(np.unique(labels)) - 1 - explained)


def test_training_the_last_layer_lowers_the_loss(iterative: Finished) -> None:
    losses = iterative.losses
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]
    random_level = iterative.run.metrics()[0]["random_level"]
    assert losses[-1] < 0.5 * random_level


def test_the_closed_form_is_the_best_head_for_the_features(
    solved: Finished, iterative: Finished
) -> None:
    X, labels = learned_features(solved)
    start = untrained(iterative.settings).head.weight.detach().double().numpy()
    found, searched = (
        finished.weights["head.weight"].double().numpy() for finished in (solved, iterative)
    )
    best, near, far = (
        damped_loss(weight, X, labels, ridge=0.5) for weight in (found, searched, start)
    )
    assert best < near < far
    # Nor does a small step in any direction improve it.
    rng = np.random.default_rng(0)
    for _ in range(10):
        step = rng.normal(size=found.shape)
        for sign in (1e-3, -1e-3):
            moved = found + sign * np.linalg.norm(found) / np.linalg.norm(step) * step
            assert damped_loss(moved, X, labels, ridge=0.5) >= best - 1e-9


@pytest.mark.parametrize("name", ["iterative", "solved"])
def test_the_backbone_stays_to_the_bit(name: str, request: pytest.FixtureRequest) -> None:
    finished: Finished = request.getfixturevalue(name)
    before = untrained(finished.settings).state_dict()
    assert finished.weights.keys() == before.keys()
    for key, value in before.items():
        if key.startswith("head."):
            assert not torch.equal(finished.weights[key], value)
        else:
            assert_same(finished.weights[key], value)


@pytest.mark.parametrize("name", ["iterative", "solved"])
def test_a_finished_head_can_be_exported_again(name: str, request: pytest.FixtureRequest) -> None:
    finished: Finished = request.getfixturevalue(name)
    _, network, _ = resume_network(finished.run, echo=lambda _: None)
    assert_same(dict(network.state_dict()), dict(finished.weights))


def test_a_request_to_stop_is_met_after_an_epoch_of_the_last_layer(
    cars: Path, cache: Path, tmp_path: Path, iterative: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "run", cars, **LAST_LAYER, epochs=30, feature_cache=str(cache))
    log = Run.log

    def log_and_ring(self: Run, figures: dict[str, Any]) -> None:
        log(self, figures)
        if figures["epoch"] == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_and_ring)
        with pytest.raises(Stopped):
            end(run)
    assert len(run.metrics()) == 3
    again = end(Run.open(run.path))
    assert again.losses == iterative.losses
    assert_same(dict(again.weights), dict(iterative.weights))


@pytest.mark.usefixtures("iterative")
def test_features_are_computed_once_for_all_runs_that_share_a_folder(
    cars: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("features are computed again")

    before = {file: file.read_bytes() for file in cache.rglob("*.npy")}
    assert before
    monkeypatch.setattr(feature_cache, "_compute", refuse)
    again = finished_run(
        tmp_path / "run", cars, **LAST_LAYER, loss="proxy-anchor", epochs=1,
        feature_cache=str(cache),
    )  # fmt: skip
    assert not (again.run.path / "features").exists()
    assert {file: file.read_bytes() for file in cache.rglob("*.npy")} == before


def test_a_head_that_was_solved_for_is_a_start_for_the_iteration(
    cars: Path, cache: Path, tmp_path: Path, iterative: Finished
) -> None:
    started = finished_run(
        tmp_path / "run", cars, **LAST_LAYER, head_init="closed-form", epochs=1,
        feature_cache=str(cache),
    )  # fmt: skip
    assert started.losses[0] < 0.5 * iterative.losses[0]


def test_figures_of_the_last_layer_are_those_of_the_exported_network(iterative: Finished) -> None:
    test = iterative.data().test
    assert test is not None
    found = iterative.embed(test)
    np.testing.assert_allclose(iterative.saved("embeddings"), found, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "last-layer", "loss": "proxy-anchor"},
        {"method": "last-layer", "loss": "dscl+0.2*multi-similarity"},
        {"method": "end-to-end"},
    ],
)
def test_the_closed_form_of_another_loss_is_refused(changes: dict[str, Any]) -> None:
    loss = changes.get("loss", "dscl")
    with pytest.raises(InvalidArgumentError) as caught:
        TrainSettings(solver="closed-form", **changes)
    message = str(caught.value)
    assert f"this is --method {changes['method']} with --loss {loss}: add --method last" in message


def test_the_command_refuses_the_closed_form_of_another_loss_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="--solver closed-form solves DSCL"):
        dscl.main(
            ["train", "--data=x", f"--out={tmp_path}", "--method=last-layer",
             "--solver=closed-form", "--loss=arcface"],
            standalone_mode=False,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_several_processes_for_the_last_layer_are_refused(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def pair(device: torch.device) -> Iterator[World]:
        yield World(rank=0, size=2, device=device)

    monkeypatch.setattr("training.trainer.World.join", pair)
    with pytest.raises(InvalidArgumentError, match="--method last-layer with 2 processes"):
        end(open_run(tmp_path / "run", cars, **LAST_LAYER))


# The first head


def test_a_head_that_was_solved_for_starts_with_a_lower_loss(cars: Path, tmp_path: Path) -> None:
    still = {"min_area": 1.0, "color": 0.0, "flip": False, "batch_norm": "frozen", "epochs": 1}
    first = {
        init: run_to_the_end(
            tmp_path / init, cars, **still, dim=DIFFERENCES, head_init=init
        ).checkpoint.losses[0]
        for init in ("orthogonal", "closed-form")
    }  # fmt: skip
    assert first["closed-form"] < 0.5 * first["orthogonal"]


def test_a_run_with_a_head_that_was_solved_for_goes_on_with_what_it_has_learned(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"head_init": "closed-form", "epochs": 2}
    undisturbed = run_to_the_end(tmp_path / "undisturbed", cars, **settings)
    run = open_run(tmp_path / "stopped", cars, **settings)
    # The pass that computes the features comes first.
    stopped = stop_and_resume(run, [1 + FORWARDS_A_STEP + 2], monkeypatch, signal.SIGINT)
    assert_same_course(stopped, undisturbed)


# Other losses


@pytest.fixture(scope="module")
def peer(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    path = tmp_path_factory.mktemp("runs") / "peer"
    return run_to_the_end(path, cars, loss="proxy-anchor", epochs=6)


def test_a_peer_learns_with_its_proxies(peer: Outcome) -> None:
    losses = [record["loss"] for record in peer.records()]
    assert losses[-1] < 0.8 * losses[0]
    [proxies] = peer.checkpoint.criterion.values()
    assert proxies.shape == (4, 4)  # one for each class that trains
    groups = peer.checkpoint.optimizer["param_groups"]
    assert groups[-1]["weight_decay"] == 0
    assert all(record["random_level"] is None for record in peer.records())


def test_a_peer_that_was_stopped_ends_as_if_it_never_was(
    cars: Path, tmp_path: Path, peer: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "run", cars, loss="proxy-anchor", epochs=6)
    stops = [FORWARDS_A_STEP + 2, FORWARDS_AN_EPOCH + 4]
    assert_same_course(stop_and_resume(run, stops, monkeypatch, signal.SIGTERM), peer)


def test_proxies_learn_at_their_own_rate(cars: Path, tmp_path: Path) -> None:
    def proxies(rate: float) -> Tensor:
        outcome = run_to_the_end(
            tmp_path / str(rate), cars, loss="proxy-anchor", epochs=1, proxy_lr=rate
        )
        [value] = outcome.checkpoint.criterion.values()
        return value

    still, slow, fast = proxies(0), proxies(1e-3), proxies(1e-1)
    # Adam's first steps are as long as the rate.
    assert 20 * (slow - still).norm() < (fast - still).norm()
    assert (slow - still).norm() > 0


# The average of the weights


AVERAGED: dict[str, Any] = {"average": 0.6}


def averaged_by_hand(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """Each step's weights count 1 − decay, and all before them the rest; float64."""
    average = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        for name, value in state.items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
    return average


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_what_is_exported_is_the_running_average_of_the_weights(
    cars: Path, tmp_path: Path, batch_norm: str
) -> None:
    networks: list[EmbeddingNetwork] = []
    states: list[dict[str, Tensor]] = []

    def remember(*_: object) -> None:
        state = networks[-1].state_dict()
        states.append({k: v.clone() for k, v in state.items() if v.is_floating_point()})

    hook = register_optimizer_step_post_hook(remember)
    try:
        with watched(networks.append):
            finished = finished_run(tmp_path / "run", cars, **AVERAGED, batch_norm=batch_norm)
    finally:
        hook.remove()
    assert len(states) == 6
    expected = averaged_by_hand(states, 0.6)
    exported = {k: v for k, v in finished.weights.items() if v.is_floating_point()}
    for name, value in expected.items():
        torch.testing.assert_close(exported[name].double(), value, rtol=1e-5, atol=1e-6)
    last = states[-1]
    changing = {name for name, value in states[0].items() if not torch.equal(value, last[name])}
    assert "backbone.network.features.0.0.weight" in changing
    assert ("backbone.network.features.0.1.running_mean" in changing) == (batch_norm == "train")
    assert all(not torch.equal(exported[name], last[name]) for name in changing)
    # The run goes on from the weights themselves, and all that judges sees the average.
    assert_same({k: finished.run.load().network[k] for k in last}, last)
    assert finished.network is not None
    test = finished.data().test
    assert test is not None
    np.testing.assert_allclose(
        embedded(finished.network.backbone, finished.settings, test),
        embedded(finished.trained().backbone, finished.settings, test),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        finished.saved("embeddings"), finished.embed(test), rtol=0, atol=2e-5
    )
    # As does an export later on.
    _, network, _ = resume_network(finished.run, echo=lambda _: None)
    assert_same(dict(network.state_dict()), dict(finished.weights))


@pytest.fixture(scope="module")
def averaged(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_to_the_end(tmp_path_factory.mktemp("runs") / "averaged", cars, **AVERAGED)


def test_the_average_survives_a_stop(
    cars: Path, tmp_path: Path, averaged: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert averaged.checkpoint.average is not None
    run = open_run(tmp_path / "run", cars, **AVERAGED)
    stops = [FORWARDS_A_STEP + 2, 2]
    assert_same_course(stop_and_resume(run, stops, monkeypatch, signal.SIGTERM), averaged)


def test_an_average_does_not_change_what_is_learned(averaged: Outcome, reference: Outcome) -> None:
    assert_same(averaged.checkpoint.network, reference.checkpoint.network)
    losses, expected = (
        [record["loss"] for record in outcome.records()] for outcome in (averaged, reference)
    )
    assert losses == expected


# Rates and sizes


def test_each_block_learns_at_the_rate_of_the_one_above_times_the_decay(
    cars: Path, tmp_path: Path
) -> None:
    networks: list[EmbeddingNetwork] = []
    rates: list[dict[int, float]] = []

    def remember(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append({id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]})

    hook = register_optimizer_step_post_hook(remember)
    try:
        with watched(networks.append):
            finished = finished_run(tmp_path / "run", cars, layer_decay=0.5, epochs=1)
    finally:
        hook.remove()
    [network] = networks
    settings = finished.settings
    assert len(rates) == 2
    blocks = network.backbone.layers()
    assert len(blocks) >= 5
    for step, found in enumerate(rates):
        share = schedule(step / 2, settings.warmup)
        for parameter in network.head.parameters():
            assert found.pop(id(parameter)) == pytest.approx(share * settings.lr)
        for above, block in enumerate(reversed(blocks)):
            for parameter in block:
                expected = share * settings.backbone_lr * 0.5**above
                assert found.pop(id(parameter)) == pytest.approx(expected)
        assert not found


def test_training_may_see_smaller_photos_than_those_that_are_judged(
    cars: Path, tmp_path: Path
) -> None:
    seen: set[tuple[bool, tuple[int, ...]]] = set()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.add((module.training, tuple(inputs[0].shape[1:])))

    with watched(lambda network: network.backbone.register_forward_pre_hook(look)):
        finished = finished_run(tmp_path / "run", cars, size=48, train_size=32, epochs=1)
    assert seen == {(True, (3, 32, 32)), (False, (3, 48, 48))}
    assert finished.network is not None


# What may only change speed and memory


def forwards(count: Callable[[], object]) -> Callable[[EmbeddingNetwork], object]:
    """Watch a network: count its passes in training."""

    def hook(module: nn.Module, *_: object) -> None:
        if module.training:
            count()

    return lambda network: network.backbone.register_forward_hook(hook)


@pytest.mark.parametrize(
    ("megabytes", "passes"), [(0, 6 * FORWARDS_A_STEP), (1000, 6 * 3)], ids=["none", "all"]
)
def test_activations_that_are_kept_or_computed_again_give_the_same_to_the_bit(
    cars: Path, tmp_path: Path, reference: Outcome, megabytes: int, passes: int
) -> None:
    count: list[None] = []
    with watched(forwards(lambda: count.append(None))):
        outcome = run_to_the_end(tmp_path / "run", cars, activations_mb=megabytes)
    assert len(count) == passes
    assert_same_course(outcome, reference)


@pytest.fixture(scope="module")
def same_in_any_chunks(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run in which nothing depends on how its batches are cut."""
    weights = write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors", cars)
    return {**GENTLE, "weights": str(weights), "head_init": "orthogonal"}


@pytest.fixture(scope="module")
def whole(
    cars: Path, same_in_any_chunks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A run whose batches are embedded at once."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    return finished_run(path, cars, **same_in_any_chunks, chunk_size=12)


def assert_learned_the_same(found: Finished, expected: Finished) -> None:
    start = learned(untrained(expected.settings).state_dict())
    assert_same_but_for_rounding(learned(found.weights), learned(expected.weights), start)
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 5, 6])
def test_chunks_do_not_change_what_is_learned(
    cars: Path,
    tmp_path: Path,
    whole: Finished,
    same_in_any_chunks: dict[str, Any],
    chunk_size: int,
) -> None:
    found = finished_run(tmp_path / "run", cars, **same_in_any_chunks, chunk_size=chunk_size)
    assert_learned_the_same(found, whole)


# A GPU that is too small


class Full:
    """A stand-in for a GPU that has room for some photos only: there is no GPU to fill here.

    As on a real one, the pass that fails has changed BatchNorm's statistics before it does.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.refused: list[int] = []

    def __call__(self, network: EmbeddingNetwork) -> None:
        def embed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training and len(inputs[0]) > self.room:
                self.refused.append(len(inputs[0]))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        network.backbone.register_forward_hook(embed)


def test_out_of_memory_names_a_chunk_size_that_may_fit(cars: Path, tmp_path: Path) -> None:
    """A mock raises the error: see ``Full``."""
    with watched(Full(2)), pytest.raises(DsclError) as caught:
        finished_run(tmp_path / "run", cars, chunk_size=4)
    message = str(caught.value)
    assert "no room for chunks of 4 photos: use --chunk-size 2 " in message
    assert "--shrink-chunks" in message
    assert "Tried to allocate 20.00 MiB" in message
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_chunks_that_shrink_once_give_what_small_ones_would_have_given(
    cars: Path, tmp_path: Path
) -> None:
    """A mock raises the error: see ``Full``. BatchNorm learns, so that a lost chunk would show."""
    small = run_to_the_end(tmp_path / "small", cars, chunk_size=2)
    gpu = Full(2)
    with watched(gpu):
        shrunk = run_to_the_end(tmp_path / "shrunk", cars, chunk_size=4, shrink_chunks=True)
    assert gpu.refused == [4]
    assert shrunk.said.count("Out of memory: going on in chunks of 2.") == 1
    assert_same_course(shrunk, small)


def test_chunks_that_shrink_do_not_change_what_is_learned(
    cars: Path, tmp_path: Path, whole: Finished, same_in_any_chunks: dict[str, Any]
) -> None:
    """A mock raises the error: see ``Full``."""
    gpu = Full(2)
    with watched(gpu):
        shrunk = finished_run(
            tmp_path / "run", cars, **same_in_any_chunks, chunk_size=12, shrink_chunks=True
        )
    assert gpu.refused == [12, 6, 3]
    assert_learned_the_same(shrunk, whole)


def test_a_single_photo_that_does_not_fit_is_an_error(
    cars: Path, tmp_path: Path, same_in_any_chunks: dict[str, Any]
) -> None:
    """A mock raises the error: see ``Full``."""
    gpu = Full(0)
    with watched(gpu), pytest.raises(DsclError, match="no room for chunks of 1 photos"):
        finished_run(tmp_path / "run", cars, **same_in_any_chunks, chunk_size=4, shrink_chunks=True)
    assert gpu.refused == [4, 2, 1]


def test_a_run_that_ran_out_of_memory_is_continued_as_its_message_says(
    cars: Path, tmp_path: Path, whole: Finished, same_in_any_chunks: dict[str, Any]
) -> None:
    """A mock raises the error: see ``Full``; this time in the second step."""
    run = open_run(tmp_path / "run", cars, **same_in_any_chunks, chunk_size=12)
    gpu = Full(12)

    def fill(network: EmbeddingNetwork) -> None:
        gpu(network)

        def shrink(module: nn.Module, *_: object) -> None:
            gpu.room = 4 if gpu.room == 12 else gpu.room

        # After the first pass, which is the whole first step
        network.backbone.register_full_backward_hook(shrink)

    with watched(fill), pytest.raises(ChunkTooLargeError) as caught:
        end(run)
    assert "use --chunk-size 6 or" in str(caught.value)
    assert "go with --resume" in str(caught.value)
    assert (run.load().epoch, run.load().step) == (0, 1)

    continued: list[Run] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.train", lambda run, echo: continued.append(run))
        arguments = ["train", f"--resume={run.path}", "--chunk-size=4", "--workers=0"]
        dscl.main(arguments, standalone_mode=False)
    [again] = continued
    assert again.settings.chunk_size == 4
    with watched(gpu):
        assert_learned_the_same(end(again), whole)


def test_chunks_cannot_change_where_batch_norm_learns_by_them(cars: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", cars)
    with pytest.raises(InvalidArgumentError, match=r"chunk_size \(run: 5, given: 2\)"):
        dscl.main(["train", f"--resume={run.path}", "--chunk-size=2"], standalone_mode=False)


def test_a_run_that_ran_out_of_memory_goes_on_from_its_last_checkpoint(
    cars: Path, tmp_path: Path, reference: Outcome
) -> None:
    """A mock raises the error: see ``Full``; this time for one pass, as another job filled it."""
    run = open_run(tmp_path / "run", cars)
    gpu = Full(12)

    def fill(network: EmbeddingNetwork) -> None:
        gpu(network)
        passes = iter(range(FORWARDS_AN_EPOCH + 3))

        def shrink(module: nn.Module, *_: object) -> None:
            if module.training and next(passes, None) is None:
                gpu.room = 0

        network.backbone.register_forward_pre_hook(shrink)

    with watched(fill), pytest.raises(DsclError, match="no room for chunks of 5 photos"):
        end(run)
    assert_same_course(go_on(Run.open(run.path)), reference)
