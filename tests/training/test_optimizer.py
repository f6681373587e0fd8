"""Which parameters learn at which rate and with which decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from index.errors import InvalidArgumentError
from training.backbones import Backbone
from training.network import EmbeddingNetwork
from training.optimizer import parameter_groups


def network(name: str = "mobilenet_v2") -> EmbeddingNetwork:
    with torch.device("meta"):
        return EmbeddingNetwork(Backbone(name), 8)


def groups(of: EmbeddingNetwork, **options: float) -> list[dict[str, Any]]:
    return parameter_groups(of, lr=1.0, backbone_lr=0.1, weight_decay=0.01, **options)


def rates(of: EmbeddingNetwork, found: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Parameter's name → (rate, decay)."""
    names = {id(parameter): name for name, parameter in of.named_parameters()}
    pairs = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in found for p in g["params"]]
    assert len(dict(pairs)) == len(pairs)  # none is in two groups
    return dict(pairs)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("until", [None, "features.4"])
def test_each_trainable_parameter_is_in_one_group_and_no_other_is(
    layer_decay: float, until: str | None
) -> None:
    model = network()
    if until is not None:
        model.freeze_until(until)
    found = rates(model, groups(model, layer_decay=layer_decay))
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}


def test_without_layer_decay_there_is_a_rate_for_the_head_and_one_for_the_backbone() -> None:
    model = network()
    found = groups(model)
    assert len(found) == 4
    for name, (rate, decay) in rates(model, found).items():
        assert rate == (1.0 if name.startswith("head.") else 0.1)
        assert decay == (0.01 if model.get_parameter(name).ndim > 1 else 0.0)


@pytest.mark.parametrize(("until", "trained"), [(None, 19), ("features.4", 15)])
def test_rates_fall_by_the_factor_from_block_to_block(until: str | None, trained: int) -> None:
    model = network()
    if until is not None:
        model.freeze_until(until)
    found = rates(model, groups(model, layer_decay=0.5))
    blocks = {name.split(".")[3]: rate for name, (rate, _) in found.items() if ".features." in name}
    assert list(blocks) == [str(i) for i in reversed(range(19 - trained, 19))]
    assert list(blocks.values()) == pytest.approx([0.1 * 0.5**i for i in range(trained)], rel=1e-12)
    assert found["head.weight"] == (1.0, 0.01)


def test_embeddings_and_tokens_of_transformers_do_not_decay() -> None:
    expected = {
        "vit_b_32": {"class_token", "encoder.pos_embedding"},
        "timm:test_vit": {"cls_token", "pos_embed"},
    }
    for name, names in expected.items():
        model = network(name)
        spared = {
            key.removeprefix("backbone.network.")
            for key, (_, decay) in rates(model, groups(model)).items()
            if decay == 0 and model.get_parameter(key).ndim > 1
        }
        assert spared == names


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.5, float("nan")])
def test_a_factor_out_of_range_is_refused(layer_decay: float) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"--layer-decay is {layer_decay}: expected"):
        groups(network(), layer_decay=layer_decay)


def test_an_optimizer_moves_blocks_by_their_rates() -> None:
    torch.manual_seed(0)
    model = EmbeddingNetwork(Backbone("small_cnn"), 8)
    optimizer = torch.optim.SGD(
        parameter_groups(model, lr=1.0, backbone_lr=0.1, weight_decay=0.0, layer_decay=0.5)
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for i, name in enumerate(reversed(convolutions)):
        key = f"{name}.weight"
        moved = (before[key] - model.get_parameter(key)).mean().item()
        assert moved == pytest.approx(0.1 * 0.5**i, rel=1e-4)
