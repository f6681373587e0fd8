"""Shipped presets, and presets of the user's own."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.said import said_of
from tests.training.training_guide import GUIDE, with_tables
from training.fields import SettingField, sections, setting_fields
from training.presets import PresetError, list_presets, load_preset
from training.settings import TrainSettings

SHIPPED = ["cars196-mobilenet", "cars196-resnet50", "demo", "highest-recall", "laptop"]


def lines_of(name: str) -> list[str]:
    return (files("training.presets") / f"{name}.toml").read_text(encoding="utf-8").splitlines()


def preset(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(name_or_path: str | Path) -> str:
    with pytest.raises(PresetError) as caught:
        load_preset(str(name_or_path))
    return str(caught.value)


# The shipped ones


def test_the_shipped_presets_are_listed_with_their_purpose() -> None:
    assert list_presets() == [(name, lines_of(name)[0].removeprefix("# ")) for name in SHIPPED]
    for _, purpose in list_presets():
        assert purpose.endswith(".")
        assert len(purpose) <= 80


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_is_accepted_and_belongs_to_no_machine(name: str) -> None:
    values = load_preset(name)
    TrainSettings(data="cars", **values)
    assert values.keys() <= {field.name for field in dataclasses.fields(TrainSettings)}
    assert not values.keys() & {"data", "device", "feature_cache", "seed", "workers"}
    assert "/" not in values["weights"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_of_a_shipped_preset_says_what_follows_from_it(name: str) -> None:
    lines = lines_of(name)
    keys = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert len(keys) == len(load_preset(name))
    for i in keys:
        assert lines[i - 1].startswith("# "), lines[i]
        assert lines[i - 1].endswith("."), lines[i]
        assert "#" not in lines[i]


# A user's own


def test_a_file_may_spell_keys_as_on_the_command_line_and_name_what_is_where(
    tmp_path: Path,
) -> None:
    file = preset(
        tmp_path, 'data = "cars/"\nout = "runs/é"\nbatch-size = 96\nmin_area = 1\nflip = false\n'
    )
    values = load_preset(str(file))
    assert values == {
        "data": "cars/", "out": "runs/é", "batch_size": 96, "min_area": 1.0, "flip": False
    }  # fmt: skip
    assert isinstance(values["min_area"], float)


def values_of(field: SettingField) -> st.SearchStrategy[Any]:
    if field.choices:
        return st.sampled_from(field.choices)
    return {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        # JSON and TOML escape the same characters, these aside.
        str: st.text(st.characters(exclude_categories=["C"]), max_size=5),
    }[field.kind]


@settings(max_examples=60, deadline=None)
@given(said_of(values_of))
def test_what_a_file_says_is_read_as_it_stands(values: dict[str, Any]) -> None:
    text = "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()
    )
    with tempfile.TemporaryDirectory() as folder:
        assert load_preset(str(preset(Path(folder), text))) == values


def test_a_shipped_name_goes_before_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("dim = 7")
    assert load_preset("demo")["dim"] != 7
    assert load_preset("./demo") == {"dim": 7}


# Mistakes


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("labtop", "did you mean laptop?"),
        ("cars196", "did you mean cars196-resnet50?"),
        ("x", f"choose from {', '.join(SHIPPED)}."),
        ("runs", f"choose from {', '.join(SHIPPED)}."),  # a folder
    ],
)
def test_a_preset_that_is_not_there_is_refused_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way_out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert refusal(name) == f"there is no preset and no file '{name}': {way_out}"


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = preset(tmp_path, "dim = 8\nbatchsize = 96\n")
    message = refusal(file)
    assert message.startswith(f"{file}: unknown key 'batchsize': did you mean batch_size")
    assert message.endswith("?")


def test_an_unknown_key_like_no_other_is_refused_with_all(tmp_path: Path) -> None:
    file = preset(tmp_path, "zzz = 1")
    names = [field.name for field in dataclasses.fields(TrainSettings)]
    assert refusal(file) == f"{file}: unknown key 'zzz': choose from {', '.join(names)}, out."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('epochs = "many"', 'epochs is "many": expected a whole number.'),
        ("epochs = 1.5", "epochs is 1.5: expected a whole number."),
        ("epochs = true", "epochs is true: expected a whole number."),
        ("size = [224]", "size is [224]: expected a whole number."),
        ("lr = false", "lr is false: expected a number."),
        ('lr = "1e-3"', 'lr is "1e-3": expected a number.'),
        ("flip = 1", "flip is 1: expected true or false."),
        ('flip = "no"', 'flip is "no": expected true or false.'),
        ("train-classes = 98", "train_classes is 98: expected text in quotes."),
        ("data = 2024-01-31", 'data is "2024-01-31": expected text in quotes.'),
        ('[out]\nfolder = "x"', 'out is {"folder": "x"}: expected text in quotes.'),
        ('resize = "fit"', 'resize is "fit": expected "squash" or "crop" or "pad".'),
        ("resize = 3", 'resize is 3: expected "squash" or "crop" or "pad".'),
    ],
)
def test_a_value_of_another_type_is_refused_by_file_key_and_expectation(
    tmp_path: Path, line: str, message: str
) -> None:
    file = preset(tmp_path, line)
    assert refusal(file) == f"{file}: {message}"


def test_a_key_spelled_both_ways_is_refused(tmp_path: Path) -> None:
    file = preset(tmp_path, "batch_size = 1\nbatch-size = 2\n")
    assert refusal(file) == f"{file}: batch_size stands twice, with - and with _: keep one."


@pytest.mark.parametrize("content", [b"dim: 8\n", b"dim = 8\ndim = 9\n", b"# \xff\n"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file} cannot be read as TOML: ")


# What presets and options are checked against


def test_fields_say_of_the_settings_what_their_annotations_say() -> None:
    known = {field.name: field for field in setting_fields()}
    assert list(known) == [field.name for field in dataclasses.fields(TrainSettings)]
    shown = {
        name: (known[name].kind, known[name].optional, known[name].choices)
        for name in ("epochs", "size", "lr", "flip", "train_classes", "resize")
    }
    assert shown == {
        "epochs": (int, False, ()),
        "size": (int, True, ()),
        "lr": (float, False, ()),
        "flip": (bool, False, ()),
        "train_classes": (str, True, ()),
        "resize": (str, False, ("squash", "crop", "pad")),
    }
    for field in setting_fields():
        assert field.accepts(field.default) or (field.default is None and field.optional)


def test_sections_hold_every_field_once() -> None:
    held = [field for fields in sections().values() for field in fields]
    assert sorted(held, key=lambda field: field.name) == sorted(
        setting_fields(), key=lambda field: field.name
    )


# docs/training.md


def test_the_guide_names_every_setting_loss_and_preset_as_it_is() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert text == with_tables(text), "run: python -m tests.training.training_guide"


def test_the_guides_example_of_a_preset_is_one(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    values = load_preset(str(preset(tmp_path, example[1])))
    assert TrainSettings(**{k: v for k, v in values.items() if k != "out"}).batch_size == 2048
