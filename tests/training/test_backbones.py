"""Backbones without their classifiers, their weights, their blocks."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from index.errors import InvalidArgumentError
from training.backbones import Backbone, WeightsError, default_size
from training.network import EmbeddingNetwork

#: Backbone → (side of a photo that is quick, the module that classifies)
CLASSIFIERS = {
    "mobilenet_v2": (64, "classifier.1"),
    "mobilenet_v3_small": (64, "classifier.3"),
    "shufflenet_v2_x0_5": (64, "fc"),
    "squeezenet1_1": (64, "classifier.1"),
    "resnet18": (64, "fc"),
    "efficientnet_b0": (64, "classifier.1"),
    "mnasnet0_5": (64, "classifier.1"),
    "regnet_y_400mf": (64, "fc"),
    "googlenet": (64, "fc"),
    "inception_v3": (96, "fc"),
    "vit_b_32": (224, "heads.head"),
}

#: The first network of each of torchvision's families, new ones included.
FAMILIES = {
    models.get_model_builder(name).__module__: name
    for name in reversed(models.list_models(module=models))
}


def photos(side: int, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def features(backbone: Backbone, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = backbone.eval()(pixels)
    return result


def original(name: str) -> nn.Module:
    """Torchvision's network with its classifiers, of the weights that seed 0 gives."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # transform_input is what torchvision sets for the weights that it offers.
        options = {"transform_input": True, "aux_logits": True, "init_weights": False}
    torch.manual_seed(0)
    network: nn.Module = models.get_model(name, **options)
    return network.eval()


def penultimate(name: str, network: nn.Module, pixels: Tensor) -> Tensor:
    """What the classifier is given, on photos prepared by torchvision's own preset."""
    seen: list[Tensor] = []
    classifier = network.get_submodule(CLASSIFIERS[name][1])
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    side = pixels.shape[-1]
    preset = models.get_model_weights(name).DEFAULT.transforms(crop_size=side, resize_size=side)
    with torch.inference_mode():
        network(preset(pixels))
    # SqueezeNet averages over places only after its classifying convolution.
    return seen[0] if seen[0].ndim == 2 else seen[0].mean((2, 3))


# Architectures


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_features_are_what_the_classifier_would_be_given(name: str) -> None:
    pixels = photos(CLASSIFIERS[name][0])
    expected = penultimate(name, original(name), pixels)
    torch.manual_seed(0)
    backbone = Backbone(name)
    found = features(backbone, pixels)
    assert backbone.features == found.shape[1]
    # Two photos of noise look alike to a random network: a tolerance far below their difference.
    difference = (expected[0] - expected[1]).abs().max().item()
    assert difference > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3 * difference)


@pytest.mark.parametrize("name", sorted({*FAMILIES.values(), "vit_h_14"}))
def test_every_family_of_torchvision_takes_photos_of_its_default_size(name: str) -> None:
    if name.startswith("regnet"):  # reads values while it is built, which meta tensors lack
        name, device = "regnet_x_400mf", "cpu"
    else:
        device = "meta"
    with torch.device(device):
        backbone, side = Backbone(name), default_size(name)
        pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        assert features(backbone, pixels).shape == (1, backbone.features)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_in_training_too_there_is_one_output(name: str) -> None:
    backbone = Backbone(name).train()
    assert backbone(photos(96)).shape == (2, backbone.features)


def test_the_small_network_takes_any_photo_of_at_least_32_pixels() -> None:
    backbone = Backbone("small_cnn")
    for side in (32, 45, default_size("small_cnn")):
        assert features(backbone, photos(side)).shape == (2, backbone.features)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("resnet_18", "Nearest: resnet18, "),
        ("Mobilenet_v2", "Nearest: mobilenet_v2, "),
        ("vit_small_patch16_224", "Nearest: timm:vit_small_patch16_224, "),
        ("timm:resnet_18", "Nearest: timm:resnet18, "),
        ("timm:resnet50.a1_in1", "Nearest: timm:resnet50.a1_in1k, "),
        ("", "Expected timm:NAME, or one of alexnet, .*, small_cnn"),
    ],
)
def test_for_an_unknown_backbone_the_nearest_are_offered(name: str, offered: str) -> None:
    for use in (Backbone, default_size):
        with pytest.raises(InvalidArgumentError, match=rf"--backbone is {name!r}, .*{offered}"):
            use(name)


def test_networks_that_do_not_classify_are_not_backbones() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'deeplabv3_resnet50', which there is not"):
        Backbone("deeplabv3_resnet50")


@pytest.mark.parametrize(
    ("name", "side"), [("vit_b_32", 64), ("inception_v3", 32), ("squeezenet1_1", 0)]
)
def test_a_size_that_does_not_go_through_is_refused(name: str, side: int) -> None:
    backbone = Backbone(name)
    with pytest.raises(InvalidArgumentError, match=rf"--size is {side}, and {name} cannot take"):
        backbone.check_size(side)
    backbone.check_size(default_size(name))


# Weights


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """The state dict of a whole SqueezeNet."""
    return original("squeezenet1_1").state_dict()


@pytest.fixture(scope="module")
def expected(trained: dict[str, Tensor]) -> Tensor:
    network = models.squeezenet1_1()
    network.load_state_dict(trained)
    return penultimate("squeezenet1_1", network.eval(), photos(64))


def save_in_model_folder(state: dict[str, Tensor], path: Path) -> None:
    backbone = Backbone("squeezenet1_1")
    backbone.network.load_state_dict(
        {key: value for key, value in state.items() if not key.startswith("classifier.")}
    )
    path.mkdir()
    save_file(EmbeddingNetwork(backbone, 8).state_dict(), path / "weights.safetensors")


FORMS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], None]]] = {
    "pth": ("w.pth", torch.save),
    "safetensors": ("w.safetensors", save_file),
    "wrapped": ("w.tar", lambda state, path: torch.save({"state_dict": state, "epoch": 7}, path)),
    "wrapped as by DeiT": ("w.pth", lambda state, path: torch.save({"model": state}, path)),
    "data parallel": (
        "w.pt",
        lambda state, path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
    ),
    "wrapped data parallel": (
        "w.bin",
        lambda state, path: torch.save(
            {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path
        ),
    ),
    "model folder": ("model", save_in_model_folder),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form_people_have(
    tmp_path: Path, trained: dict[str, Tensor], expected: Tensor, form: str
) -> None:
    name, save = FORMS[form]
    save(trained, tmp_path / name)
    backbone = Backbone("squeezenet1_1", weights=str(tmp_path / name))
    torch.testing.assert_close(features(backbone, photos(64)), expected, rtol=1e-4, atol=1e-6)


def test_auxiliary_classifiers_in_the_weights_are_left_out(tmp_path: Path) -> None:
    whole = original("inception_v3")
    assert any(key.startswith("AuxLogits.") for key in whole.state_dict())
    torch.save(whole.state_dict(), tmp_path / "inception.pth")
    torch.manual_seed(9)
    backbone = Backbone("inception_v3", weights=str(tmp_path / "inception.pth"))
    torch.manual_seed(0)
    assert torch.equal(
        features(backbone, photos(96)), features(Backbone("inception_v3"), photos(96))
    )


def test_weights_without_the_counters_of_batch_norm_are_complete(tmp_path: Path) -> None:
    state = {
        key: value
        for key, value in original("shufflenet_v2_x0_5").state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(state, tmp_path / "old.safetensors")
    backbone = Backbone("shufflenet_v2_x0_5", weights=str(tmp_path / "old.safetensors"))
    for key, value in backbone.network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, state[key])


def test_weights_of_another_architecture_are_refused_by_their_keys(
    tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    torch.save(trained, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        Backbone("resnet18", weights=str(tmp_path / "w.pth"))
    message = str(caught.value)
    assert "w.pth does not fit backbone resnet18" in message
    assert "missing (bn1.bias, bn1.running_mean, " in message
    assert f"{len(trained)} unexpected (classifier.1.bias, classifier.1.weight, " in message


def test_weights_of_another_width_are_refused_by_their_keys(tmp_path: Path) -> None:
    torch.save(original("mobilenet_v3_small").state_dict(), tmp_path / "w.pth")
    wider = models.mobilenet_v3_small(width_mult=1.5)
    torch.save(wider.state_dict(), tmp_path / "wide.pth")
    Backbone("mobilenet_v3_small", weights=str(tmp_path / "w.pth"))
    with pytest.raises(WeightsError, match=r"0 missing; 0 unexpected; \d+ of another shape \("):
        Backbone("mobilenet_v3_small", weights=str(tmp_path / "wide.pth"))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("w.pth", lambda path: path.write_bytes(b"no weights at all"), "cannot be read"),
        ("w.pth", lambda path: path.write_bytes(b""), "cannot be read"),
        ("w.safetensors", lambda path: path.write_bytes(b"no weights at all"), "cannot be read"),
        ("w.pth", lambda path: torch.save(nn.Linear(2, 2), path), "cannot be read"),
        ("w.pth", lambda path: torch.save([torch.zeros(1)], path), "is not a state dict"),
        ("w.pth", lambda path: torch.save({"epoch": 3}, path), "is not a state dict"),
        ("w.pth", lambda path: None, "does not exist: give `imagenet`, `none`, or the path"),
        ("model", lambda path: path.mkdir(), r"weights.safetensors does not exist"),
    ],
)
def test_what_is_no_state_dict_is_refused_by_path(
    tmp_path: Path, name: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=rf"{tmp_path}/{name}.*{message}"):
        Backbone("squeezenet1_1", weights=str(tmp_path / name))


# ImageNet


@pytest.fixture
def imagenet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps SqueezeNet's weights; downloading them fails."""

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    path = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    return path


def test_offline_the_error_says_which_file_belongs_where(imagenet_file: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        Backbone("squeezenet1_1", weights="imagenet")
    for fact in ("no route to host", imagenet_file.name, imagenet_file.parent, "--weights PATH"):
        assert str(fact) in str(caught.value)


def test_imagenet_weights_in_the_cache_are_used(
    imagenet_file: Path, trained: dict[str, Tensor], expected: Tensor
) -> None:
    torch.save(trained, imagenet_file)
    backbone = Backbone("squeezenet1_1", weights="imagenet")
    torch.testing.assert_close(features(backbone, photos(64)), expected, rtol=1e-4, atol=1e-6)


def test_a_damaged_file_in_the_cache_is_named(imagenet_file: Path) -> None:
    imagenet_file.write_bytes(b"half a download")
    with pytest.raises(WeightsError, match=f"Remove {imagenet_file}"):
        Backbone("squeezenet1_1", weights="imagenet")


def test_the_small_network_has_no_imagenet_weights() -> None:
    with pytest.raises(WeightsError, match=r"small_cnn has no ImageNet weights.*--weights none"):
        Backbone("small_cnn", weights="imagenet")


# Blocks

#: Backbone → (how many blocks, where some parameters belong)
BLOCKS = {
    "mobilenet_v2": (19, {"features.0.0.weight": 0, "features.18.1.bias": 18}),
    "resnet18": (9, {"conv1.weight": 0, "bn1.bias": 0, "layer1.0.bn1.bias": 1,
                     "layer2.0.downsample.0.weight": 3, "layer4.1.conv1.weight": 8}),
    "vit_b_32": (14, {"class_token": 0, "conv_proj.weight": 0, "encoder.pos_embedding": 0,
                      "encoder.layers.encoder_layer_0.ln_1.weight": 1,
                      "encoder.layers.encoder_layer_11.ln_1.weight": 12,
                      "encoder.ln.weight": 13}),
    "densenet121": (9, {"features.conv0.weight": 0, "features.norm0.bias": 0,
                        "features.transition1.norm.bias": 2, "features.norm5.bias": 8}),
    "shufflenet_v2_x0_5": (18, {"conv1.0.weight": 0, "conv5.0.weight": 17}),
    "googlenet": (12, {"conv1.conv.weight": 0, "inception5b.branch1.conv.weight": 11}),
    "regnet_y_400mf": (17, {"stem.0.weight": 0}),
    "small_cnn": (5, {"features.0.0.weight": 0, "features.8.1.bias": 4}),
    "timm:test_resnet": (5, {"conv1.0.weight": 0, "layer1.0.bn1.bias": 1}),
    "timm:test_vit": (7, {"cls_token": 0, "pos_embed": 0, "blocks.0.norm1.bias": 1,
                          "norm.weight": 6}),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_share_out_the_parameters_from_input_to_output(name: str) -> None:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        backbone = Backbone(name)
    layers = backbone.layers()
    count, places = BLOCKS[name]
    place = {id(p): i for i, layer in enumerate(layers) for p in layer}
    assert len(layers) == count
    assert sum(map(len, layers)) == len(place) == len(list(backbone.parameters()))
    for parameter, i in places.items():
        assert place[id(backbone.network.get_parameter(parameter))] == i, parameter

    # Photos come to the blocks in their order.
    order: list[int] = []
    for module in backbone.network.modules():
        own = list(module.parameters(recurse=False))
        if own and isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, __, own=own: order.append(place[id(own[0])]))
    side = backbone.side if "vit" in name else 64
    features(backbone, photos(side, 1).to(backbone.mean.device))
    assert order == sorted(order)


def test_frozen_parameters_are_in_no_block() -> None:
    network = EmbeddingNetwork(Backbone("small_cnn"), 8)
    all_layers = network.backbone.layers()
    network.freeze_until("features.4")
    assert [list(map(id, layer)) for layer in network.backbone.layers()] == [
        list(map(id, layer)) for layer in all_layers[2:]
    ]


@pytest.mark.parametrize(
    ("name", "matrices"),
    [
        ("small_cnn", set()),
        ("vit_b_32", {"class_token", "encoder.pos_embedding"}),
        ("swin_t", {"relative_position_bias_table"}),
        ("convnext_tiny", {"layer_scale"}),
        ("timm:test_vit", {"cls_token", "pos_embed"}),
        ("timm:test_convnext", set()),
    ],
)
def test_vectors_and_embeddings_do_not_decay(name: str, matrices: set[str]) -> None:
    with torch.device("meta"):
        backbone = Backbone(name)
    spared = set(map(id, backbone.undecayed()))
    for key, parameter in backbone.network.named_parameters():
        expected = parameter.ndim <= 1 or any(key.endswith(end) for end in matrices)
        assert (id(parameter) in spared) == expected, key
