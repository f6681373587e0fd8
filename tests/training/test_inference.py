"""What is exported: backbone, head, whitening and unit length, of a photo or with its mirror image.

The ONNX graph itself is the business of ``test_export``.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.model import Model
from tests.photos import picture
from training.backbones import Backbone
from training.export import export
from training.inference import InferenceNetwork, Power, Views, chosen
from training.network import EmbeddingNetwork
from training.settings import Embedding
from training.whitening import Whitening

SIDE = 32
DIM = 8
PHOTOS = 64


def photos(n: int, *, first: int = 0) -> Tensor:
    """uint8 [n, 3, h, w], none of which is its own mirror image."""
    pictures = [np.asarray(picture(first + i, height=SIDE, width=SIDE)) for i in range(n)]
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())


def mirrored(pixels: Tensor) -> Tensor:
    return torch.from_numpy(pixels.numpy()[:, :, :, ::-1].copy())


def run(network: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network.eval()(pixels)
    return result


@pytest.fixture(scope="module")
def network() -> EmbeddingNetwork:
    """Statistics of its own in BatchNorm, and a bias that is not 0."""
    torch.manual_seed(0)
    network = EmbeddingNetwork(Backbone("small_cnn"), DIM)
    nn.init.normal_(network.head.bias)
    network.train()(photos(PHOTOS))
    return network.eval()


def by_hand(
    network: EmbeddingNetwork,
    pixels: Tensor,
    embedding: Embedding,
    mirror: bool,
    power: float = 1.0,
) -> NDArray[np.float64]:
    """What is to be whitened, float64 (n, m), one step after the other."""
    exact = copy.deepcopy(network).double()
    views = [pixels, mirrored(pixels)] if mirror else [pixels]
    features = [run(exact.backbone, view).numpy() for view in views]
    if embedding == "features":
        raised = [np.where(x < 0, -1, 1) * np.abs(x) ** power for x in features]
        return np.mean(raised, axis=0)
    weight, bias = (each.detach().numpy() for each in (exact.head.weight, exact.head.bias))
    return np.mean(features, axis=0) @ weight.T + bias


def whitening_of(
    network: EmbeddingNetwork, embedding: Embedding, mirror: bool, power: float = 1.0
) -> Whitening:
    features = by_hand(network, photos(PHOTOS), embedding, mirror, power)
    return Whitening.fit(torch.from_numpy(features))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("embedding", ["head", "features"])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_network_is_its_parts_one_after_the_other(
    network: EmbeddingNetwork, embedding: Embedding, mirror: bool, power: float
) -> None:
    whitening = whitening_of(network, embedding, mirror, power)
    pixels = photos(5, first=100)
    expected = by_hand(network, pixels, embedding, mirror, power) - whitening.mean.numpy()
    expected = expected @ whitening.matrix.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    inference = InferenceNetwork.trained(
        network, whitening, embedding=embedding, mirror=mirror, power=power
    )
    found = run(inference, pixels)
    assert found.dtype == torch.float32
    assert found.shape == (5, inference.dim)
    assert inference.dim == (DIM if embedding == "head" else network.backbone.features)
    # float32 has 7 digits; the projection, steep where features hardly vary, costs almost two.
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("embedding", ["head", "features"])
def test_a_photo_and_its_mirror_image_become_one_only_where_it_was_asked_for(
    network: EmbeddingNetwork, embedding: Embedding
) -> None:
    whitening = whitening_of(network, embedding, True)
    pixels = photos(5, first=100)
    for mirror in (True, False):
        inference = InferenceNetwork.trained(network, whitening, embedding=embedding, mirror=mirror)
        a, b = run(inference, pixels), run(inference, mirrored(pixels))
        if mirror:
            assert torch.equal(a, b)
        else:
            assert (a * b).sum(1).max() < 0.99


def test_a_frozen_backbone_is_mirrored_too(network: EmbeddingNetwork) -> None:
    pixels = photos(5, first=100)
    features = by_hand(network, pixels, "features", True)
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    inference = InferenceNetwork.frozen(network.backbone, None, mirror=True)
    np.testing.assert_allclose(run(inference, pixels).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("embedding", ["head", "features"])
def test_what_is_whitened_is_what_the_exported_network_projects(
    network: EmbeddingNetwork, embedding: Embedding, mirror: bool
) -> None:
    pixels = photos(5)
    views = run(Views(network.backbone, mirror=mirror), pixels)
    assert views.shape == (5, 1 + mirror, network.backbone.features)
    for power in (1.0, 0.5):
        found = chosen(views, network.head, embedding, power=power)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        expected = by_hand(network, pixels, embedding, mirror, power)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_power_keeps_the_sign() -> None:
    values = torch.tensor([[-4.0, -0.25, 0.0, 0.25, 4.0]])
    assert Power(0.5)(values).tolist() == [[-2.0, -0.5, 0.0, 0.5, 2.0]]


@pytest.mark.parametrize(("embedding", "power"), [("head", 1.0), ("features", 0.5)])
def test_the_graph_of_a_mirrored_network_gives_its_embeddings(
    network: EmbeddingNetwork, tmp_path: Path, embedding: Embedding, power: float
) -> None:
    whitening = whitening_of(network, embedding, True, power)
    inference = InferenceNetwork.trained(
        network, whitening, embedding=embedding, mirror=True, power=power
    )
    # Which compares the two itself.
    export(
        inference, tmp_path / "model", name="car", height=SIDE, width=SIDE, resize="squash",
        facts={},
    )  # fmt: skip
    model = Model.load(tmp_path / "model")
    pixels = photos(5, first=100)
    found = model.embed(pixels.numpy())
    np.testing.assert_allclose(found, run(inference, pixels).numpy(), rtol=0, atol=2e-5)
    turned = model.embed(mirrored(pixels).numpy())
    np.testing.assert_allclose(turned, found, rtol=0, atol=1e-6)
