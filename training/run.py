"""The run folder: settings, metrics, checkpoints, TensorBoard events and the exported model.

settings.json      what the run was told
run.json           the command, versions and machine
metrics.jsonl      a line an epoch
baseline.json      figures of the backbone before training
checkpoints/       last.pt: everything that resuming needs; best.pt: weights of the best epoch
tensorboard/       the same scalars, live
model/             the exported model folder
evaluation/        figures, embeddings and labels of the photos that judged it
report.html        all of it to look at
"""

from __future__ import annotations

import datetime
import importlib.metadata
import io
import json
import os
import pickle
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from index.errors import DsclError
from index.files import write_atomically
from training.settings import TrainSettings

__all__ = ["Best", "Checkpoint", "Run", "RunError"]

#: Whose versions can change what a run computes.
PACKAGES = ("dscl-retrieval", "torch", "torchvision", "pytorch-metric-learning", "numpy", "pillow")


class RunError(DsclError):
    """A run folder that cannot be made, found or continued."""

    code = "run_invalid"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state between two steps. ``epoch`` is under way and has ``step`` steps behind it."""

    epoch: int
    step: int
    losses: list[float]  #: of those steps
    network: dict[str, Any]
    optimizer: dict[str, Any]
    criterion: dict[str, Any]  #: the loss's proxies
    average: dict[str, Any] | None  #: the running average of the weights, if one is kept


@dataclass(frozen=True)
class Best:
    """The weights that judged best on the held-out classes so far."""

    epoch: int  #: counted from 1
    map_at_r: float
    network: dict[str, Any]


State = TypeVar("State", Checkpoint, Best)


class Run:
    """One run folder."""

    def __init__(self, path: Path, settings: TrainSettings) -> None:
        """Use ``create`` or ``open``."""
        self.path = path
        self.settings = settings

    @classmethod
    def create(
        cls,
        path: Path,
        settings: TrainSettings,
        *,
        command: str | None = None,
        preset: str | None = None,
    ) -> Run:
        """Make a run folder; what cannot be written is found out now, not an hour in.

        Args:
            path: the run folder.
            settings: of the run.
            command: what the user typed.
            preset: the preset that ``settings`` came from.

        Raises:
            RunError: the folder holds something, or cannot be written to.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path} exists already: name a new folder with --out, or continue that run with "
                f"--resume {path}."
            )
        run = cls(path, settings)
        there = path.exists()
        try:
            run.checkpoint_file.parent.mkdir(parents=True)
            _write_json(path / "settings.json", settings.to_dict())
            facts = {
                "command": command,
                "preset": preset,
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "platform": platform.platform(),
                "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            }
            _write_json(path / "run.json", facts)
        except OSError as error:
            # Half a run folder could neither be continued nor made anew.
            shutil.rmtree(path, ignore_errors=True)
            if there:
                path.mkdir(exist_ok=True)
            raise RunError(f"{path} cannot be written: {error.strerror}.") from error
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run folder.

        Raises:
            RunError: not a run folder.
        """
        try:
            values = json.loads((path / "settings.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not a run folder: settings.json: {error}.") from error
        return cls(path, TrainSettings.from_dict(values))

    def keep_settings(self) -> None:
        """Keep the settings that were changed since the run was made."""
        _write_json(self.path / "settings.json", self.settings.to_dict())

    def note_device(self, device: str) -> None:
        """Keep with the run what it computes on."""
        file = self.path / "run.json"
        facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        _write_json(file, facts | {"device": device})

    def reserve(self, size: int) -> None:
        """Make sure that ``size`` bytes can be written, by doing so.

        Raises:
            RunError: they cannot; says why.
        """
        try:
            with tempfile.TemporaryFile(dir=self.checkpoint_file.parent) as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise RunError(
                f"{self.path} has no room for the {size / 1e6:.0f} MB that checkpoints and model "
                f"take ({error.strerror}): make room, or name another place with --out."
            ) from error

    @property
    def checkpoint_file(self) -> Path:
        """Where the last checkpoint lies."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def model_folder(self) -> Path:
        """Where the exported model lies."""
        return self.path / "model"

    @property
    def evaluation_folder(self) -> Path:
        """Where the figures of the finished model lie, and what they were computed from."""
        return self.path / "evaluation"

    @property
    def tensorboard_folder(self) -> Path:
        """Where TensorBoard's event files lie."""
        return self.path / "tensorboard"

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the last checkpoint, atomically."""
        _write(self.checkpoint_file, checkpoint)

    def save_best(self, best: Best) -> None:
        """Replace the best weights, atomically."""
        _write(self._best_file, best)

    def best(self) -> Best | None:
        """The best weights so far, if the run keeps them and has got that far.

        Raises:
            RunError: they cannot be read.
        """
        return _read(self._best_file, Best) if self._best_file.exists() else None

    def load(self) -> Checkpoint:
        """The last checkpoint.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        if not self.checkpoint_file.exists():
            raise RunError(
                f"{self.path} has no checkpoint yet: it stopped before its first step was done. "
                "Remove the folder and start again."
            )
        return _read(self.checkpoint_file, Checkpoint)

    def log(self, figures: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self._metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        if not self._metrics_file.exists():
            return []
        lines = self._metrics_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def forget_metrics(self, *, from_epoch: int) -> None:
        """Drop the lines of epochs that will be done (again), so that none stands twice."""
        kept = [line for line in self.metrics() if line["epoch"] <= from_epoch]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self._metrics_file, text.encode())

    @property
    def _best_file(self) -> Path:
        return self.checkpoint_file.with_name("best.pt")

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"


def _write(file: Path, state: Checkpoint | Best) -> None:
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    write_atomically(file, buffer.getvalue())


def _read(file: Path, kind: type[State]) -> State:
    try:
        return kind(**torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(f"{file} cannot be read: {error}.") from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
