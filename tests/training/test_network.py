"""Backbone and head together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from index.errors import InvalidArgumentError
from training.backbones import Backbone
from training.network import EmbeddingNetwork


def photos(side: int, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


# Head


def test_embeddings_are_an_affine_map_of_the_features() -> None:
    network = EmbeddingNetwork(Backbone("small_cnn"), 5).eval()
    nn.init.normal_(network.head.bias)
    with torch.no_grad():
        found = network(photos(32))
        expected = network.backbone(photos(32)) @ network.head.weight.T + network.head.bias
    assert found.shape == (2, network.dim) == (2, 5)
    torch.testing.assert_close(found, expected)


def test_the_head_starts_as_a_projection_without_distortion() -> None:
    weight = EmbeddingNetwork(Backbone("small_cnn"), 50).head.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(50), rtol=0, atol=1e-5)


def test_the_embedding_can_be_as_wide_as_the_features_and_no_wider() -> None:
    backbone = Backbone("small_cnn")
    assert EmbeddingNetwork(backbone, backbone.features).dim == backbone.features
    for dim in (0, backbone.features + 1):
        with pytest.raises(InvalidArgumentError, match=rf"--dim is {dim}: .*1 … 192 dimensions"):
            EmbeddingNetwork(backbone, dim)


@pytest.mark.parametrize("until", ["features.7", "features.12.squeeze", "features.0"])
def test_frozen_parameters_are_those_before_the_module(until: str) -> None:
    network = EmbeddingNetwork(Backbone("squeezenet1_1"), 8)
    frozen = network.freeze_until(until)
    network(photos(64)).square().sum().backward()
    parameters = list(network.backbone.network.named_parameters())
    first = [name.startswith(f"{until}.") for name, _ in parameters].index(True)
    assert frozen == sum(p.numel() for _, p in parameters[:first])
    for i, (name, parameter) in enumerate(parameters):
        assert (parameter.grad is None) == (i < first), name
    assert network.head.weight.grad is not None


def test_an_unknown_module_to_freeze_until_is_refused_with_those_there_are() -> None:
    network = EmbeddingNetwork(Backbone("mobilenet_v2"), 8)
    for name in ("layer4", "features.1x", "features.1."):
        with pytest.raises(InvalidArgumentError, match=r"mobilenet_v2 .* features\.0, .*\.18"):
            network.freeze_until(name)
    assert all(parameter.requires_grad for parameter in network.parameters())
