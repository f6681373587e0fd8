"""timm's networks as backbones: features, sizes, weights, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.v2 import functional as transforms

from index.errors import DsclError, InvalidArgumentError
from training.backbones import Backbone, WeightsError, default_size
from training.export import export
from training.inference import InferenceNetwork
from training.network import EmbeddingNetwork

#: Small networks of timm's families, with classifiers named differently.
NETWORKS = {
    "test_resnet": "fc",
    "test_efficientnet": "classifier",
    "test_convnext": "head.fc",
    "test_vit": "head",
    "levit_128s": "head.linear",
}
WITH_WEIGHTS = "test_vit.r160_in1k"


def photos(side: int, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def features(backbone: Backbone, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = backbone.eval()(pixels)
    return result


def original(name: str, **options: Any) -> Any:
    """timm's network with its classifier, of the weights that seed 0 gives."""
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_file(original("test_vit").state_dict(), path)
    return path


# Architectures


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_the_classifier_would_be_given(name: str, tmp_path: Path) -> None:
    whole = original(name)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = Backbone(f"timm:{name}", weights=str(tmp_path / "whole.pth"))
    config = resolve_data_config(model=whole)
    assert backbone.side == default_size(f"timm:{name}") == config["input_size"][-1]
    assert backbone.interpolation == config["interpolation"]

    pixels = photos(backbone.side)
    seen: list[Tensor] = []
    classifier = whole.get_submodule(NETWORKS[name])
    if name == "levit_128s":  # timm takes the normalisation before it for a part of the classifier
        classifier = whole.get_submodule("head")
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        scaled = transforms.to_dtype(pixels, torch.float32, scale=True)
        whole(transforms.normalize(scaled, config["mean"], config["std"]))
    found = features(backbone, pixels)
    assert found.shape == (2, backbone.features)
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "training.backbones.timm_networks", raising=False)
    for use in (Backbone, default_size):
        with pytest.raises(DsclError, match=r"pip install 'dscl-retrieval\[timm\]'"):
            use("timm:resnet18")
    with pytest.raises(InvalidArgumentError, match="Nearest: resnet18, "):
        Backbone("resnet_18")


# Sizes


def test_transformers_are_built_for_the_size_asked_for() -> None:
    backbone = Backbone("timm:test_vit3", size=96)
    backbone.check_size(96)
    assert features(backbone, photos(96)).shape == (2, backbone.features)
    side = default_size("timm:test_vit3")
    with pytest.raises(
        InvalidArgumentError, match=rf"--size is {side}, and timm:test_vit3 cannot take"
    ):
        backbone.check_size(side)


@pytest.mark.parametrize(("name", "side"), [("xcit_nano_12_p8_224", 100), ("test_vit", 0)])
def test_a_size_that_a_transformer_cannot_be_built_for_is_refused(name: str, side: int) -> None:
    with pytest.raises(
        InvalidArgumentError, match=rf"--size is {side}, and timm:{name} cannot be built for it"
    ):
        Backbone(f"timm:{name}", size=side)


def test_position_embeddings_are_resampled_as_timm_does(vit_file: Path) -> None:
    backbone = Backbone("timm:test_vit", weights=str(vit_file), size=96)
    overlay = {"file": str(vit_file)}
    expected = original(
        "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=96
    ).state_dict()
    found = backbone.network.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_convolutional_networks_take_any_size() -> None:
    backbone = Backbone("timm:test_resnet", size=64)
    for side in (64, 96):
        backbone.check_size(side)


# Weights


def test_a_model_folder_of_ours_is_read(tmp_path: Path) -> None:
    trained = EmbeddingNetwork(Backbone("timm:test_resnet"), 8)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    backbone = Backbone("timm:test_resnet", weights=str(tmp_path))
    assert torch.equal(features(backbone, photos(64)), features(trained.backbone, photos(64)))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_weights_of_another_architecture_are_refused_by_their_keys(
    tmp_path: Path, name: str
) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        Backbone(f"timm:{name}", weights=str(tmp_path / "w.pth"))
    message = str(caught.value)
    assert f"w.pth does not fit backbone timm:{name}: " in message
    assert "unexpected (classifier.1.bias, classifier.1.weight, features.0.bias, …)" in message


def test_weights_of_fewer_blocks_are_refused_by_their_keys(tmp_path: Path) -> None:
    state = original("test_vit").state_dict()
    fewer = {key: value for key, value in state.items() if not key.startswith("blocks.5.")}
    torch.save(fewer, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=rf"{len(state) - len(fewer)} missing \(blocks\.5\..*; 0 unexpected; 0 of another",
    ):
        Backbone("timm:test_vit", weights=str(tmp_path / "w.pth"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, which cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(weights: Path, hub: Path) -> None:
    """Lay ``weights`` into the hub's cache, as a download does."""
    folder = hub / f"models--timm--{WITH_WEIGHTS}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(weights.read_bytes())


def test_offline_the_error_says_which_file_to_bring(hub: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        Backbone("timm:test_vit", weights="imagenet")
    for fact in (
        f"model.safetensors of timm/{WITH_WEIGHTS} on the Hugging Face hub",
        "--weights PATH",
        hub / f"models--timm--{WITH_WEIGHTS}",
    ):
        assert str(fact) in str(caught.value)


@pytest.mark.parametrize("name", ["test_vit", WITH_WEIGHTS])
def test_pretrained_weights_in_the_cache_are_used(hub: Path, vit_file: Path, name: str) -> None:
    put(vit_file, hub)
    found = features(Backbone(f"timm:{name}", weights="imagenet"), photos(160))
    expected = features(Backbone("timm:test_vit", weights=str(vit_file)), photos(160))
    assert torch.equal(found, expected)


def test_a_damaged_file_in_the_cache_is_named(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(b"half a download")
    put(tmp_path / "half", hub)
    with pytest.raises(WeightsError, match=rf"damaged .*Remove {hub}/models--timm--{WITH_WEIGHTS}"):
        Backbone("timm:test_vit", weights="imagenet")


def test_a_network_that_nobody_trained_has_no_weights() -> None:
    with pytest.raises(WeightsError, match=r"no weights for timm:test_maxvit: .*--weights none"):
        Backbone("timm:test_maxvit", weights="imagenet")


# Export


def test_a_transformer_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Backbone("timm:test_vit", size=32)
    nn.init.normal_(backbone.network.get_parameter("pos_embed"))
    # Writing checks that the graph gives the network's embeddings.
    card = export(
        InferenceNetwork.frozen(backbone, None),
        tmp_path / "model",
        name="vit",
        height=32,
        width=32,
        resize="squash",
        facts={},
    )
    assert card.backbone == "timm:test_vit"
    assert card.dim == backbone.features
