"""Drawn cars: the same for the same seed, alike only where they should be, never half written."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from index.errors import DataError, InvalidArgumentError
from training.render import BodyType, CarModel, render_car, render_dataset
from training.render.paint import Camera


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def model(number: int, body: BodyType | None = None) -> CarModel:
    return CarModel.sample(np.random.default_rng([7, number]), body=body)


def photo(car: CarModel, number: int, size: int = 96) -> NDArray[np.uint8]:
    return render_car(car, np.random.default_rng([8, number]), size=size)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cars") / "set"
    render_dataset(out, classes=9, per_class=3, size=64, seed=3)
    return out


def test_same_seed_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path / "again", classes=9, per_class=3, size=64, seed=3)
    assert files(tmp_path / "again") == files(small)


def test_another_seed_gives_other_photos(small: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path / "other", classes=9, per_class=3, size=64, seed=4)
    ours, others = files(small), files(tmp_path / "other")
    assert ours.keys() == others.keys()
    assert not set(ours.values()) & set(others.values())


def test_a_larger_set_contains_the_smaller_one(small: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path / "more", classes=11, per_class=4, size=64, seed=3)
    assert set(files(small).values()) < set(files(tmp_path / "more").values())


def test_no_two_photos_are_alike(small: Path) -> None:
    photos = files(small)
    assert len(set(photos.values())) == len(photos) == 27


def test_classes_are_split_in_halves_and_body_types_take_turns(small: Path) -> None:
    train = [folder.name for folder in (small / "train").iterdir()]
    test = [folder.name for folder in (small / "test").iterdir()]
    assert sorted(train) == ["coupe-04", "hatch-02", "sedan-01", "suv-05", "wagon-03"]
    assert sorted(test) == ["hatch-09", "pickup-06", "sedan-08", "van-07"]
    for folder in small.glob("*/*"):
        assert sorted(path.name for path in folder.iterdir()) == ["000.jpg", "001.jpg", "002.jpg"]


def test_share_of_test_classes_is_as_asked(tmp_path: Path) -> None:
    render_dataset(tmp_path / "set", classes=5, test_classes=1, per_class=2, size=32)
    assert len(list((tmp_path / "set" / "train").iterdir())) == 4
    assert len(list((tmp_path / "set" / "test").iterdir())) == 1


@pytest.mark.parametrize(("size", "height"), [(32, 24), (64, 48), (101, 76), (300, 225)])
def test_photos_have_the_width_asked_for_and_three_quarters_of_it_as_height(
    size: int, height: int
) -> None:
    pixels = photo(model(0), 0, size)
    assert pixels.shape == (height, size, 3)
    assert pixels.dtype == np.uint8


def test_every_file_is_an_rgb_photo_of_the_size(small: Path) -> None:
    for data in files(small).values():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 48))


@pytest.mark.parametrize("body", BodyType)
def test_every_body_type_renders_from_every_draw_of_its_parameters(body: BodyType) -> None:
    for number in range(8):
        pixels = photo(model(number, body), number, 48)
        assert pixels.std() > 10


@pytest.mark.parametrize("number", range(12))
def test_parameters_leave_a_roof_and_ground_under_the_car(number: int) -> None:
    for body in BodyType:
        car = model(number, body)
        roof = 1 - car.bonnet - car.screen - car.backlight - car.deck
        assert roof > 0.1
        assert 0 < car.clearance < car.wheel_radius < car.nose_height < car.cowl_height < car.height


def test_body_type_is_drawn_unless_given() -> None:
    assert {model(number).body for number in range(60)} == set(BodyType)


def test_two_models_of_a_body_type_differ_in_shape_and_look() -> None:
    first, second = model(0, BodyType.SUV), model(1, BodyType.SUV)
    differing = sum(a != b for a, b in zip(astuple(first), astuple(second), strict=True))
    assert differing > 20
    # The same chance paints the same scene, so what differs is the car alone.
    changed = np.abs(photo(first, 0).astype(int) - photo(second, 0)).max(axis=2) > 24
    assert changed.mean() > 0.05


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("headlight", ("round", "slim", "block", "swept", "split")),
        ("grille", ("bars", "mesh", "pair", "shield", "slot", "closed")),
        ("taillight", ("upright", "wide", "bar", "round", "hook")),
        ("wheel_style", ("spokes", "twin", "turbine", "disc")),
        ("doors", (2, 4)),
        ("cladding", (False, True)),
        ("roof_rails", (False, True)),
        ("spoiler", (False, True)),
        ("sunroof", (False, True)),
    ],
)
def test_each_choice_of_a_parameter_shows(name: str, values: tuple[object, ...]) -> None:
    base = model(5, BodyType.HATCH)
    looks = []
    for value in values:
        car = replace(base, **{name: value})  # type: ignore[arg-type]
        looks.append(np.concatenate([photo(car, number, 64) for number in range(6)]).tobytes())
    assert len(set(looks)) == len(values)


def test_mean_colour_does_not_tell_classes_apart() -> None:
    """Chance is 5/47 for 8 classes of 6 photos; geometry must carry the rest."""
    cars = [model(number) for number in range(8)]
    colours = np.array(
        [
            photo(car, 10 * k + i, 48).mean(axis=(0, 1))
            for k, car in enumerate(cars)
            for i in range(6)
        ]
    )
    labels = np.repeat(np.arange(8), 6)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).mean() < 0.3


def test_paint_varies_within_a_class() -> None:
    car = model(2, BodyType.PICKUP)
    middles = np.array([photo(car, i, 48)[20:34, 14:34].mean(axis=(0, 1)) for i in range(12)])
    assert middles.std(axis=0).max() > 25


def test_cars_face_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """A black pick-up from the side on white: its cab is the taller end."""
    view = Camera(np.array([0.0, 10.0, 1.0]), np.array([0.0, 0.0, 0.65]))
    monkeypatch.setattr("training.render.scene.random_view", lambda rng: view)
    monkeypatch.setattr("training.render.scene.random_paint", lambda rng: np.full(3, 0.05))
    monkeypatch.setattr("training.render.photo.occlude", lambda *scene: None)
    monkeypatch.setattr(
        "training.render.scene.backdrop",
        lambda rng, camera, light, footprint, height, size: Image.new("RGB", size, "white"),
    )
    car = model(2, BodyType.PICKUP)
    cabs = []
    for number in range(8):
        columns = (photo(car, number).max(axis=2) < 140).sum(axis=0)
        left, right = np.flatnonzero(columns)[[0, -1]]
        cabs.append(int(columns.argmax() > (left + right) / 2))
    assert 0 < sum(cabs) < len(cabs)


def test_progress_counts_up_to_all_photos(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    render_dataset(
        tmp_path / "set",
        classes=2,
        per_class=2,
        size=32,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"classes": 1}, "classes is 1"),
        ({"classes": 4, "test_classes": 0}, "test_classes is 0"),
        ({"classes": 4, "test_classes": 4}, "test_classes is 4"),
        ({"per_class": 1}, "per_class is 1"),
        ({"size": 31}, "size is 31"),
        ({"size": 1025}, "size is 1025"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, int], named: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        render_dataset(tmp_path / "set", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_photo_of_a_size_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="size is 16"):
        photo(model(0), 0, 16)


def test_a_folder_with_files_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="mine is not empty"):
        render_dataset(tmp_path / "mine", classes=2, per_class=2, size=32)
    assert files(tmp_path) == {"mine/notes.txt": b"keep"}


def test_a_file_in_place_of_the_folder_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(DataError, match="mine is a file"):
        render_dataset(tmp_path / "mine", classes=2, per_class=2, size=32)
    assert files(tmp_path) == {"mine": b"keep"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    render_dataset(tmp_path / "set", classes=2, per_class=2, size=32)
    assert len(files(tmp_path)) == 4


def test_nothing_is_left_when_rendering_breaks_off(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_dataset(tmp_path / "set", classes=2, per_class=2, size=32, progress=stop)
    assert not list(tmp_path.iterdir())


def test_drawing_needs_no_torch() -> None:
    code = "import sys, training.render; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
