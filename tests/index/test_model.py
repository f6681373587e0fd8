from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from index.errors import InvalidArgumentError, ModelError
from index.images import decode, resize
from index.model import CARD_FILE, GRAPH_FILE, Model
from tests.photos import encoded, picture
from tests.tiny_model import make_model_folder


@pytest.fixture
def folder(tmp_path):
    return make_model_folder(tmp_path / "model")


def batch(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)


def test_embeddings_are_unit_and_independent_of_the_batch(folder):
    model, pixels = Model.load(folder), batch(70)
    together = model.embed(pixels)
    assert together.shape == (70, 16)
    assert together.dtype == np.float32
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    alone = np.concatenate([model.embed(image[None]) for image in pixels])
    assert np.abs(together - alone).max() < 1e-6
    assert model.embed(pixels[:0]).shape == (0, 16)


def test_threads_share_a_model(folder):
    model, pixels = Model.load(folder), batch(64)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda image: model.embed(image[None])[0], pixels))
    assert np.abs(np.stack(parts) - model.embed(pixels)).max() < 1e-6


def test_prepare_is_decode_and_resize_as_the_card_says(folder):
    data = encoded(picture(0, height=40, width=90))
    expected = resize(decode(data), 32, 32, "squash").transpose(2, 0, 1)
    assert np.array_equal(Model.load(folder).prepare(data), expected)


@pytest.mark.parametrize(
    "pixels",
    [batch(1).astype(np.float32), batch(1)[0], batch(1)[:, :, :16], batch(1).transpose(0, 2, 3, 1)],
)
def test_embed_refuses_other_arrays(folder, pixels):
    with pytest.raises(InvalidArgumentError, match=r"uint8 \[n, 3, 32, 32\]"):
        Model.load(folder).embed(pixels)


def test_a_changed_byte_is_found(folder):
    graph = folder / GRAPH_FILE
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ModelError, match="not the file its card describes"):
        Model.load(folder)


def test_a_folder_that_is_no_model_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelError, match="dscl train"):
        Model.load(tmp_path)


def test_a_missing_graph_is_named(folder):
    (folder / GRAPH_FILE).unlink()
    with pytest.raises(ModelError, match=GRAPH_FILE):
        Model.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"dim": 0}, "positive integers"),
        ({"resize": "stretch"}, "stretch"),
        ({"sha256": None}, "card says"),
    ],
)
def test_a_card_that_cannot_be_right_is_refused(folder, change, message):
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(card | change))
    with pytest.raises(ModelError, match=message):
        Model.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_card_that_is_no_card_is_refused(folder, text):
    (folder / CARD_FILE).write_text(text)
    with pytest.raises(ModelError, match=CARD_FILE):
        Model.load(folder)


def test_a_missing_value_is_named(folder):
    card = json.loads((folder / CARD_FILE).read_text())
    del card["backbone"]
    (folder / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ModelError, match="backbone"):
        Model.load(folder)


def test_a_copy_is_the_same_model(folder, tmp_path):
    model = Model.load(folder)
    model.copy_to(tmp_path / "copy")
    assert Model.load(tmp_path / "copy").card == model.card
