"""Folding frozen BatchNorm into convolutions changes nothing but the speed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from training.backbones import Backbone
from training.export import export
from training.inference import InferenceNetwork
from training.scaled_convolutions import fold_batch_norm, unfold_batch_norm

#: Network → (side of a photo that is quick, convolutions that a BatchNorm follows)
NETWORKS = {"mobilenet_v2": (32, 52), "resnet18": (32, 20)}


def network(name: str) -> nn.Module:
    """Float64, with statistics, γ and β as training leaves them: of any value."""
    torch.manual_seed(0)
    result: nn.Module = models.get_model(name).double()
    for module in result.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -1, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return result.eval()


def folded(original: nn.Module) -> tuple[nn.Module, int]:
    result = copy.deepcopy(original)
    return result, fold_batch_norm(result)


def batch(side: int) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1)).double()


def gradients(model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    scores = model(pixels)
    (scores * torch.linspace(-1, 1, scores.numel()).reshape(scores.shape)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10 * scale, msg=name)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_with_frozen_statistics_outputs_and_gradients_are_the_same(
    name: str, memory_format: torch.memory_format
) -> None:
    side, pairs = NETWORKS[name]
    original = network(name)
    quick, count = folded(original.to(memory_format=memory_format))
    pixels = batch(side).to(memory_format=memory_format)
    assert count == pairs
    torch.testing.assert_close(quick(pixels), original(pixels), rtol=1e-10, atol=1e-10)
    expected = gradients(original, pixels)
    assert len(expected) == len(list(original.parameters()))
    assert_close(gradients(quick, pixels), expected)


def test_the_batch_norm_is_computed_by_the_convolution() -> None:
    quick, _ = folded(network("resnet18"))
    pixels = batch(32)
    with torch.no_grad():
        normalised = quick.bn1(quick.conv1(pixels))
        assert torch.equal(quick.conv1(pixels), normalised)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_training_mode_all_is_as_before_statistics_included(name: str) -> None:
    original = network(name).train()
    quick, _ = folded(original)
    pixels = batch(NETWORKS[name][0])
    assert torch.equal(quick(pixels), original(pixels))
    assert_close(gradients(quick, pixels), gradients(original, pixels))
    buffers = dict(original.named_buffers())
    for key, value in quick.named_buffers():
        assert torch.equal(value, buffers[key])


def test_each_batch_norm_is_folded_by_its_own_mode() -> None:
    original = network("resnet18").train()
    for module in list(original.modules())[::3]:
        module.training = False
    quick, _ = folded(original)
    assert_close(gradients(quick, batch(32)), gradients(original, batch(32)))


def test_a_convolution_with_a_bias_is_folded_too() -> None:
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double().eval()
    original[1].running_mean.normal_()
    quick, count = folded(original)
    assert count == 1
    assert_close(gradients(quick, batch(8)), gradients(original, batch(8)))


def test_state_dicts_are_those_of_the_network_as_it_was() -> None:
    original = network("resnet18")
    quick, _ = folded(original)
    state = original.state_dict()
    assert list(quick.state_dict()) == list(state)
    other, _ = folded(models.resnet18().double().eval())
    other.load_state_dict(state)
    torch.testing.assert_close(other(batch(32)), original(batch(32)), rtol=1e-10, atol=1e-10)


def test_a_copy_does_not_share_its_batch_norm_with_the_first() -> None:
    quick, _ = folded(network("resnet18"))
    before = quick(batch(32))
    double = copy.deepcopy(quick)
    with torch.no_grad():
        double.bn1.weight.zero_()
    assert torch.equal(quick(batch(32)), before)
    assert double.bn1(double.conv1(batch(32))).std((0, 2, 3)).max() == 0


def test_unfolding_gives_back_torchs_layers() -> None:
    original = network("mobilenet_v2")
    quick, _ = folded(original)
    unfold_batch_norm(quick)
    assert list(map(type, quick.modules())) == list(map(type, original.modules()))
    assert quick.features[0][0].__dict__.keys() == original.features[0][0].__dict__.keys()
    assert torch.equal(quick(batch(32)), original(batch(32)))
    unfold_batch_norm(original)
    assert fold_batch_norm(quick) == 52


class Untouched(nn.Module):
    """None of its BatchNorms may be computed by the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen_twice = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.called_twice = nn.Conv2d(3, 3, 1)
        self.shared = nn.BatchNorm2d(3)
        self.output = nn.Conv2d(3, 3, 1)
        self.plain = nn.Conv2d(3, 3, 1)
        self.without_scale = nn.BatchNorm2d(3, affine=False)
        self.own_statistics = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.seen_twice(x)
        x = x + self.norm(x)
        x = self.shared(self.called_twice(x)) + self.shared(self.called_twice(2 * x))
        x = self.without_scale(self.plain(x))
        return self.own_statistics(self.output(x))


def test_layers_that_others_see_too_stay_as_they_are() -> None:
    assert folded(Untouched().eval())[1] == 0


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if x.sum() > 0 else self.layers[0](x)


def test_a_network_whose_path_depends_on_its_input_stays_as_it_is() -> None:
    original = Dynamic().double().eval()
    quick, count = folded(original)
    assert count == 0
    for pixels in (batch(4).abs(), -batch(4).abs()):
        assert torch.equal(quick(pixels), original(pixels))


def test_a_folded_network_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Backbone("small_cnn").eval()
    assert fold_batch_norm(backbone.network) == 5
    # Writing checks that the graph gives the network's embeddings.
    export(
        InferenceNetwork.frozen(backbone, None),
        tmp_path / "model",
        name="folded",
        height=32,
        width=32,
        resize="squash",
        facts={},
    )
