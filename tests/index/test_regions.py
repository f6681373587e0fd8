"""Shares of regions: sums that are the cosine, against sums written out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from index import Gallery, Model
from index.errors import InvalidArgumentError, ModelError
from index.images import Area, resize, seen_area
from index.model import CARD_FILE, GRAPH_FILE, ModelCard
from index.regions import REGIONS_FILE, heat, similar_regions, with_outputs
from tests.photos import picture
from tests.tiny_model import PATCH, make_model_folder

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder)


def photos(n: int) -> NDArray[np.uint8]:
    pictures = [np.asarray(picture(i, height=SIDE, width=SIDE)) for i in range(n)]
    return np.stack(pictures).transpose(0, 3, 1, 2).copy()


def shares(seed: int, h: int = 3, w: int = 4, d: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(h, w, d)).astype(np.float32)


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def read(model: Model, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    reader = model.regions()
    assert reader is not None
    return reader.shares(pixels)


# What a model gives


def test_the_shares_of_all_regions_are_the_embedding(model: Model) -> None:
    pixels = photos(5)
    given = read(model, pixels)
    assert given.shape == (5, SIDE // PATCH, SIDE // PATCH, model.card.dim)
    total = given.sum(axis=(1, 2))
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(total, model.embed(pixels), rtol=0, atol=1e-5)


def test_contributions_of_two_photos_add_up_to_their_cosine(model: Model) -> None:
    pixels = photos(6)
    given, embeddings = read(model, pixels), model.embed(pixels)
    for i in range(0, 6, 2):
        found = similar_regions(given[i], given[i + 1])
        cosine = float(embeddings[i] @ embeddings[i + 1])
        assert found.score == pytest.approx(cosine, abs=1e-4)
        assert found.query.sum() == pytest.approx(cosine, abs=1e-4)
        assert found.result.sum() == pytest.approx(cosine, abs=1e-4)


def test_a_region_that_changes_is_where_the_contribution_changes(model: Model) -> None:
    pixels = photos(1).repeat(2, axis=0)
    pixels[1, :, :PATCH, -PATCH:] = 255 - pixels[1, :, :PATCH, -PATCH:]
    before, after = read(model, pixels)
    changed = np.abs(after - before).max(axis=2) > 1e-4
    expected = np.zeros_like(changed)
    expected[0, -1] = True
    np.testing.assert_array_equal(changed, expected)


def test_an_embedding_is_the_same_whether_regions_were_read_or_not(folder: Path) -> None:
    model, pixels = Model.load(folder), photos(2)
    before = model.embed(pixels)
    read(model, pixels)
    np.testing.assert_array_equal(model.embed(pixels), before)


def test_a_model_without_regions_says_so(tmp_path: Path) -> None:
    assert Model.load(make_model_folder(tmp_path / "plain", regions=False)).regions() is None


def test_a_card_written_before_there_were_regions_can_be_read(folder: Path, tmp_path: Path) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    del card["regions"]
    (tmp_path / CARD_FILE).write_text(json.dumps(card))
    assert ModelCard.read(tmp_path / CARD_FILE).regions is None


def test_a_gallery_keeps_what_shows_regions(folder: Path, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "cars", folder).close()
    with Gallery.open(tmp_path / "cars") as gallery:
        pixels = photos(2)
        np.testing.assert_array_equal(read(gallery.model, pixels), read(Model.load(folder), pixels))


def test_a_mirrored_map_counts_for_the_other_side(folder: Path, tmp_path: Path) -> None:
    """The second map is of the mirror image: here of the same photo, so it must be turned back."""
    mirrored = make_model_folder(tmp_path / "mirrored")
    card = ModelCard.read(mirrored / CARD_FILE)
    assert card.regions is not None
    both = dataclasses.replace(card.regions, maps=["cells", "cells"])
    (mirrored / CARD_FILE).write_text(dataclasses.replace(card, regions=both).to_json())
    pixels = photos(2)
    plain = read(Model.load(folder), pixels)
    expected = (plain + plain[:, :, ::-1]) / 2
    np.testing.assert_allclose(read(Model.load(mirrored), pixels), expected, rtol=0, atol=1e-6)


def test_a_changed_graph_of_regions_is_refused(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    model = Model.load(folder)
    data = (folder / REGIONS_FILE).read_bytes()
    (folder / REGIONS_FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"regions\.onnx is not the file its card describes"):
        model.regions()


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ({"file": "regions.onnx"}, "regions cannot be read"),
        ({"file": "../x.onnx", "sha256": "0", "maps": ["map"]}, "name of a file"),
        ({"file": "x.onnx", "sha256": "0", "maps": []}, "one or two tensors"),
        ([1], "regions cannot be read"),
    ],
)
def test_a_card_with_regions_that_make_no_sense_is_refused(
    folder: Path, tmp_path: Path, regions: object, said: str
) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    (tmp_path / CARD_FILE).write_text(json.dumps(card | {"regions": regions}))
    with pytest.raises(ModelError, match=said):
        ModelCard.read(tmp_path / CARD_FILE)


def test_a_graph_with_further_outputs_is_what_onnx_makes_of_it(folder: Path) -> None:
    graph = (folder / GRAPH_FILE).read_bytes()
    name = "cells" + "x" * 200  # its length takes two bytes
    found = onnx.load_from_string(with_outputs(graph, ["cells", name]))
    expected = onnx.load_from_string(graph)
    expected.graph.output.extend(
        [onnx.ValueInfoProto(name="cells"), onnx.ValueInfoProto(name=name)]
    )
    assert found == expected


# The arithmetic


def test_contributions_are_products_of_each_share_with_the_other_photos_embedding() -> None:
    a, b = shares(1), shares(2, h=2, w=2)
    found = similar_regions(a, b)
    embedding = unit(b.sum(axis=(0, 1)))
    length = np.linalg.norm(a.sum(axis=(0, 1)))
    for row in range(3):
        for column in range(4):
            expected = a[row, column] @ embedding / length
            assert found.query[row, column] == pytest.approx(expected, abs=1e-5)
    assert found.result.shape == (2, 2)


def test_pairs_are_the_largest_products_and_name_no_position_twice() -> None:
    a, b = shares(3), shares(4)
    found = similar_regions(a, b, pairs=4)
    lengths = np.linalg.norm(a.sum(axis=(0, 1))) * np.linalg.norm(b.sum(axis=(0, 1)))
    products = np.einsum("hwd,xyd->hwxy", a, b) / lengths
    first = found.pairs[0]
    assert first.contribution == pytest.approx(products.max(), abs=1e-5)
    for pair in found.pairs:
        assert pair.contribution == pytest.approx(products[(*pair.query, *pair.result)], abs=1e-5)
    assert len({pair.query for pair in found.pairs}) == 4
    assert len({pair.result for pair in found.pairs}) == 4
    amounts = [pair.contribution for pair in found.pairs]
    assert amounts == sorted(amounts, reverse=True)


def test_what_only_takes_away_is_no_pair() -> None:
    a = np.ones((1, 2, 3), np.float32)
    assert similar_regions(a, -a).pairs == []
    assert similar_regions(a, -a).score == pytest.approx(-1)


def test_photos_without_direction_have_score_zero() -> None:
    nothing = np.zeros((2, 2, 3), np.float32)
    found = similar_regions(nothing, shares(5, d=3))
    assert found.score == 0
    assert not found.query.any()


def test_shares_of_different_models_do_not_compare() -> None:
    with pytest.raises(InvalidArgumentError, match=r"\[3, 4, 5\] and \[3, 4, 6\]"):
        similar_regions(shares(1), shares(1, d=6))


def test_heat_is_one_where_most_is_added_and_zero_where_some_is_taken_away() -> None:
    given = np.array([[-1.0, 0.0], [0.5, 2.0]], np.float32)
    np.testing.assert_allclose(heat(given), [[0, 0], [0.25, 1]])
    np.testing.assert_array_equal(heat(-np.abs(given)), np.zeros((2, 2)))


# What the model sees of a photo


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("squash", Area(0, 0, 1, 1)),
        ("crop", Area(0.25, 0, 0.75, 1)),
        ("pad", Area(0, -0.5, 1, 1.5)),
    ],
)
def test_the_area_is_what_resizing_keeps(mode: str, expected: Area) -> None:
    """A photo twice as wide as high, for a square model."""
    assert seen_area(50, 100, 20, 20, mode) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
def test_a_mark_in_the_photo_is_where_the_area_says(mode: str) -> None:
    photo = np.zeros((60, 100, 3), np.uint8)
    photo[20:30, 60:70] = 255  # centre at 65 %, 25/60
    small = resize(photo, 40, 40, mode)[..., 0].astype(float)  # type: ignore[arg-type]
    rows, columns = np.nonzero(small > 200)
    area = seen_area(60, 100, 40, 40, mode)  # type: ignore[arg-type]
    x = area.left + (area.right - area.left) * (columns.mean() + 0.5) / 40
    y = area.top + (area.bottom - area.top) * (rows.mean() + 0.5) / 40
    assert (x, y) == pytest.approx((0.65, 25 / 60), abs=0.02)
