"""Backbones without their classifiers, their weights, and the head."""

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
from training.network import Backbone, EmbeddingNetwork, WeightsError, default_size

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


@pytest.mark.parametrize("name", ["resnet_18", "deeplabv3_resnet50", ""])
def test_an_unknown_backbone_is_refused_by_name(name: str) -> None:
    for use in (Backbone, default_size):
        with pytest.raises(InvalidArgumentError, match=rf"{name!r}: .* resnet18, .*small_cnn"):
            use(name)


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
