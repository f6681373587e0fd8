"""What a run folder says about its run, checked and typed.

Only reading lives here. A run may be under way or stopped: apart from ``settings.json``, which is
there from the first second, everything may be missing, and is then ``None`` or empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.errors import DsclError

__all__ = ["Embedded", "Epoch", "Evaluation", "Figures", "ReportError", "RunRecord", "read_run"]

T = TypeVar("T")

#: ``trained``: the exported embedding; ``other``: another one that the same training left behind.
RowKind = Literal["trained", "other", "frozen", "transductive"]


class ReportError(DsclError):
    """A folder that is no run folder, or a file in it that cannot be read."""

    code = "report_invalid"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A line of ``metrics.jsonl``."""

    epoch: int  #: from 1
    loss: float
    random_level: float | None  #: loss of a random embedding; None where the loss has no such floor
    images_per_s: float | None
    recall: dict[int, float]  #: on held-out training classes; empty without any
    map_at_r: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A row of ``evaluation.json``: one way to embed the same photos, and how well it retrieves."""

    name: str
    kind: RowKind
    recall: dict[int, float]
    r_precision: float
    map_at_r: float
    nmi: float | None
    queries: int
    skipped: int


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The evaluated embedding itself.

    Attributes:
        embeddings: float32 (n, d), unit rows.
        labels: int64 (n,), indices into the classes.
        queries: bool (n,), the rows that are queries, the others being the gallery; None if each
            row is a query against all others.
    """

    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    queries: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """``evaluation/``: figures on classes that training did not see, and what they were taken on.

    Attributes:
        protocol: name of the protocol; figures of different protocols do not compare.
        classes: names of the c classes.
        paths: the n photos.
        boxes: left, top, right, bottom of the part of each photo that was used; None for all of it.
        rows: the trained embedding first.
        embedded: None if no embeddings were saved.
    """

    protocol: str
    classes: list[str]
    paths: list[Path]
    boxes: NDArray[np.float64] | None
    rows: list[Figures]
    embedded: Embedded | None

    @property
    def trained(self) -> Figures:
        """The figures of what was trained."""
        return self.rows[0]

    @property
    def frozen(self) -> Figures | None:
        """The figures of the backbone before training."""
        return next((row for row in self.rows if row.kind == "frozen"), None)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that a report tells about a run."""

    path: Path
    settings: dict[str, Any]
    command: str | None
    started: str | None
    device: str | None
    platform: str | None
    preset: str | None
    versions: dict[str, str]
    epochs: list[Epoch]
    evaluation: Evaluation | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def title(self) -> str:
        """Backbone and size of the embedding, as far as they are known."""
        backbone = str(self.settings.get("backbone") or self.name)
        dim = self.settings.get("dim")
        if self.evaluation is not None and self.evaluation.embedded is not None:
            dim = self.evaluation.embedded.embeddings.shape[1]
        return backbone if dim is None else f"{backbone}, {dim} values"

    @property
    def loss(self) -> str:
        """The loss that was asked for."""
        return str(self.settings.get("loss", "dscl"))


def read_run(path: Path) -> RunRecord:
    """Read a run folder, as far as the run has come.

    Raises:
        ReportError: not a run folder, or a file in it is damaged.
    """
    settings_file = path / "settings.json"
    if not settings_file.is_file():
        problem = "holds no settings.json" if path.is_dir() else "is no folder"
        raise ReportError(
            f"{path} {problem}, so it is not a run: name a folder that `dscl train --out` made."
        )
    facts: dict[str, Any] = _read_json(path / "run.json") if (path / "run.json").is_file() else {}
    return _parsed(
        path / "run.json",
        lambda: RunRecord(
            path=path,
            settings=dict(_read_json(settings_file)),
            command=facts.get("command"),
            started=facts.get("started"),
            device=facts.get("device"),
            platform=facts.get("platform"),
            preset=facts.get("preset"),
            versions={str(key): str(value) for key, value in facts.get("versions", {}).items()},
            epochs=_read_epochs(path / "metrics.jsonl"),
            evaluation=_read_evaluation(path / "evaluation"),
        ),
    )


def _read_epochs(file: Path) -> list[Epoch]:
    if not file.is_file():
        return []
    # The run may be writing its next line right now: what follows the last line's end is no line.
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return _parsed(file, lambda: [_epoch(json.loads(line)) for line in lines])


def _epoch(line: dict[str, Any]) -> Epoch:
    return Epoch(
        epoch=int(line["epoch"]),
        loss=float(line["loss"]),
        random_level=_optional(line.get("random_level")),
        images_per_s=_optional(line.get("images_per_s")),
        recall=_recall(line.get("recall") or {}),
        map_at_r=_optional(line.get("map_at_r")),
    )


def _read_evaluation(folder: Path) -> Evaluation | None:
    file = folder / "evaluation.json"
    if not file.is_file():
        return None
    evaluation = _parsed(file, lambda: _evaluation(_read_json(file), folder))
    n, c = len(evaluation.paths), len(evaluation.classes)
    boxes, embedded = evaluation.boxes, evaluation.embedded
    if boxes is not None and boxes.shape != (n, 4):
        raise ReportError(f"{file} has boxes {list(boxes.shape)} for {n} paths: expected [{n}, 4].")
    if embedded is None:
        return evaluation
    shapes = (
        ("embeddings.npy", embedded.embeddings, 2),
        ("labels.npy", embedded.labels, 1),
        ("queries.npy", embedded.queries, 1),
    )
    for name, array, axes in shapes:
        if array is not None and (array.ndim != axes or len(array) != n):
            raise ReportError(
                f"{folder / name} has shape {list(array.shape)}, and {file} names {n} photos: the "
                "files are of different runs. Evaluate the run again."
            )
    if n and (embedded.labels.min() < 0 or embedded.labels.max() >= c):
        raise ReportError(f"{folder / 'labels.npy'} has labels outside 0 … {c - 1}, the classes.")
    return evaluation


def _evaluation(values: dict[str, Any], folder: Path) -> Evaluation:
    rows = [_figures(row, first=position == 0) for position, row in enumerate(values["rows"])]
    if not rows:
        raise ReportError(f"{folder / 'evaluation.json'} has no rows: evaluate the run again.")
    boxes = values.get("boxes")
    return Evaluation(
        protocol=str(values["protocol"]),
        classes=[str(name) for name in values["classes"]],
        paths=[Path(path) for path in values["paths"]],
        boxes=None if boxes is None else np.asarray(boxes, np.float64),
        rows=rows,
        embedded=_read_embedded(folder),
    )


def _figures(row: dict[str, Any], *, first: bool) -> Figures:
    name = str(row["name"])
    kind: RowKind = "trained" if first else "other"
    if not first and "transductive" in name:
        kind = "transductive"
    elif not first and name.startswith("frozen"):
        kind = "frozen"
    return Figures(
        name=name,
        kind=kind,
        recall=_recall(row["recall"]),
        r_precision=float(row["r_precision"]),
        map_at_r=float(row["map_at_r"]),
        nmi=_optional(row.get("nmi")),
        queries=int(row["queries"]),
        skipped=int(row["skipped"]),
    )


def _read_embedded(folder: Path) -> Embedded | None:
    embeddings, labels, queries = (
        folder / f"{name}.npy" for name in ("embeddings", "labels", "queries")
    )
    if not (embeddings.is_file() and labels.is_file()):
        return None
    return Embedded(
        embeddings=_read_array(embeddings).astype(np.float32, copy=False),
        labels=_read_array(labels).astype(np.int64, copy=False),
        queries=_read_array(queries).astype(np.bool_) if queries.is_file() else None,
    )


def _recall(values: dict[str, Any]) -> dict[int, float]:
    return {int(k): float(value) for k, value in values.items()}


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _read_json(file: Path) -> dict[str, Any]:
    values = _parsed(file, lambda: json.loads(file.read_text(encoding="utf-8")))
    if not isinstance(values, dict):
        raise ReportError(f"{file} holds a {type(values).__name__}: expected a JSON object.")
    return values


def _read_array(file: Path) -> NDArray[Any]:
    array: NDArray[Any] = _parsed(file, lambda: np.load(file, allow_pickle=False))
    return array


def _parsed(file: Path, parse: Callable[[], T]) -> T:
    """Name the file in whatever goes wrong while its content is taken apart."""
    try:
        return parse()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{file} is damaged or of another release: {type(error).__name__}: {error}."
        ) from error
