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
from training.inference import Features, InferenceNetwork, chosen
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
    network: EmbeddingNetwork, pixels: Tensor, embedding: Embedding, mirror: bool
) -> NDArray[np.float64]:
    """What is to be whitened, float64 (n, m), one step after the other."""
    exact = copy.deepcopy(network).double()
    features = run(exact.backbone, pixels).numpy()
    if mirror:
        features = (features + run(exact.backbone, mirrored(pixels)).numpy()) / 2
    if embedding == "features":
        return features
    return features @ exact.head.weight.detach().numpy().T + exact.head.bias.detach().numpy()


def whitening_of(network: EmbeddingNetwork, embedding: Embedding, mirror: bool) -> Whitening:
    return Whitening.fit(torch.from_numpy(by_hand(network, photos(PHOTOS), embedding, mirror)))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("embedding", ["head", "features"])
def test_the_network_is_its_parts_one_after_the_other(
    network: EmbeddingNetwork, embedding: Embedding, mirror: bool
) -> None:
    whitening = whitening_of(network, embedding, mirror)
    pixels = photos(5, first=100)
    expected = by_hand(network, pixels, embedding, mirror) - whitening.mean.numpy()
    expected = expected @ whitening.matrix.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    inference = InferenceNetwork.trained(network, whitening, embedding=embedding, mirror=mirror)
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


def test_what_is_whitened_is_what_the_exported_network_projects(network: EmbeddingNetwork) -> None:
    features = run(Features(network.backbone), photos(5))
    assert chosen(features, network.head, "features") is features
    projected = chosen(features, network.head, "head")
    assert projected.dtype == torch.float64
    assert not projected.requires_grad
    torch.testing.assert_close(projected.float(), run(network, photos(5)), rtol=1e-5, atol=1e-6)


def test_the_graph_of_a_mirrored_network_gives_its_embeddings(
    network: EmbeddingNetwork, tmp_path: Path
) -> None:
    inference = InferenceNetwork.trained(network, whitening_of(network, "head", True), mirror=True)
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
