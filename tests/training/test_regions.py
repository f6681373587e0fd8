"""What positions of the last map add to the embedding, for backbones of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from index.model import GRAPH_FILE, Model
from index.regions import REGIONS_FILE, similar_regions
from tests.photos import picture
from training.backbones import Backbone
from training.export import ParityError, check_regions, export
from training.inference import InferenceNetwork
from training.regions import LastMap, find_shares

DIM = 8


def photos(n: int, side: int) -> NDArray[np.uint8]:
    pictures = [np.asarray(picture(i, height=side, width=side)) for i in range(n)]
    return np.stack(pictures).transpose(0, 3, 1, 2).copy()


def network(name: str, side: int, *, mirror: bool = False, power: float = 1.0) -> InferenceNetwork:
    """With statistics in BatchNorm and biases that are not zero, as training leaves them."""
    torch.manual_seed(0)
    backbone = Backbone(name, size=side)
    projection = nn.Linear(backbone.features, DIM)
    made = InferenceNetwork(backbone, projection, mirror=mirror, power=power)
    if any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        with torch.no_grad():
            for _ in range(3):
                made.train()(torch.from_numpy(photos(8, side)))
    with torch.no_grad():
        for key, value in made.named_parameters():
            if key.endswith("bias"):
                value.add_(0.1 * torch.randn(value.shape))
    return made.eval()


#: Backbone, side, and the grid of its last map.
LINEAR = [
    ("small_cnn", 64, (2, 2)),
    ("mobilenet_v2", 64, (2, 2)),
    ("resnet18", 64, (2, 2)),
    ("densenet121", 64, (2, 2)),
    ("squeezenet1_1", 64, (3, 3)),
    ("swin_t", 64, (2, 2)),
]
#: Their layers after the map are taken as linear at the photo at hand.
FURTHER_LAYERS = [
    ("mobilenet_v3_small", 64, (2, 2)),
    ("convnext_tiny", 64, (2, 2)),
    ("vgg11", 64, (7, 7)),
    ("vit_b_16", 224, (14, 14)),
]


@pytest.mark.parametrize(
    ("name", "side", "grid", "power"),
    [(*each, 1.0) for each in LINEAR + FURTHER_LAYERS]
    + [(*LINEAR[0], 0.5), (*LINEAR[1], 0.5), (*FURTHER_LAYERS[-1], 0.5)],
)
def test_contributions_add_up_to_the_cosine(
    name: str, side: int, grid: tuple[int, int], power: float
) -> None:
    made, pixels = network(name, side, power=power), torch.from_numpy(photos(2, side))
    found = find_shares(made, pixels)
    assert found is not None
    where, shares = found
    with torch.inference_mode():
        embeddings = made(pixels).double().numpy()
        given = shares(_map(made, where, pixels)).numpy()
    assert given.shape == (2, *grid, DIM)
    explanation = similar_regions(given[0], given[1])
    cosine = float(embeddings[0] @ embeddings[1])
    assert float(explanation.query.sum()) == pytest.approx(cosine, abs=1e-4)
    assert float(explanation.result.sum()) == pytest.approx(cosine, abs=1e-4)


def _map(made: InferenceNetwork, where: LastMap, pixels: torch.Tensor) -> torch.Tensor:
    from training.regions import WithMaps

    maps: tuple[torch.Tensor, ...] = WithMaps(made, where)(pixels)
    return maps[1]


@pytest.mark.parametrize(("name", "side"), [("small_cnn", 64), ("resnet18", 64)])
def test_a_share_is_what_averaging_and_the_projection_make_of_a_position(
    name: str, side: int
) -> None:
    made, pixels = network(name, side), torch.from_numpy(photos(2, side))
    found = find_shares(made, pixels)
    assert found is not None
    where, shares = found
    with torch.inference_mode():
        feature_map = _map(made, where, pixels)
        given = shares(feature_map)
        _, _, h, w = feature_map.shape
        assert made.projection is not None
        for row in range(h):
            for column in range(w):
                alone = made.projection(feature_map[:, :, row, column]) / (h * w)
                torch.testing.assert_close(given[:, row, column], alone, rtol=1e-4, atol=1e-5)


def test_a_position_to_which_no_class_token_attends_hands_nothing_over() -> None:
    """Patches' shares beyond the common part are their values, weighted by attention."""
    made, pixels = network("vit_b_16", 224), torch.from_numpy(photos(1, 224))
    found = find_shares(made, pixels)
    assert found is not None
    where, shares = found
    with torch.inference_mode():
        tokens = _map(made, where, pixels).clone()
        attention = made.backbone.network.encoder.layers[-1].self_attention  # type: ignore[union-attr]
        # Keys that no query likes: attention is spread evenly, values decide alone.
        c = tokens.shape[2]
        attention.in_proj_weight[c : 2 * c] = 0
        attention.in_proj_bias[c : 2 * c] = 0
        tokens[:, 2] = tokens[:, 1]
        given = shares(tokens)
    torch.testing.assert_close(given[0, 0, 0], given[0, 0, 1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(given[0, 0, 0], given[0, 0, 2], rtol=1e-4, atol=1e-6)


def test_a_network_that_does_anything_else_has_no_shares() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.amax(dim=(2, 3))  # of three channels, and no sum over positions

    made = InferenceNetwork(Backbone("small_cnn", size=64), None)
    made.backbone.network = Odd()
    assert find_shares(made.eval(), torch.from_numpy(photos(2, 64))) is None


# The exported folder


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_exported_graphs_give_shares_that_add_up(
    tmp_path: Path, mirror: bool, power: float
) -> None:
    made = network("small_cnn", 64, mirror=mirror, power=power)
    card = export(made, tmp_path / "model", name="car", height=64, width=64, resize="pad", facts={})
    assert card.regions is not None
    assert len(card.regions.maps) == 1 + mirror
    model, pixels = Model.load(tmp_path / "model"), photos(4, 64)
    reader = model.regions()
    assert reader is not None
    total = reader.shares(pixels).sum(axis=(1, 2))
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(total, model.embed(pixels), rtol=0, atol=1e-5)


def test_embedding_computes_nothing_for_regions(tmp_path: Path) -> None:
    made = network("small_cnn", 64)
    export(made, tmp_path / "model", name="car", height=64, width=64, resize="pad", facts={})
    session = onnxruntime.InferenceSession(tmp_path / "model" / GRAPH_FILE)
    assert [output.name for output in session.get_outputs()] == ["embedding"]


def test_shares_of_another_network_are_not_exported(tmp_path: Path) -> None:
    made, pixels = network("small_cnn", 64), photos(3, 64)
    folder = tmp_path / "model"
    export(made, folder, name="car", height=64, width=64, resize="pad", facts={})
    check_regions(made, folder / GRAPH_FILE, folder / REGIONS_FILE, ["map"], pixels)
    assert made.projection is not None
    with torch.no_grad():
        made.projection.weight.copy_(made.projection.weight.flip(0))
    with pytest.raises(ParityError, match="shares of regions do not add up"):
        check_regions(made, folder / GRAPH_FILE, folder / REGIONS_FILE, ["map"], pixels)
