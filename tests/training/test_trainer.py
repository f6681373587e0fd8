"""Runs as a user has them: they learn, leave what they should, and can be stopped at any moment."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from index.errors import DataError, DsclError
from index.metrics import RetrievalMetrics, evaluate
from index.model import Model, ModelCard
from service.cli import dscl
from tests.photos import encoded, picture, write_photo
from tests.service.running import DEADLINE_S, DSCL, clean_environment
from training import trainer
from training.augment import in_order
from training.backbones import Backbone
from training.finish import finish
from training.inference import InferenceNetwork
from training.machine import Machine
from training.network import EmbeddingNetwork
from training.preparation import build_network, resume_network
from training.run import Checkpoint, Run, RunError
from training.settings import TrainSettings
from training.stop import Stopped, stop_on_signals
from training.trainer import NonFiniteError, schedule, train

CLASSES = 6
PER_CLASS = 6

#: 4 classes of 6 learn in 2 steps of 4 × 3 photos an epoch, 5 forward passes for each: 3 chunks,
#: and all but the first once more.
TINY: dict[str, Any] = {
    "backbone": "small_cnn",
    "weights": "none",
    "dim": 4,
    "size": 32,
    "epochs": 3,
    "batch_size": 12,
    "images_per_class": 3,
    "chunk_size": 5,
    "activations_mb": 0,
    "validation_classes": 2,
    "keep": "last",
    "lr": 1e-2,
    "backbone_lr": 2e-3,
    "device": "cpu",
    "workers": 0,
    "baseline": False,
}
FORWARDS_A_STEP = 5
FORWARDS_AN_EPOCH = 2 * FORWARDS_A_STEP


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over threads come out in another order, and small networks are faster without."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_class(folder: Path, seed: int, count: int = PER_CLASS) -> None:
    """Noisy copies of one picture."""
    scene = np.asarray(picture(seed, height=40, width=40)).astype(float)
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        noisy = np.clip(scene + rng.normal(scale=20, size=scene.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An easy set: 6 classes to train, 2 to test."""
    root = tmp_path_factory.mktemp("data") / "cars"
    for label in range(CLASSES):
        write_class(root / "train" / f"car-{label}", label)
    for label in range(CLASSES, CLASSES + 2):
        write_class(root / "test" / f"car-{label}", label)
    return root


@dataclass
class Outcome:
    """What a run left behind, and said."""

    run: Run
    said: list[str]
    exported: dict[str, Tensor] | None = None  #: state of the network that was to be exported

    @property
    def checkpoint(self) -> Checkpoint:
        return self.run.load()

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl without what depends on the clock."""
        return [
            {key: value for key, value in line.items() if key != "images_per_s"}
            for line in self.run.metrics()
        ]


def open_run(path: Path, data: Path, **changed: Any) -> Run:
    return Run.create(path, TrainSettings(data=str(data), **(TINY | changed)))


def go_on(run: Run) -> Outcome:
    """Train to the end, but leave ONNX out, which takes longer than all the rest."""
    outcome = Outcome(run, [])

    def keep(network: InferenceNetwork, *_: object, **__: object) -> SimpleNamespace:
        outcome.exported = network.state_dict()
        return SimpleNamespace(sha256="0" * 64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.finish.export", keep)
        train(run, echo=outcome.said.append)
    return outcome


def run_to_the_end(path: Path, data: Path, **changed: Any) -> Outcome:
    return go_on(open_run(path, data, **changed))


@pytest.fixture(scope="module")
def reference(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that nothing disturbed."""
    return run_to_the_end(tmp_path_factory.mktemp("runs") / "reference", cars)


def assert_same(found: Any, expected: Any) -> None:
    """Equal to the last bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_same_course(found: Outcome, expected: Outcome) -> None:
    assert vars(found.checkpoint).keys() == vars(expected.checkpoint).keys()
    for name, value in vars(expected.checkpoint).items():
        assert_same(getattr(found.checkpoint, name), value)
    assert found.records() == expected.records()
    assert_same(found.exported, expected.exported)


# A whole run


@pytest.fixture(scope="module")
def finished(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run with everything, to the exported model."""
    run = open_run(tmp_path_factory.mktemp("runs") / "finished", cars, epochs=12)
    outcome = Outcome(run, [])
    train(run, echo=outcome.said.append)
    return outcome


def test_a_run_leaves_settings_metrics_checkpoint_events_and_model(finished: Outcome) -> None:
    run = finished.run
    assert {path.name for path in run.path.iterdir()} == {
        "settings.json", "run.json", "metrics.jsonl", "checkpoints", "tensorboard", "model",
        "evaluation", "report.html",
    }  # fmt: skip
    assert Run.open(run.path).settings == run.settings
    assert [path.name for path in run.checkpoint_file.parent.iterdir()] == ["last.pt"]
    checkpoint = run.load()
    assert (checkpoint.epoch, checkpoint.step, len(checkpoint.losses)) == (11, 2, 2)


def test_each_epoch_has_a_line_of_figures(finished: Outcome) -> None:
    lines = finished.run.metrics()
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert line.keys() == {
            "epoch", "loss", "random_level", "images_per_s", "recall", "map_at_r"
        }  # fmt: skip
        assert line["recall"].keys() == {"1", "2", "4", "8"}
        assert line["images_per_s"] > 0
    said = [text for text in finished.said if text.startswith("Epoch ")]
    assert [text.split(":")[0] for text in said] == [f"Epoch {e}/12" for e in range(1, 13)]


def test_tensorboard_shows_the_same_figures(finished: Outcome) -> None:
    events = EventAccumulator(str(finished.run.tensorboard_folder)).Reload()
    lines = finished.run.metrics()

    def shown(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)}

    for tag, values in {
        "loss/epoch": [line["loss"] for line in lines],
        "loss/random": [line["random_level"] for line in lines],
        "recall/1": [line["recall"]["1"] for line in lines],
    }.items():
        assert shown(tag) == pytest.approx(dict(enumerate(values, start=1)), rel=1e-6)
    steps = shown("loss/step")
    assert list(steps) == list(range(24))
    assert np.mean([steps[22], steps[23]]) == pytest.approx(lines[-1]["loss"], rel=1e-6)


def test_the_loss_falls_well_below_that_of_a_random_embedding(finished: Outcome) -> None:
    lines = finished.run.metrics()
    assert abs(lines[0]["loss"] - lines[0]["random_level"]) < 0.25
    assert lines[-1]["loss"] < 0.6 * lines[-1]["random_level"]


def test_the_model_gives_the_recall_that_its_card_states(finished: Outcome, cars: Path) -> None:
    model = Model.load(finished.run.model_folder)
    files = sorted((cars / "test").rglob("*.png"))
    vectors = model.embed(np.stack([model.prepare(file) for file in files]))
    found = evaluate(vectors, np.repeat([0, 1], PER_CLASS), ks=(1, 2, 4, 8))
    stated = model.card.metrics
    assert stated["recall"] == {str(k): value for k, value in found.recall.items()}
    assert stated["map_at_r"] == pytest.approx(found.map_at_r, abs=1e-9)
    assert stated["recall"]["1"] > 0.9  # two scenes that nobody confuses


def test_the_card_tells_how_the_model_was_made(finished: Outcome) -> None:
    card = ModelCard.read(finished.run.model_folder / "model.json")
    assert (card.name, card.backbone, card.loss) == ("small_cnn-dscl-4", "small_cnn", "dscl")
    assert (card.dataset, card.protocol, card.seed) == ("cars", "folders 6/2", 0)
    assert (card.height, card.width, card.dim) == (32, 32, 4)
    assert TrainSettings.from_dict(card.settings) == finished.run.settings


def test_the_models_weights_are_those_of_the_last_checkpoint(finished: Outcome) -> None:
    weights = load_file(finished.run.model_folder / "weights.safetensors")
    assert_same(weights, dict(finished.checkpoint.network))


def test_the_epoch_that_judged_best_is_exported_and_exported_again(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = []
    validate = trainer.validate

    def note_weights(
        settings: TrainSettings, network: EmbeddingNetwork, *rest: Any
    ) -> RetrievalMetrics:
        course.append({name: value.clone() for name, value in network.state_dict().items()})
        return validate(settings, network, *rest)

    monkeypatch.setattr(trainer, "validate", note_weights)
    # At this rate later epochs are worse than an earlier one.
    run = open_run(tmp_path / "run", cars, keep="best", epochs=6, lr=0.3, backbone_lr=0.3)
    outcome = go_on(run)
    figures = [line["map_at_r"] for line in run.metrics()]
    best = figures.index(max(figures))
    assert best < len(figures) - 1
    assert any(f"weights after epoch {best + 1} are kept" in text for text in outcome.said)
    _, network, _ = resume_network(run, echo=lambda _: None)
    assert_same(dict(network.state_dict()), course[best])
    assert outcome.exported is not None
    first = "network.features.0.0.weight"
    assert_same(outcome.exported[f"features.backbone.{first}"], course[best][f"backbone.{first}"])


def test_the_run_says_what_it_does_with_the_data(finished: Outcome) -> None:
    [training] = [text for text in finished.said if text.startswith("Training ")]
    for fact in (
        "small_cnn (none weights) with dscl on folders 6/2",
        "24 photos of 4 classes, 12 photos of 2 classes held out",
        "4 classes × 3 photos = 12 in chunks of 5, 2 steps an epoch, 12 epochs.",
        f"A random embedding has loss {finished.run.metrics()[0]['random_level']:.3f}.",
    ):
        assert fact in training


def test_a_finished_run_can_be_exported_again(finished: Outcome, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.run.path, tmp_path / "run"), finished.run.settings)
    shutil.rmtree(run.model_folder)
    card = finish(run, *resume_network(run, echo=lambda _: None), echo=lambda _: None)
    before = Model.load(finished.run.model_folder)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    assert np.array_equal(Model.load(run.model_folder).embed(pixels), before.embed(pixels))
    assert json.loads(card.to_json())["metrics"] == before.card.metrics


# The same again


def test_the_seed_decides_everything(cars: Path, tmp_path: Path, reference: Outcome) -> None:
    assert_same_course(run_to_the_end(tmp_path / "again", cars), reference)
    other = run_to_the_end(tmp_path / "other", cars, seed=1)
    assert not torch.equal(
        other.checkpoint.network["head.weight"], reference.checkpoint.network["head.weight"]
    )


def replace_classes(root: Path, folder: str, names: list[str]) -> None:
    for name in names:
        shutil.rmtree(root / folder / name)
        write_class(root / folder / name, 1000 + int(name[-1]), PER_CLASS - 1)


def test_test_classes_never_influence_what_is_learned(
    cars: Path, tmp_path: Path, reference: Outcome
) -> None:
    data = Path(shutil.copytree(cars, tmp_path / "data"))
    replace_classes(data, "test", ["car-6", "car-7"])
    assert_same_course(run_to_the_end(tmp_path / "other test", data), reference)
    shutil.rmtree(data / "test")
    alone = run_to_the_end(tmp_path / "no test", data)
    # Classes held out judge then, and have no part in the whitening, which is all that differs.
    assert alone.exported is not None and reference.exported is not None
    for name in ("projection.weight", "projection.bias"):
        assert not torch.equal(alone.exported[name], reference.exported[name])
        alone.exported[name] = reference.exported[name]
    assert_same_course(alone, reference)


def test_classes_held_out_never_influence_the_weights(
    cars: Path, tmp_path: Path, reference: Outcome
) -> None:
    data = Path(shutil.copytree(cars, tmp_path / "data"))
    replace_classes(data, "train", ["car-4", "car-5"])
    other = run_to_the_end(tmp_path / "run", data)
    assert_same(other.checkpoint.network, reference.checkpoint.network)
    assert [line["loss"] for line in other.records()] == [
        line["loss"] for line in reference.records()
    ]


# Stopping


def interrupt_at(forwards: list[int], number: signal.Signals) -> Callable[..., EmbeddingNetwork]:
    """Stand in for ``build_network``: the signal comes during these forward passes, from 1."""
    build = trainer.build_network

    def network(settings: TrainSettings) -> EmbeddingNetwork:
        made = build(settings)
        count = 0

        def ring(*_: object) -> None:
            nonlocal count
            count += 1
            if count in forwards:
                signal.raise_signal(number)

        made.backbone.register_forward_hook(ring)
        return made

    return network


def stop_and_resume(
    run: Run, stops: list[int], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> Outcome:
    """Stop the run at these forward passes, each counted from where it was continued."""
    for forward in stops:
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "build_network", interrupt_at([forward], number))
            with pytest.raises(Stopped):
                go_on(run)
    return go_on(Run.open(run.path))


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([1], id="in the first pass of the first step"),
        pytest.param([FORWARDS_A_STEP + 4], id="in the second pass of the second step"),
        pytest.param([FORWARDS_A_STEP], id="at the end of a step"),
        pytest.param([FORWARDS_AN_EPOCH], id="at the end of an epoch"),
        pytest.param([FORWARDS_AN_EPOCH + 1], id="while validating"),
        pytest.param([FORWARDS_AN_EPOCH + 5, 2, 5, 9], id="again and again"),
    ],
)
def test_a_run_that_was_stopped_ends_as_if_it_never_was(
    cars: Path,
    tmp_path: Path,
    reference: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    stops: list[int],
) -> None:
    run = open_run(tmp_path / "run", cars)
    resumed = stop_and_resume(run, stops, monkeypatch, signal.SIGINT)
    assert_same_course(resumed, reference)


def test_dropout_and_batch_norm_go_on_as_if_nothing_had_been(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"backbone": "mobilenet_v3_small", "epochs": 1, "validation_classes": 0}
    network = Backbone("mobilenet_v3_small")
    assert any(isinstance(module, nn.Dropout) for module in network.modules())
    undisturbed = run_to_the_end(tmp_path / "undisturbed", cars, **settings)
    run = open_run(tmp_path / "stopped", cars, **settings)
    stopped = stop_and_resume(run, [8], monkeypatch, signal.SIGTERM)
    assert_same_course(stopped, undisturbed)


def test_a_stop_during_the_last_figures_loses_nothing(
    cars: Path, tmp_path: Path, reference: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    build = trainer.build_network
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer,
            "build_network",
            lambda s: (n := build(s), n.backbone.register_forward_hook(count))[0],
        )
        run_to_the_end(tmp_path / "counted", cars)
    run = open_run(tmp_path / "run", cars)
    # The last pass but one embeds the training photos, the last one the test photos.
    assert_same_course(stop_and_resume(run, [passes - 1], monkeypatch, signal.SIGINT), reference)


def test_a_signal_stops_the_network_at_its_next_pass_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    network = nn.Identity()
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(Stopped), stop_on_signals(network):
            network(1)
            signal.raise_signal(number)
            network(1)
    assert network(1) == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals(nn.Identity()):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # an impatient supervisor changes nothing
        signal.raise_signal(signal.SIGINT)


def command_line(data: Path, out: Path, **changed: Any) -> list[str]:
    options = []
    for name, value in (TINY | changed).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        else:
            options.append(f"--{option}={value}")
    return ["train", f"--data={data}", f"--out={out}", *options]


def dscl_stopped_by(
    number: signal.Signals, arguments: list[str], *, group: bool = False
) -> tuple[int, str]:
    """Exit status and stderr of a real process that gets the signal after its first epoch."""
    process = subprocess.Popen(
        [*DSCL, *arguments],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Epoch 1/"):
            (os.killpg if group else os.kill)(process.pid, number)
            break
    _, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, errors


#: Long enough not to be over before the signal arrives.
LONG = {"epochs": 25, "validation_classes": 0}


@pytest.fixture(scope="module")
def long(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_to_the_end(tmp_path_factory.mktemp("runs") / "long", cars, **LONG)


def test_ctrl_c_stops_a_run_and_its_workers_and_resume_ends_it_as_if_nothing_had_been(
    cars: Path, tmp_path: Path, long: Outcome
) -> None:
    out = tmp_path / "run"
    arguments = command_line(cars, out, **LONG, workers=1)
    status, errors = dscl_stopped_by(signal.SIGINT, arguments, group=True)
    assert status == 130, errors
    assert errors.splitlines()[-2:] == [
        f"Saved {out / 'checkpoints' / 'last.pt'} as of before this step.",
        f"Stopped. Continue with: dscl train --resume {out}",
    ]
    run = Run.open(out)
    assert 1 <= run.load().epoch < 25
    assert not run.model_folder.exists()
    # The number of workers does not matter, so the rest is done without.
    resumed = go_on(Run(out, TrainSettings.from_dict(run.settings.to_dict() | {"workers": 0})))
    assert_same_course(resumed, long)


def test_a_stopped_run_can_be_exported_as_it_is_and_resumed(
    cars: Path, tmp_path: Path, long: Outcome
) -> None:
    out = tmp_path / "run"
    status, errors = dscl_stopped_by(signal.SIGTERM, command_line(cars, out, **LONG))
    assert status == 130, errors
    assert f"dscl train --resume {out}" in errors
    result = CliRunner().invoke(dscl, ["export", "--run", str(out)], catch_exceptions=False)
    assert f"Exported {out / 'model'}" in result.output
    weights = load_file(out / "model" / "weights.safetensors")
    assert_same(weights, dict(Run.open(out).load().network))
    assert_same_course(go_on(Run.open(out)), long)


# Resuming


def resume(run: Path, *options: str) -> Any:
    return CliRunner().invoke(dscl, ["train", "--resume", str(run), *options])


def test_resume_with_other_settings_is_refused_with_what_differs(reference: Outcome) -> None:
    before = reference.run.checkpoint_file.stat().st_mtime_ns
    result = resume(reference.run.path, "--lr", "0.5", "--dim", "4", "--no-flip", "--out", "x")
    assert isinstance(result.exception, DsclError)
    message = str(result.exception)
    assert "flip (run: True, given: False), lr (run: 0.01, given: 0.5), out (" in message
    assert "dim" not in message
    assert reference.run.checkpoint_file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run folder: settings.json"),
        ("{", "is not a run folder: settings.json"),
        ('{"beta": 1}', "unknown settings: beta"),
    ],
)
def test_what_is_no_run_cannot_be_resumed(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    with pytest.raises(DsclError, match=message):
        Run.open(tmp_path)


def test_a_run_without_a_checkpoint_starts_anew_but_cannot_be_exported(
    cars: Path, tmp_path: Path, reference: Outcome
) -> None:
    run = open_run(tmp_path / "run", cars)
    with pytest.raises(RunError, match="has no checkpoint yet"):
        resume_network(run, echo=lambda _: None)
    assert_same_course(go_on(Run.open(run.path)), reference)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_named(cars: Path, tmp_path: Path, content: bytes) -> None:
    run = open_run(tmp_path / "run", cars)
    run.checkpoint_file.write_bytes(content)
    with pytest.raises(RunError, match=rf"{run.checkpoint_file} cannot be read"):
        go_on(run)


def test_out_that_holds_something_is_refused(tmp_path: Path, reference: Outcome) -> None:
    (tmp_path / "file").touch()
    for taken in (reference.run.path, tmp_path / "file"):
        with pytest.raises(RunError, match=rf"{taken} exists already.*--resume {taken}"):
            Run.create(taken, TrainSettings())
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", TrainSettings())


def test_out_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(
        dscl, ["train", "--data", "nowhere", "--out", str(tmp_path / "file" / "run")]
    )
    assert isinstance(result.exception, RunError)
    assert f"{tmp_path / 'file' / 'run'} cannot be written: Not a directory." in str(
        result.exception
    )


# Divergence


def test_a_rate_that_is_too_high_ends_with_where_it_happened(cars: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", cars, lr=1e30, backbone_lr=1e30, warmup=0)
    with pytest.raises(NonFiniteError) as caught:
        go_on(run)
    assert str(caught.value).startswith("epoch 1, step 2, classes car-0, car-1, car-2, car-3: ")
    assert "lower --lr and --backbone-lr" in str(caught.value)
    assert (run.load().epoch, run.load().step) == (0, 1)


def test_a_gradient_that_is_not_finite_leaves_the_last_good_step(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = trainer.backward
    steps = 0

    def spoilt(network: nn.Module, *arguments: Any, **options: Any) -> Tensor:
        nonlocal steps
        steps += 1
        value = sound(network, *arguments, **options)
        if steps == 4:
            assert isinstance(network, EmbeddingNetwork) and network.head.bias.grad is not None
            network.head.bias.grad[0] = torch.inf
        return value

    run = open_run(tmp_path / "run", cars)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "backward", spoilt)
        with pytest.raises(NonFiniteError, match=r"epoch 2, step 2, .* norm of its gradient inf"):
            go_on(run)
    kept = open_run(tmp_path / "stopped", cars)
    # Two epochs' passes, and those of two validations' photos: one for each part.
    with monkeypatch.context() as patch:
        forward = FORWARDS_AN_EPOCH + 2 + FORWARDS_A_STEP + 1
        patch.setattr(trainer, "build_network", interrupt_at([forward], signal.SIGINT))
        with pytest.raises(Stopped):
            go_on(kept)
    for name, value in vars(kept.load()).items():
        assert_same(getattr(run.load(), name), value)


# Data


def test_photos_that_cannot_be_read_are_left_out_and_told(
    cars: Path, tmp_path: Path, reference: Outcome
) -> None:
    data = Path(shutil.copytree(cars, tmp_path / "data"))
    for broken in (data / "train" / "car-0" / "x.jpg", data / "test" / "car-6" / "y.jpg"):
        broken.write_bytes(encoded(picture(0))[:-200])
    outcome = run_to_the_end(tmp_path / "run", data)
    assert_same_course(outcome, reference)
    said = "\n".join(outcome.said)
    assert f"Skipped {data}/train/car-0/x.jpg: " in said
    assert "Skipped 1 of 37 train photos." in said
    assert "Skipped 1 of 13 test photos." in said


def test_a_class_that_loses_all_but_one_photo_cannot_train(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo(tmp_path / "train" / name / "0.jpg", 0)
        write_photo(tmp_path / "train" / name / "1.jpg", 1)
    (tmp_path / "train" / "b" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 training class has one photo only: b"):
        go_on(open_run(tmp_path / "run", tmp_path, validation_classes=0))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/0", "a/1"], "one class only"),
        (["a/0", "a/1", "b/0"], "1 training class has one photo only: b"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(
    tmp_path: Path, files: list[str], message: str
) -> None:
    for number, name in enumerate(files):
        write_photo(tmp_path / "train" / f"{name}.jpg", number)
    with pytest.raises(DataError, match=message):
        go_on(open_run(tmp_path / "run", tmp_path, validation_classes=0))


def test_a_batch_that_cannot_train_so_many_dimensions_is_refused(
    cars: Path, tmp_path: Path
) -> None:
    # 4 classes × 3 photos of a batch of 14 are 12.
    run = open_run(tmp_path / "run", cars, dim=12, batch_size=14, validation_classes=0)
    with pytest.raises(DsclError, match="batch of 12 images cannot train a 12-dimensional"):
        go_on(run)


def test_without_classes_held_out_all_train_and_no_recall_is_watched(
    cars: Path, tmp_path: Path
) -> None:
    outcome = run_to_the_end(tmp_path / "run", cars, validation_classes=0, epochs=1)
    assert "36 photos of 6 classes, 0 photos of 0 classes held out" in "\n".join(outcome.said)
    [line] = outcome.records()
    assert line.keys() == {"epoch", "loss", "random_level"}


def test_a_tenth_of_the_classes_is_held_out_unless_told_otherwise(tmp_path: Path) -> None:
    for label in range(8):
        write_class(tmp_path / "train" / str(label), label, 2)
    outcome = run_to_the_end(tmp_path / "run", tmp_path, validation_classes=None, epochs=1)
    assert "12 photos of 6 classes, 4 photos of 2 classes held out" in "\n".join(outcome.said)
    shutil.rmtree(tmp_path / "train" / "7")
    outcome = run_to_the_end(tmp_path / "few", tmp_path, validation_classes=None, epochs=1)
    assert "14 photos of 7 classes, 0 photos of 0 classes held out" in "\n".join(outcome.said)


# Settings at work


def initial(settings: TrainSettings) -> dict[str, Tensor]:
    torch.manual_seed(settings.seed)
    return copy.deepcopy(build_network(settings).state_dict())


def changed(outcome: Outcome) -> set[str]:
    before = initial(outcome.run.settings)
    after = outcome.checkpoint.network
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scales(
    cars: Path, tmp_path: Path, reference: Outcome
) -> None:
    frozen = changed(run_to_the_end(tmp_path / "run", cars, batch_norm="frozen", epochs=1))
    statistics = {name for name in changed(reference) if "running_" in name}
    assert len(statistics) == 10
    assert frozen.isdisjoint(statistics)
    assert "backbone.network.features.0.1.weight" in frozen
    assert "head.weight" in frozen


def test_frozen_parameters_stay_to_the_bit(cars: Path, tmp_path: Path) -> None:
    outcome = run_to_the_end(
        tmp_path / "run", cars, freeze_until="features.4", weight_decay=1.0, epochs=1
    )
    learned = {name for name in changed(outcome) if "running_" not in name and "num_" not in name}
    parts = {name.removeprefix("backbone.network.")[:10] for name in learned}
    assert parts == {"features.4", "features.6", "features.8", "head.weigh", "head.bias"}


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    assert schedule(0, 0.2) == pytest.approx(0.05)
    assert schedule(0.1, 0.2) == pytest.approx(0.525)
    assert schedule(0.2, 0.2) == pytest.approx(1)
    assert schedule(0.4, 0.2) == pytest.approx((1 + 2**-0.5) / 2)
    assert schedule(0.6, 0.2) == pytest.approx(0.5)
    assert schedule(1, 0.2) == pytest.approx(0)
    assert schedule(0, 0) == 1
    assert schedule(0.999, 1) == pytest.approx(0.999, abs=1e-3)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Machine.choose(TrainSettings()).device.type == "cpu"
    with pytest.raises(DsclError, match="--device is cuda, and torch finds no CUDA device"):
        Machine.choose(TrainSettings(device="cuda"))


def test_workers_load_for_embedding_too(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_to_the_end(tmp_path / "done", cars, epochs=1)
    asked: list[int] = []

    def here(*arguments: Any, workers: int, **options: Any) -> Any:
        asked.append(workers)
        return in_order(*arguments, **options)

    monkeypatch.setattr("training.embed.in_order", here)
    monkeypatch.setattr(trainer, "batches", lambda *_, **__: iter(()))  # nothing to learn
    run = open_run(tmp_path / "run", cars, workers=3, epochs=1)
    run.save(done.checkpoint)
    go_on(run)
    # Training and held-out photos to validate, training and test photos at the end.
    assert asked == [3] * 4
