"""Model folder → the same folder with an int8 graph in it, and what that does to its figures.

Weights and activations become 8-bit numbers; the ranges of activations are measured on calibration
photos. What reads and runs the graph is ``index.model``.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from index.errors import DsclError, InvalidArgumentError
from index.files import replace_folder, sha256_file
from index.metrics import RetrievalMetrics, evaluate
from index.model import CARD_FILE, GRAPH_FILE, LowerPrecision, Model, ModelCard
from training.augment import PhotoLoader
from training.evaluation import KS

__all__ = ["INT8_FILE", "QuantizationError", "add_int8", "calibration_photos", "measure"]

INT8_FILE = "model.int8.onnx"

#: Enough to see the range of every activation; more of them change little.
CALIBRATION_PHOTOS = 200

#: Photos in one pass of the calibration, which keeps every activation's extremes.
BATCH = 8


class QuantizationError(DsclError):
    """The graph cannot be quantised, or gives no embeddings when it is."""

    code = "export_int8"


def calibration_photos(loader: PhotoLoader) -> NDArray[np.uint8]:
    """At most ``CALIBRATION_PHOTOS`` photos spread over all classes, uint8 [n, 3, h, w]."""
    count = min(len(loader), CALIBRATION_PHOTOS)
    positions = np.linspace(0, len(loader) - 1, count).astype(int)
    return np.stack([loader[int(position), 0].numpy() for position in positions])


def add_int8(
    path: Path,
    photos: NDArray[np.uint8],
    *,
    measured: Callable[[Model], dict[str, Any]] | None = None,
) -> ModelCard:
    """Put an int8 graph into a model folder, which changes as a whole or not at all.

    Args:
        path: the model folder; an earlier int8 graph in it is replaced.
        photos: uint8 [n, 3, h, w], photos like those that will be embedded, to calibrate on.
        measured: figures of the int8 model for its card, beside the fp32 model's.

    Returns:
        The new card. ``precisions["int8"].metrics`` holds what ``measured`` gave and ``cosine``,
        the mean similarity of int8 and fp32 vectors of the calibration photos.

    Raises:
        InvalidArgumentError: no photos, or photos that the model does not take.
        ModelError: no model folder.
        QuantizationError: the graph cannot be quantised, or gives no embeddings when it is.
    """
    exact = Model.load(path, runtime="onnxruntime")
    if len(photos) == 0:
        raise InvalidArgumentError("int8 needs photos to calibrate on; there are none.")
    expected = exact.embed(photos)
    with replace_folder(path) as fresh:
        shutil.copytree(path, fresh, dirs_exist_ok=True)
        _quantize(path / GRAPH_FILE, fresh / INT8_FILE, photos)
        _write_card(fresh, exact.card, {})
        model = Model.load(fresh, precision="int8")
        cosines = (model.embed(photos) * expected).sum(axis=1)
        if not np.isfinite(cosines).all():
            raise QuantizationError(f"the int8 graph of {path} gives vectors that are not finite.")
        figures = {} if measured is None else measured(model)
        return _write_card(fresh, exact.card, figures | {"cosine": float(cosines.mean())})


def measure(
    model: Model,
    batches: Iterable[NDArray[np.uint8]],
    labels: ArrayLike,
    *,
    queries: NDArray[np.bool_] | None = None,
) -> RetrievalMetrics:
    """Judge a model, in the precision it was loaded with, by labelled photos.

    Args:
        model: the model.
        batches: the n photos in order, uint8 [b, 3, h, w] each.
        labels: integers or strings [n].
        queries: see ``index.metrics.evaluate``.

    Raises:
        InvalidArgumentError: photos that the model does not take, or see ``evaluate``.
    """
    embeddings = np.concatenate([model.embed(batch) for batch in batches])
    return evaluate(embeddings, labels, ks=KS, queries=queries)


class _Photos(CalibrationDataReader):
    """Calibration photos, a batch at a time."""

    def __init__(self, photos: NDArray[np.uint8]) -> None:
        starts = range(0, len(photos), BATCH)
        self._batches = iter([photos[start : start + BATCH] for start in starts])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch as the graph's input; None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def _quantize(graph: Path, out: Path, photos: NDArray[np.uint8]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix="dscl-int8-") as folder:
            prepared = Path(folder) / GRAPH_FILE
            # Shapes come with the exported graph.
            quant_pre_process(graph, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                out,
                _Photos(photos),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                # Weights of 7 bits: on processors without VNNI, sums of 8-bit products overflow.
                # So all processors give the same vectors.
                reduce_range=True,
            )
    except Exception as error:  # the library raises whatever its parts do
        raise QuantizationError(
            f"{graph} cannot be quantised: {error}. Use it in fp32, or report its backbone and the "
            "versions of onnx and onnxruntime."
        ) from error


def _write_card(folder: Path, card: ModelCard, metrics: dict[str, Any]) -> ModelCard:
    int8 = LowerPrecision(file=INT8_FILE, sha256=sha256_file(folder / INT8_FILE), metrics=metrics)
    card = dataclasses.replace(card, precisions=card.precisions | {"int8": int8})
    (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return card
