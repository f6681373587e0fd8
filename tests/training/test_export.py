"""The exported graph, its card, and the folder that appears whole or not at all."""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

import training.export
from index.files import sha256_file
from index.model import CARD_FILE, GRAPH_FILE, Model, ModelCard
from tests.photos import picture
from tests.tiny_model import make_model_folder
from training.backbones import Backbone
from training.export import WEIGHTS_FILE, ParityError, check_parity, export
from training.inference import InferenceNetwork
from training.network import EmbeddingNetwork
from training.whitening import Whitening

SIDE = 32
DIM = 8
FACTS: dict[str, Any] = {
    "loss": "dscl",
    "dataset": "cars",
    "protocol": "folders 2/2",
    "metrics": {"recall": {"1": 0.5}},
    "settings": {"lr": 1e-3},
    "seed": 7,
}


def photos(n: int, *, first: int = 0) -> NDArray[np.uint8]:
    pictures = [np.asarray(picture(first + i, height=SIDE, width=SIDE)) for i in range(n)]
    return np.stack(pictures).transpose(0, 3, 1, 2).copy()


def embedded(network: nn.Module, pixels: NDArray[np.uint8]) -> Tensor:
    with torch.no_grad():
        result: Tensor = network.eval()(torch.from_numpy(pixels))
    return result


def write(network: InferenceNetwork, path: Path, **options: Any) -> ModelCard:
    return export(
        network, path, name="car", height=SIDE, width=SIDE, resize="pad", facts=FACTS, **options
    )


@dataclass
class Exported:
    network: EmbeddingNetwork
    whitening: Whitening
    path: Path
    card: ModelCard

    def __post_init__(self) -> None:
        self.model = Model.load(self.path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A network with statistics of its own in BatchNorm, whitened and exported."""
    torch.manual_seed(0)
    network = EmbeddingNetwork(Backbone("small_cnn"), DIM)
    nn.init.normal_(network.head.bias)
    network.train()(torch.from_numpy(photos(64)))
    whitening = Whitening.fit(embedded(network, photos(64)))
    path = tmp_path_factory.mktemp("models") / "model"
    inference = InferenceNetwork.trained(network, whitening)
    card = write(inference, path, weights=network.state_dict())
    return Exported(network, whitening, path, card)


@pytest.fixture
def graph_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporter write a sound graph that belongs to another network."""
    other = make_model_folder(tmp_path / "other", dim=DIM, size=SIDE) / GRAPH_FILE
    write_instead(monkeypatch, other)


def write_instead(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    """Let the exporter write ``graph`` as the model, and all else as it does."""
    real = training.export._write_graph

    def write_graph(network: nn.Module, example: Tensor, path: Path, *names: Any) -> None:
        if path.name == GRAPH_FILE:
            shutil.copyfile(graph, path)
        else:
            real(network, example, path, *names)

    monkeypatch.setattr("training.export._write_graph", write_graph)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The graph


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_graph_is_network_whitening_and_unit_length_one_after_the_other(
    exported: Exported, n: int
) -> None:
    pixels = photos(n, first=100)
    exact = copy.deepcopy(exported.network).double()
    expected = exported.whitening.apply(embedded(exact, pixels)).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = exported.model.embed(pixels)
    assert found.dtype == np.float32
    assert found.shape == (n, DIM)
    # float32 has 7 digits; the projection, steep where features hardly vary, costs almost two.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_an_embedding_does_not_depend_on_the_batch_it_is_in(exported: Exported) -> None:
    pixels = photos(5)
    alone = np.concatenate([exported.model.embed(pixels[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(exported.model.embed(pixels), alone, rtol=0, atol=1e-6)


def test_embeddings_have_unit_length_and_differ(exported: Exported) -> None:
    vectors = exported.model.embed(photos(5)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=1e-6)
    assert (vectors @ vectors.T)[~np.eye(5, dtype=bool)].max() < 0.99


def test_the_graph_takes_bytes_in_batches_of_any_size(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported.path / GRAPH_FILE)
    (pixels,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type) == ("pixels", "tensor(uint8)")
    assert (embedding.name, embedding.type) == ("embedding", "tensor(float)")
    assert pixels.shape == [embedding.shape[0], 3, SIDE, SIDE]
    assert isinstance(pixels.shape[0], str)
    assert embedding.shape[1] == DIM


def test_head_and_whitening_are_one_layer(exported: Exported) -> None:
    pixels = photos(6, first=50)
    expected = exported.whitening.apply(embedded(exported.network, pixels))
    inference = InferenceNetwork.trained(exported.network, exported.whitening)
    assert inference.projection is not None
    with torch.no_grad():
        found = inference.projection(embedded(exported.network.backbone, pixels))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_a_frozen_backbone_keeps_its_features_or_has_them_whitened() -> None:
    backbone, pixels = Backbone("small_cnn"), photos(40)
    features = embedded(backbone, pixels)
    plain = InferenceNetwork.frozen(backbone, None)
    assert plain.dim == backbone.features
    torch.testing.assert_close(embedded(plain, pixels), nn.functional.normalize(features))
    whitening = Whitening.fit(features, dim=6)
    whitened = InferenceNetwork.frozen(backbone, whitening)
    assert whitened.dim == 6
    expected = nn.functional.normalize(whitening.apply(features)).float()
    torch.testing.assert_close(embedded(whitened, pixels), expected, rtol=0, atol=5e-6)


# The folder


def test_the_card_says_what_the_model_is_and_how_it_was_made(exported: Exported) -> None:
    card = ModelCard.read(exported.path / CARD_FILE)
    assert card == exported.card == exported.model.card
    assert card.sha256 == sha256_file(exported.path / GRAPH_FILE)
    assert (card.name, card.backbone, card.dim) == ("car", "small_cnn", DIM)
    assert (card.height, card.width, card.resize) == (SIDE, SIDE, "pad")
    assert {name: getattr(card, name) for name in FACTS} == FACTS
    assert card.versions["torch"] == importlib.metadata.version("torch")
    assert card.versions["onnxruntime"] == onnxruntime.__version__
    assert card.created is not None
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(card.created)
    assert datetime.timedelta() <= age < datetime.timedelta(hours=1)


def test_the_folder_holds_graph_card_and_weights_and_can_be_read_by_all(
    exported: Exported,
) -> None:
    assert set(contents(exported.path)) == {
        GRAPH_FILE,
        CARD_FILE,
        WEIGHTS_FILE,
    }
    assert exported.card.regions is None  # the last map has one position, which explains nothing
    assert exported.path.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in exported.path.parent.iterdir()] == ["model"]


def test_the_weights_train_on(exported: Exported) -> None:
    again = EmbeddingNetwork(Backbone("small_cnn"), DIM)
    again.load_state_dict(load_file(exported.path / WEIGHTS_FILE))
    pixels = photos(4)
    assert torch.equal(embedded(again, pixels), embedded(exported.network, pixels))
    backbone = Backbone("small_cnn", weights=str(exported.path))
    assert torch.equal(embedded(backbone, pixels), embedded(exported.network.backbone, pixels))


def test_a_good_export_takes_the_place_of_an_earlier_one(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model_folder(tmp_path / "model")
    graph = exported.path / GRAPH_FILE
    write_instead(monkeypatch, graph)
    write(InferenceNetwork.trained(exported.network, exported.whitening), tmp_path / "model")
    assert Model.load(tmp_path / "model").sha256 == exported.card.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Parity


@pytest.mark.usefixtures("graph_of_another")
@pytest.mark.parametrize("earlier", [True, False])
def test_a_graph_that_computes_something_else_leaves_everything_as_it_was(
    exported: Exported, tmp_path: Path, earlier: bool
) -> None:
    folder = tmp_path / "models"
    if earlier:
        shutil.copytree(exported.path, folder / "model")
    network = InferenceNetwork.trained(exported.network, exported.whitening)
    with pytest.raises(ParityError, match=r"similarity is -?0\.\d+, expected at least 0\.9999"):
        write(network, folder / "model")
    assert [path.name for path in folder.iterdir()] == ["model"] * earlier
    if earlier:
        assert contents(folder / "model") == contents(exported.path)


def test_parity_is_that_of_this_very_network(exported: Exported) -> None:
    graph, pixels = exported.path / GRAPH_FILE, photos(3)
    network = InferenceNetwork.trained(exported.network, exported.whitening)
    check_parity(network.eval(), graph, pixels)
    changed = copy.deepcopy(network)
    assert changed.projection is not None
    with torch.no_grad():
        changed.projection.bias[0] += 0.1
    with pytest.raises(ParityError):
        check_parity(changed, graph, pixels)


def test_weights_that_are_not_finite_are_no_parity(exported: Exported) -> None:
    broken = copy.deepcopy(InferenceNetwork.trained(exported.network, exported.whitening)).eval()
    assert broken.projection is not None
    with torch.no_grad():
        broken.projection.weight[0, 0] = torch.nan
    with pytest.raises(ParityError, match=r"similarity is nan.*Non-finite weights"):
        check_parity(broken, exported.path / GRAPH_FILE, photos(3))
