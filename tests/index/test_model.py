from __future__ import annotations

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

from index.errors import InvalidArgumentError, ModelError
from index.files import sha256_bytes
from index.images import decode, resize
from index.model import CARD_FILE, GRAPH_FILE, Model
from tests.photos import encoded, picture
from tests.tiny_model import make_model_folder


@pytest.fixture
def folder(tmp_path):
    return make_model_folder(tmp_path / "model")


INT8_FILE = "model.int8.onnx"


def change_card(folder, **values):
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(card | values))


def without_unit_length(graph: bytes) -> bytes:
    """The graph as quantisation may leave it: its vectors are 100 times too long."""
    model = onnx.load_from_string(graph)
    (division,) = (node for node in model.graph.node if node.op_type == "Div")
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array(0.01, np.float32), "hundredth")
    )
    last = onnx.helper.make_node("Div", ["unit", "hundredth"], [division.output[0]])
    division.output[0] = "unit"
    model.graph.node.append(last)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture
def two_graphs(folder):
    """A model with an int8 graph, which is off unit length."""
    graph = without_unit_length((folder / GRAPH_FILE).read_bytes())
    (folder / INT8_FILE).write_bytes(graph)
    entry = {"file": INT8_FILE, "sha256": sha256_bytes(graph), "metrics": {"recall": {"1": 0.5}}}
    change_card(folder, precisions={"int8": entry})
    return folder


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


# Precisions


def test_a_model_says_what_it_is_computed_in_and_keeps_its_identity(two_graphs):
    exact, int8 = Model.load(two_graphs), Model.load(two_graphs, precision="int8")
    assert (exact.precision, exact.runtime) == ("fp32", "onnxruntime")
    assert (int8.precision, int8.runtime) == ("int8", "onnxruntime")
    assert exact.sha256 == int8.sha256 == sha256_bytes((two_graphs / GRAPH_FILE).read_bytes())
    assert int8.card.precisions["int8"].metrics == {"recall": {"1": 0.5}}


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"), ("openvino", "bf16")],
)
def test_vectors_have_unit_length_at_every_precision(two_graphs, runtime, precision):
    """Whatever the graph gives: here vectors 100 times as long."""
    exact = Model.load(two_graphs).embed(batch(40))
    long = (two_graphs / INT8_FILE).read_bytes()
    (two_graphs / GRAPH_FILE).write_bytes(long)
    change_card(two_graphs, sha256=sha256_bytes(long))
    raw = onnxruntime.InferenceSession(long).run(None, {"pixels": batch(40)})[0]
    assert np.linalg.norm(raw, axis=1).min() > 99

    if runtime == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    try:
        model = Model.load(two_graphs, runtime=runtime, precision=precision)
    except ModelError as error:
        if "does not compute in bf16" not in str(error):
            raise
        pytest.skip(str(error))
    vectors = model.embed(batch(40))
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert (vectors * exact).sum(axis=1).min() > (0.99 if precision == "bf16" else 0.999999)


def test_a_vector_without_direction_is_zero_and_not_nan(two_graphs):
    grey = np.full((1, 3, 32, 32), 127, np.uint8)
    grey[..., ::2] = 128
    for precision in ("fp32", "int8"):
        assert np.array_equal(Model.load(two_graphs, precision=precision).embed(grey),
                              np.zeros((1, 16), np.float32))  # fmt: skip


def test_a_precision_that_was_not_exported_says_which_are_and_how_to_make_it(folder):
    with pytest.raises(ModelError, match=r"fp32, bf16\..*dscl export --int8"):
        Model.load(folder, precision="int8")


def test_a_card_from_before_there_were_precisions_is_read(folder):
    card = json.loads((folder / CARD_FILE).read_text())
    del card["precisions"]
    (folder / CARD_FILE).write_text(json.dumps(card))
    assert Model.load(folder).card.precisions == {}


@pytest.mark.parametrize(
    ("precisions", "message"),
    [
        (["int8"], "expected an object"),
        ({"int8": None}, "cannot be read"),
        ({"int8": {"file": INT8_FILE}}, "sha256"),
        ({"int8": {"file": "../model.onnx", "sha256": ""}}, "name of a file in the model folder"),
        ({"int8": {"file": None, "sha256": ""}}, "name of a file in the model folder"),
    ],
)
def test_precisions_that_cannot_be_right_are_refused(folder, precisions, message):
    change_card(folder, precisions=precisions)
    with pytest.raises(ModelError, match=message):
        Model.load(folder)


def test_a_changed_byte_in_another_precision_is_found_when_that_is_used(two_graphs):
    graph = two_graphs / INT8_FILE
    graph.write_bytes(graph.read_bytes() + b"\0")
    Model.load(two_graphs)
    with pytest.raises(ModelError, match=f"{INT8_FILE} is not the file its card describes"):
        Model.load(two_graphs, precision="int8")


def test_a_copy_has_all_precisions(two_graphs, tmp_path):
    Model.load(two_graphs).copy_to(tmp_path / "copy")
    copied = Model.load(tmp_path / "copy", precision="int8").embed(batch(3))
    assert np.array_equal(copied, Model.load(two_graphs, precision="int8").embed(batch(3)))


@pytest.mark.parametrize("name", [GRAPH_FILE, INT8_FILE])
@pytest.mark.parametrize("content", [b"other", None])
def test_a_graph_that_changed_since_is_not_copied(two_graphs, tmp_path, name, content):
    model = Model.load(two_graphs)
    (two_graphs / name).unlink()
    if content is not None:
        (two_graphs / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"changed|cannot be copied"):
        model.copy_to(tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_threads_are_refused(folder):
    with pytest.raises(InvalidArgumentError, match="threads is 0"):
        Model.load(folder, threads=0)
