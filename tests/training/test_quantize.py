"""The int8 graph beside the fp32 one: what it is, how near it stays, and what its card says."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper

from index.errors import InvalidArgumentError, ModelError
from index.files import sha256_file
from index.metrics import evaluate
from index.model import CARD_FILE, GRAPH_FILE, Model, ModelCard
from tests.photos import picture, write_photo
from tests.training.test_trainer import open_run
from tests.training.tiny_runs import SIDE, end, write_cars, write_weights
from training.augment import PhotoLoader
from training.backbones import Backbone
from training.commands import export as export_command
from training.data import Photos, load_dataset
from training.export import WEIGHTS_FILE, export
from training.finish import finish
from training.inference import InferenceNetwork
from training.preparation import resume_network
from training.quantize import (
    CALIBRATION_PHOTOS,
    INT8_FILE,
    QuantizationError,
    add_int8,
    calibration_photos,
    measure,
)
from training.whitening import Whitening


def photos(n: int, *, first: int = 0) -> NDArray[np.uint8]:
    pictures = [np.asarray(picture(first + i, height=SIDE, width=SIDE)) for i in range(n)]
    return np.stack(pictures).transpose(0, 3, 1, 2).copy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whitened backbone in fp32."""
    torch.manual_seed(0)
    backbone = Backbone("small_cnn")
    with torch.no_grad():
        backbone.train()(torch.from_numpy(photos(64)))
        features = backbone.eval()(torch.from_numpy(photos(64)))
    network = InferenceNetwork.frozen(backbone, Whitening.fit(features, dim=8))
    path = tmp_path_factory.mktemp("models") / "model"
    export(network, path, name="car", height=SIDE, width=SIDE, resize="squash", facts={})
    return path


@pytest.fixture(scope="module")
def quantized(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shutil.copytree(exported, tmp_path_factory.mktemp("models") / "model")
    add_int8(path, photos(32))
    return path


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cars(tmp_path_factory.mktemp("data") / "cars")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cosines(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of int8 and fp32 vectors."""
    exact, int8 = Model.load(path), Model.load(path, precision="int8")
    found: NDArray[np.float32] = (exact.embed(pixels) * int8.embed(pixels)).sum(axis=1)
    return found


# The graph


def test_int8_stays_near_fp32_on_photos_it_was_not_calibrated_on(quantized: Path) -> None:
    pixels = photos(40, first=500)
    found = Model.load(quantized, precision="int8").embed(pixels)
    assert cosines(quantized, pixels).min() > 0.97
    assert not np.allclose(found, Model.load(quantized).embed(pixels), rtol=0, atol=1e-4)
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=0, atol=1e-6)


def test_convolutions_have_seven_bits_and_a_scale_for_each_channel(quantized: Path) -> None:
    graph = onnx.load(quantized / INT8_FILE).graph
    values = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for convolution in convolutions:
        photo, weight = (made_by[name] for name in convolution.input[:2])
        assert photo.op_type == weight.op_type == "DequantizeLinear"
        weights, scales = (values[name] for name in weight.input[:2])
        assert weights.dtype == np.int8
        assert np.abs(weights.astype(int)).max() <= 64
        assert scales.shape == (len(weights),)
        assert values[photo.input[2]].dtype == np.uint8


def test_ranges_are_those_of_the_photos_given(quantized: Path, folder: Path) -> None:
    """Calibrated on photos that are nearly black, it cannot tell bright ones apart."""
    add_int8(folder, photos(32) // 16)
    pixels = photos(40, first=500)
    assert cosines(folder, pixels).mean() < cosines(quantized, pixels).mean() - 0.05


def test_a_batch_of_any_size_gives_the_same_vectors(quantized: Path) -> None:
    int8, pixels = Model.load(quantized, precision="int8"), photos(7, first=500)
    alone = np.concatenate([int8.embed(pixels[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(int8.embed(pixels), alone, rtol=0, atol=1e-6)


# The folder


def test_all_else_in_the_folder_stays(exported: Path, quantized: Path) -> None:
    before, after = contents(exported), contents(quantized)
    assert set(after) == {*before, INT8_FILE}
    assert {name for name in before if before[name] != after[name]} == {CARD_FILE}
    card, old = ModelCard.read(quantized / CARD_FILE), ModelCard.read(exported / CARD_FILE)
    assert old == dataclasses.replace(card, precisions={})
    assert card.sha256 == old.sha256 == sha256_file(quantized / GRAPH_FILE)
    assert card.precisions["int8"].sha256 == sha256_file(quantized / INT8_FILE)
    assert [path.name for path in quantized.parent.iterdir()] == ["model"]


def test_the_card_tells_how_near_it_is_and_what_was_measured(folder: Path) -> None:
    seen = []

    def measured(model: Model) -> dict[str, Any]:
        seen.append((model.precision, model.embed(photos(2))))
        return {"recall": {"1": 0.25}}

    card = add_int8(folder, photos(32), measured=measured)
    assert ModelCard.read(folder / CARD_FILE) == card
    figures = card.precisions["int8"].metrics
    assert figures.pop("cosine") == pytest.approx(cosines(folder, photos(32)).mean(), abs=1e-6)
    assert figures == {"recall": {"1": 0.25}}
    [(precision, vectors)] = seen
    assert precision == "int8"
    assert np.array_equal(vectors, Model.load(folder, precision="int8").embed(photos(2)))


def test_another_calibration_takes_the_place_of_the_first(quantized: Path, tmp_path: Path) -> None:
    path = shutil.copytree(quantized, tmp_path / "model")
    card = add_int8(path, photos(8, first=300))
    assert list(card.precisions) == ["int8"]
    assert sha256_file(path / INT8_FILE) == card.precisions["int8"].sha256
    assert card.precisions["int8"].sha256 != sha256_file(quantized / INT8_FILE)
    Model.load(path, precision="int8")


def test_a_failure_leaves_everything_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)

    def fail(model: Model) -> dict[str, Any]:
        raise InvalidArgumentError("no labels")

    with pytest.raises(InvalidArgumentError, match="no labels"):
        add_int8(folder, photos(8), measured=fail)
    with pytest.raises(InvalidArgumentError, match="photos to calibrate on"):
        add_int8(folder, photos(8)[:0])
    with pytest.raises(InvalidArgumentError, match=r"the model takes uint8 \[n, 3, 32, 32\]"):
        add_int8(folder, photos(8)[:, :, :16])
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ModelError, match="not a model folder"):
        add_int8(tmp_path / "nowhere", photos(8))


def test_what_cannot_be_quantised_says_what_is_left_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("unsupported operator")

    monkeypatch.setattr("training.quantize.quantize_static", fail)
    with pytest.raises(QuantizationError, match=r"unsupported operator\. Use it in fp32"):
        add_int8(folder, photos(8))
    assert not (folder / INT8_FILE).exists()


# Figures


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("asked", [None, np.arange(30) % 5 == 0])
def test_figures_are_those_of_all_vectors_together(
    quantized: Path, precision: Any, asked: NDArray[np.bool_] | None
) -> None:
    model, pixels = Model.load(quantized, precision=precision), photos(30)
    labels = np.arange(30) // 3 % 4
    expected = evaluate(model.embed(pixels), labels, queries=asked)
    assert measure(model, np.split(pixels, [7, 20]), labels, queries=asked) == expected
    assert 0 < expected.recall[1] < 1


def test_calibration_photos_are_spread_over_the_classes_as_serving_sees_them(cars: Path) -> None:
    train = load_dataset(cars).train
    loader = PhotoLoader(train, height=SIDE, width=SIDE, mode="squash")
    few = calibration_photos(loader)
    assert few.shape == (len(train), 3, SIDE, SIDE)
    assert np.array_equal(few[3], loader[3, 0].numpy())
    again = Photos(
        paths=tuple(path for path in train.paths for _ in range(20)),
        labels=np.repeat(train.labels, 20),
        classes=train.classes,
    )
    many = calibration_photos(PhotoLoader(again, height=SIDE, width=SIDE, mode="squash"))
    assert len(many) == CALIBRATION_PHOTOS < len(again)
    assert {photo.tobytes() for photo in many} == {photo.tobytes() for photo in few}


# dscl export --int8


def test_a_run_is_exported_in_int8_with_its_recall_beside(cars: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.safetensors", cars)
    run = open_run(tmp_path / "run", cars, weights=str(weights), epochs=1)
    end(run)
    said: list[str] = []
    card = finish(run, *resume_network(run, echo=said.append), int8=True, echo=said.append)
    assert card == ModelCard.read(run.model_folder / CARD_FILE)
    test = load_dataset(cars).test
    assert test is not None
    int8 = Model.load(run.model_folder, precision="int8")
    pixels = np.stack([int8.prepare(path) for path in test.paths])
    expected = evaluate(int8.embed(pixels), test.labels)
    figures = card.precisions["int8"].metrics
    assert figures["recall"] == {str(k): value for k, value in expected.recall.items()}
    assert figures["map_at_r"] == expected.map_at_r
    assert figures.keys() == {*card.metrics, "cosine"}
    assert any(f"Test ({card.protocol}), int8: R@1 " in line for line in said)
    assert (run.model_folder / WEIGHTS_FILE).exists()


def invoke(*arguments: str | Path) -> Any:
    typed = ["--backbone", "small_cnn", "--weights", "none", "--size", "32", "--int8", *arguments]
    return CliRunner().invoke(export_command, [str(argument) for argument in typed])


def test_a_frozen_backbone_is_calibrated_on_the_photos_it_is_whitened_with(tmp_path: Path) -> None:
    for seed in range(30):
        write_photo(tmp_path / "street" / f"{seed}.jpg", seed)
    out = tmp_path / "model"
    result = invoke("--whiten-on", tmp_path / "street", "--dim", "6", "--out", out)
    assert result.exit_code == 0, result.output
    exact = Model.load(out)
    pixels = np.stack([exact.prepare(file) for file in (tmp_path / "street").iterdir()])
    found = cosines(out, pixels)
    assert found.mean() > 0.95
    assert f"Added int8: mean cosine similarity to fp32 is {found.mean():.3f}." in result.output
    assert set(exact.card.precisions["int8"].metrics) == {"cosine"}


def test_int8_without_photos_to_calibrate_on_is_refused(tmp_path: Path) -> None:
    result = invoke("--out", tmp_path / "model")
    assert result.exit_code == 2
    assert "--int8 needs --whiten-on" in result.output
    assert list(tmp_path.iterdir()) == []
