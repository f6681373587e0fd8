"""Runs that take a second, and everything a test may want to know of them afterwards."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.training.test_trainer import CLASSES, TINY, open_run, write_class
from training import trainer
from training.augment import PhotoLoader, in_order
from training.backbones import Backbone
from training.data import Dataset, Photos, load_dataset
from training.inference import InferenceNetwork
from training.inputs import evaluation_loader, load
from training.network import EmbeddingNetwork
from training.preparation import build_network
from training.run import Run
from training.settings import TrainSettings
from training.trainer import train

#: Of the photos that tiny networks see, in pixels.
SIDE: int = TINY["size"]

#: What rounding does to weights stays small at these rates.
GENTLE: dict[str, Any] = {"lr": 2e-3, "backbone_lr": 5e-4}


def write_cars(root: Path) -> Path:
    """An easy set: 6 classes of 6 photos to train, 2 to test."""
    for label in range(CLASSES):
        write_class(root / "train" / f"car-{label}", label)
    for label in range(CLASSES, CLASSES + 2):
        write_class(root / "test" / f"car-{label}", label)
    return root


def write_weights(path: Path, cars: Path) -> Path:
    """Random weights of ``small_cnn`` with BatchNorm statistics of these photos, as if trained.

    With them BatchNorm is frozen, so that nothing depends on where a batch is cut into chunks, and
    rounding is small beside what tells photos apart.
    """
    torch.manual_seed(0)
    backbone = Backbone("small_cnn")
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    photos = load_dataset(cars).train
    images = PhotoLoader(photos, height=SIDE, width=SIDE, mode="squash")
    with torch.no_grad():
        backbone.train()(torch.stack([images[i, 0] for i in range(len(photos))]))
    save_file(backbone.network.state_dict(), path)
    return path


def write_table(path: Path, root: Path, splits: Callable[[str, int], str]) -> Path:
    """A CSV of the photos below ``root``; ``splits`` gets class and number of each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for photo in sorted(root.rglob("*.png")):
            label = photo.parent.name
            writer.writerow([photo, label, splits(label, int(photo.stem))])
    return path


@dataclass
class Finished:
    """A run at its end: what it said, and what it was about to export."""

    run: Run
    said: list[str] = field(default_factory=list)
    network: InferenceNetwork | None = None
    facts: dict[str, Any] = field(default_factory=dict)  #: of the model's card
    weights: dict[str, Tensor] = field(default_factory=dict)  #: kept for more training

    @property
    def settings(self) -> TrainSettings:
        return self.run.settings

    @property
    def losses(self) -> list[float]:
        """Of each epoch."""
        return [line["loss"] for line in self.run.metrics()]

    def data(self) -> Dataset:
        return load(self.settings, lambda _: None)

    def evaluation(self) -> dict[str, Any]:
        text = (self.run.evaluation_folder / "evaluation.json").read_text(encoding="utf-8")
        values: dict[str, Any] = json.loads(text)
        return values

    def saved(self, name: str) -> np.ndarray:
        values: np.ndarray = np.load(self.run.evaluation_folder / f"{name}.npy")
        return values

    def trained(self) -> EmbeddingNetwork:
        """Backbone and head with the weights that were kept."""
        network = build_network(self.settings)
        network.load_state_dict(self.weights)
        return network.eval()

    def embed(self, photos: Photos) -> np.ndarray:
        """What the model to be exported makes of them, float32 (n, d)."""
        assert self.network is not None
        return embedded(self.network, self.settings, photos)


def embedded(network: nn.Module, settings: TrainSettings, photos: Photos) -> np.ndarray:
    """Outputs of a network for photos as serving sees them, float32 (n, …)."""
    network.eval()
    with torch.inference_mode():
        parts = [network(images) for images in in_order(evaluation_loader(settings, photos),
                                                        batch_size=64)]  # fmt: skip
    return torch.cat(parts).numpy()


def end(run: Run) -> Finished:
    """Train to the end, but leave ONNX out, which takes longer than all the rest."""
    finished = Finished(run)

    def keep(
        network: InferenceNetwork,
        path: Path,
        *,
        facts: dict[str, Any],
        weights: dict[str, Tensor],
        **_: object,
    ) -> SimpleNamespace:
        finished.network, finished.facts, finished.weights = network.cpu(), facts, weights
        return SimpleNamespace(sha256="0" * 64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.finish.export", keep)
        train(run, echo=finished.said.append)
    return finished


def finished_run(path: Path, data: Path, **changed: Any) -> Finished:
    return end(open_run(path, data, **changed))


def untrained(settings: TrainSettings) -> EmbeddingNetwork:
    """The network that a run with these settings starts from."""
    torch.manual_seed(settings.seed)
    return build_network(settings)


@contextmanager
def watched(watch: Callable[[EmbeddingNetwork], object]) -> Iterator[None]:
    """Within, each run hands over its network before its first step."""
    build = trainer.build_network

    def built(settings: TrainSettings) -> EmbeddingNetwork:
        network = build(settings)
        watch(network)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_network", built)
        yield


def assert_same_but_for_rounding(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    start: dict[str, Tensor],
    tolerance: float = 1e-4,
) -> None:
    """Each tensor within ``tolerance`` of its own length; learning changed matrices far more."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        off = torch.linalg.vector_norm(found[name].double() - value.double())
        length = torch.linalg.vector_norm(value.double())
        assert off <= tolerance * length, f"{name} is off by {off / length:.1e} of its length"
        if value.ndim > 1:
            moved = torch.linalg.vector_norm(start[name].double() - value.double())
            assert moved > 50 * tolerance * length, f"{name} moved by {moved / length:.1e}"


def learned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but the head's bias, which DSCL does not see: what moves it is rounding alone."""
    return {name: value for name, value in weights.items() if name != "head.bias"}
