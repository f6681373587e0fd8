"""``dscl train``, ``dscl export`` and ``dscl data`` as they are typed."""

from __future__ import annotations

import dataclasses
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from index.errors import DataError, DsclError, InvalidArgumentError
from index.images import resize
from index.model import Model
from service.cli import dscl
from tests.photos import picture, write_class_folders, write_photo
from tests.service.running import run_dscl
from tests.training.said import said_of
from training.backbones import Backbone
from training.commands import train
from training.fields import SettingField, setting_fields
from training.network import EmbeddingNetwork
from training.options import Origin, origins
from training.presets import list_presets
from training.run import Run
from training.settings import TrainSettings
from training.whitening import Whitening


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(dscl, [str(argument) for argument in arguments])


def printed(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


# Mistakes


def test_a_mistake_in_the_input_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = run_dscl("data", "info", tmp_path / "nowhere")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {tmp_path / 'nowhere'} does not exist")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing option '--data'"),
        (["export"], "Give either --backbone or --run."),
        (["export", "--backbone", "small_cnn", "--run", "r"], "Give either --backbone or --run."),
        (["export", "--backbone", "small_cnn"], "Missing option '--out'"),
        (["export", "--backbone", "small_cnn", "--out", "m", "--dim", "8"], "needs --whiten-on"),
        (["export", "--backbone", "small_cnn", "--out", "m", "--resize", "x"], "'x' is not one of"),
        (["export", "--backbone", "small_cnn", "--out", "m", "--mirror"], "go with --run"),
        (["train", "--data", "d", "--device", "gpu"], "'gpu' is not one of"),
        (["train", "--data", "d", "--epochs", "many"], "'many' is not a valid integer"),
        (["data", "render"], "Missing option '--out'"),
        (["data", "info"], "Missing argument 'PATH'"),
    ],
)
def test_options_that_do_not_fit_are_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_settings_out_of_range_are_refused_before_a_run_folder_is_made(tmp_path: Path) -> None:
    result = invoke("train", "--data", tmp_path, "--out", tmp_path / "run", "--lr", "-1")
    assert isinstance(result.exception, InvalidArgumentError)
    assert str(result.exception) == "--lr is -1.0: expected at least 0."
    assert not (tmp_path / "run").exists()


def test_every_setting_is_an_option_with_its_default_and_help() -> None:
    options = {option.name: option for option in train.params}
    for setting in dataclasses.fields(TrainSettings):
        option = options[setting.name]
        assert option.default == setting.default
        assert f"--{setting.name.replace('_', '-')}" in option.opts
    assert options.keys() - {field.name for field in dataclasses.fields(TrainSettings)} == {
        "out", "resume", "preset", "list_presets", "nproc"
    }  # fmt: skip
    text = " ".join(printed("train", "--help").split())
    assert "AdamW's weight decay. [default: 0.0001]" in text
    assert "--flip / --no-flip" in text


def test_help_shows_every_option_once_under_its_section() -> None:
    lines = printed("train", "--help").splitlines()
    section, found = "", {}
    for line in lines[lines.index("Run:") :]:
        if line.endswith(":") and not line.startswith(" "):
            section = line[:-1]
        elif line.startswith("  -"):
            found[line.split()[0].rstrip(",")] = section
    expected = {field.option: field.section for field in setting_fields()}
    assert found == expected | dict.fromkeys(
        ["--preset", "--list-presets", "--out", "--resume", "--nproc", "-h"], "Run"
    )
    assert sum(line.startswith("  -") for line in lines) == len(found)


# Presets


def settings_and_origins(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Origin]]:
    """What ``dscl train`` makes of these arguments, without training."""
    context = train.make_context("dscl train", list(arguments))
    names = {field.name for field in dataclasses.fields(TrainSettings)}
    return (
        {name: value for name, value in context.params.items() if name in names},
        {name: origin for name, origin in origins(context).items() if name in names},
    )


def two_values(field: SettingField) -> st.SearchStrategy[tuple[Any, Any]]:
    """What the preset says of a field, and what the command line says; either may say nothing."""
    values: st.SearchStrategy[Any]
    if field.choices:
        values = st.sampled_from(field.choices)
    elif field.kind is str:
        values = st.text("ab-=. ", min_size=1, max_size=3)
    else:
        values = {bool: st.booleans(), int: st.integers(-9, 9), float: st.floats(-9, 9)}[field.kind]
    return st.tuples(st.just(SILENT) | values, st.just(SILENT) | values)


SILENT = object()


@settings(max_examples=60, deadline=None)
@given(said_of(two_values))
def test_what_is_typed_goes_before_the_preset_and_the_preset_before_the_default(
    said: dict[str, tuple[Any, Any]],
) -> None:
    preset = {name: value for name, (value, _) in said.items() if value is not SILENT}
    typed = {name: value for name, (_, value) in said.items() if value is not SILENT}
    arguments = []
    for name, value in typed.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            arguments += [f"--{option}", str(value)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.toml"
        file.write_text("".join(f"{name} = {json.dumps(v)}\n" for name, v in preset.items()))
        values, sources = settings_and_origins([*arguments, "--preset", str(file)])
    defaults = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    assert values == defaults | preset | typed
    assert sources == (
        dict.fromkeys(defaults, "default")
        | dict.fromkeys(preset, "preset")
        | dict.fromkeys(typed, "command line")
    )


def test_the_word_default_takes_back_what_a_preset_says() -> None:
    before, _ = settings_and_origins(["--preset", "laptop"])
    after, sources = settings_and_origins(
        ["--preset", "laptop", "--freeze-until", "default", "--epochs", "default"]
    )
    own = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    taken_back = {name: own[name] for name in ("freeze_until", "epochs")}
    assert not taken_back.items() & before.items()
    assert after == before | taken_back
    assert sources["freeze_until"] == sources["epochs"] == "command line"


def test_the_presets_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = printed("train", "--list-presets").splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [list(item) for item in list_presets()]
    assert list(tmp_path.iterdir()) == []


def test_a_preset_out_of_range_is_refused_like_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'data = "cars"\nout = "{tmp_path / "run"}"\nlr = -1\n')
    result = invoke("train", "--preset", file)
    assert isinstance(result.exception, InvalidArgumentError)
    assert str(result.exception) == f"--lr is -1.0: expected at least 0. (With --preset {file}.)"
    assert not (tmp_path / "run").exists()


def test_a_preset_that_does_not_exist_is_one_line_with_the_nearest() -> None:
    result = run_dscl("train", "--preset", "labtop", "--data", "cars")
    assert result.returncode == 1
    assert result.stderr == (
        "Error: there is no preset and no file 'labtop': did you mean laptop?\n"
    )


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    result = invoke("train", "--batchsize", "8")
    assert result.exit_code == 2
    assert "--batch-size" in result.output


def test_a_preset_trains_and_is_kept_with_the_command(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "my cars")
    file = tmp_path / "mine.toml"
    file.write_text(
        f'data = "{data}"\nout = "{tmp_path / "run"}"\nbackbone = "small_cnn"\nweights = "none"\n'
        'train-classes = "2"\ndim = 8\nsize = 32\nbatch-size = 16\nepochs = 2\n'
    )
    output = printed("train", "--preset", file, "--dim", "2", "--epochs", "1", "--no-flip")
    run = Run.open(tmp_path / "run")
    kept = run.settings
    assert (kept.data, kept.dim, kept.epochs, kept.flip) == (str(data), 2, 1, False)
    assert (kept.batch_size, kept.train_classes) == (16, "2")
    lines = [line.split() for line in output.splitlines()]
    assert ["--dim", "2", "command", "line"] in lines
    assert ["--batch-size", "16", "preset"] in lines
    assert ["--seed", "0", "default"] in lines

    record = json.loads((run.path / "run.json").read_text())
    assert record["preset"] == str(file)
    assert shlex.split(record["command"])[-7:] == [
        "train", "--preset", str(file), "--dim", "2", "--epochs", "1", "--no-flip"
    ][-7:]  # fmt: skip

    # The run was told otherwise than the preset says, and the preset is compared like the options.
    result = invoke("train", "--resume", run.path, "--preset", file, "--flip")
    assert isinstance(result.exception, InvalidArgumentError)
    assert (
        "these differ: dim (run: 2, preset: 8), epochs (run: 1, preset: 2), "
        "flip (run: False, given: True). Leave"
    ) in str(result.exception)
    file.write_text(f'data = "{data}"\ndim = 2\nout = "{run.path}"\n')
    lines = [line.split() for line in printed(
        "train", "--resume", run.path, "--preset", file, "--no-flip"
    ).splitlines()]  # fmt: skip
    assert ["--dim", "2", "run"] in lines


# dscl train


def test_train_prints_its_settings_and_makes_a_model(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "cars")
    out = tmp_path / "run"
    output = printed(
        "train", "--data", data, "--out", out, "--backbone", "small_cnn", "--weights", "none",
        "--train-classes", "2", "--dim", "2", "--size", "32", "--epochs", "1",
        "--batch-size", "16", "--no-flip",
    )  # fmt: skip
    for line in (
        ["--backbone", "small_cnn", "command", "line"],
        ["--flip", "false", "command", "line"],
        ["--lr", "0.001", "default"],
        ["--freeze-until", "–", "default"],
    ):
        assert line in [printed_line.split() for printed_line in output.splitlines()]
    assert f"Run folder: {out} (live plots: tensorboard --logdir {out})" in output
    assert output.index("Run folder") < output.index("Training small_cnn (none weights) with dscl")
    assert f"Exported {out / 'model'}" in output
    card = Model.load(out / "model").card
    assert (card.protocol, card.settings["flip"]) == ("folders 2/1", False)


def test_a_process_of_several_that_is_not_told_where_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = invoke("train", "--data", "cars")
    assert result.exit_code == 2
    assert "Missing option '--out'" in result.output
    assert list(tmp_path.iterdir()) == []


# dscl export


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "street"
    for seed in range(30):
        write_photo(folder / f"{seed}.jpg", seed)
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


def export_frozen(out: Path, *options: str | Path) -> Model:
    output = printed(
        "export", "--backbone", "small_cnn", "--weights", "none", "--size", "32", "--out", out,
        "--seed", "5", *options,
    )  # fmt: skip
    model = Model.load(out)
    assert f"Exported {out}: {model.card.name}, {model.card.dim} values a vector" in output
    return model


def frozen_features(seed: int, pixels: np.ndarray) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        features: torch.Tensor = Backbone("small_cnn").eval()(torch.from_numpy(pixels))
    return features


def test_a_frozen_backbone_gives_its_features_at_unit_length(tmp_path: Path) -> None:
    model = export_frozen(tmp_path / "model", "--resize", "pad")
    assert (model.card.name, model.card.dim) == ("small_cnn-none", 192)
    assert (model.card.height, model.card.width, model.card.resize) == (32, 32, "pad")
    assert (model.card.seed, model.card.dataset, model.card.metrics) == (5, None, {})
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    expected = nn.functional.normalize(frozen_features(5, pixels)).numpy()
    np.testing.assert_allclose(model.embed(pixels), expected, rtol=0, atol=1e-6)


def test_a_frozen_backbone_is_whitened_on_photos_without_labels(
    tmp_path: Path, unlabelled: Path
) -> None:
    model = export_frozen(
        tmp_path / "model", "--whiten-on", unlabelled, "--dim", "6", "--whitening-ridge", "0.5"
    )
    assert (model.card.name, model.card.dim) == ("small_cnn-none-whitened", 6)
    assert (model.card.dataset, model.card.settings["whitening_ridge"]) == ("street", 0.5)
    files = sorted(unlabelled.glob("[0-9]*.jpg"))
    pixels = np.stack([model.prepare(file) for file in files])
    features = frozen_features(5, pixels)
    white = Whitening.fit(features, ridge=0.5, dim=6).apply(features)
    cosines = nn.functional.normalize(white)
    found = model.embed(pixels)
    # Axes are known up to their direction.
    np.testing.assert_allclose(
        found @ found.T, (cosines @ cosines.T).numpy(), rtol=0, atol=2e-5
    )  # fmt: skip


def test_the_weights_of_a_run_go_on_as_a_frozen_backbone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = EmbeddingNetwork(Backbone("small_cnn"), 4)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    model = export_frozen(tmp_path / "model", "--weights", tmp_path / "mine.pth")
    assert model.card.name == "small_cnn-mine"
    photo = resize(np.asarray(picture(0)), 32, 32, "squash").transpose(2, 0, 1)[None].copy()
    expected = nn.functional.normalize(frozen_features(1, photo)).numpy()
    np.testing.assert_allclose(model.embed(photo), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "resnet_18"], "--backbone is 'resnet_18'"),
        (["--size", "0"], "--size is 0, and squeezenet1_1 cannot take photos of 0 × 0 pixels"),
        (["--size", "8"], "--size is 8, and squeezenet1_1 cannot take photos of 8 × 8 pixels"),
        (["--whiten-on", "nowhere"], "nowhere does not exist"),
        (["--whiten-on", "street", "--dim", "513"], "--dim is 513: whitening keeps 1 … 512"),
        (["--whiten-on", "street", "--whitening-ridge", "nan"], "whitening ridge is nan"),
        (["--whiten-on", "street/0.jpg"], "whitening needs at least 2 photos, and got 1"),
        (["--whiten-on", "street/broken.jpg"], "none of 1 photos can be read"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    tmp_path: Path,
    unlabelled: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(unlabelled.parent)
    result = invoke(
        "export", "--backbone", "squeezenet1_1", "--weights", "none", "--size", "32",
        "--out", tmp_path / "model", *options,
    )  # fmt: skip
    assert isinstance(result.exception, DsclError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_exported_again_with_another_embedding(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "cars", classes=4, per_class=4)
    printed(
        "train", "--data", tmp_path / "cars", "--backbone", "small_cnn", "--weights", "none",
        "--size", "32", "--dim", "2", "--batch-size", "8", "--images-per-class", "4",
        "--epochs", "1", "--no-baseline", "--out", tmp_path / "run",
    )  # fmt: skip
    before = Model.load(tmp_path / "run" / "model")
    assert before.card.dim == 2
    said = printed(
        "export", "--run", tmp_path / "run", "--embedding", "features", "--feature-power", "0.5",
        "--mirror",
    )  # fmt: skip
    assert "backbone features" in said
    model = Model.load(tmp_path / "run" / "model")
    assert model.card.dim == 192
    assert model.card.sha256 != before.card.sha256
    photo = np.asarray(picture(0, height=32, width=32)).transpose(2, 0, 1)[None].copy()
    mirrored = photo[:, :, :, ::-1].copy()
    np.testing.assert_allclose(model.embed(photo), model.embed(mirrored), rtol=0, atol=1e-5)
    changed = {"embedding": "features", "feature_power": 0.5, "mirror": True}
    for kept in (Run.open(tmp_path / "run").settings.to_dict(), model.card.settings):
        assert changed.items() <= kept.items()


def test_exporting_what_is_no_run_is_refused(tmp_path: Path) -> None:
    result = invoke("export", "--run", tmp_path)
    assert isinstance(result.exception, DsclError)
    assert f"{tmp_path} is not a run folder" in str(result.exception)


# dscl data


def test_render_draws_a_data_set_that_info_describes(tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    output = printed(
        "data", "render", "--out", out, "--classes", "3", "--test-classes", "1",
        "--per-class", "2", "--size", "48", "--seed", "4",
    )  # fmt: skip
    assert f"Drew 6 photos of 3 models of car into {out}." in output
    files = sorted(out.rglob("*.jpg"))
    assert len(files) == 6
    assert {Image.open(file).size for file in files} == {(48, 36)}
    assert json.loads(printed("data", "info", out, "--json")) == {
        "name": "drawn",
        "protocol": "folders 2/1",
        "layout": "train-test",
        "train": {"photos": 4, "classes": 2},
        "test": {"photos": 2, "classes": 1},
        "notes": [],
    }


def test_info_says_how_photos_are_split(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "cars", classes=4, per_class=2)
    assert printed("data", "info", data, "--train-classes", "3").splitlines() == [
        "cars · folders 3/1 · layout folders",
        "  train 6 photos of 3 classes",
        "  test  2 photos of 1 classes",
    ]


def test_info_tells_queries_from_their_gallery(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    splits = ["train"] * 8 + ["query"] + ["gallery"] * 3
    rows = [f"car-{i // 4}/{i % 4}.jpg,car-{i // 4},{split}" for i, split in enumerate(splits)]
    file = tmp_path / "shop.csv"
    file.write_text("\n".join(["path,label,split", *rows]))
    assert "  test  4 photos of 1 classes, 1 queries to the others" in (
        printed("data", "info", file).splitlines()
    )
    assert json.loads(printed("data", "info", file, "--json"))["test"] == {
        "photos": 4, "classes": 1, "queries": 1
    }  # fmt: skip


def test_info_shows_what_a_reader_of_the_figures_should_know(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "cars" / "train").parent
    write_class_folders(data / "val", classes=1)
    assert printed("data", "info", data).splitlines() == [
        "cars · folders 3/0 · layout train-test",
        "  train 12 photos of 3 classes",
        "  only train/ and test/ are used, not val",
    ]


def test_info_on_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    for arguments in ([tmp_path], [tmp_path / "nowhere"], [tmp_path, "--crop-boxes"]):
        assert isinstance(invoke("data", "info", *arguments).exception, DataError)
