"""A model folder in milliseconds: random projections of a shrunken photo, as real ONNX graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from index.files import sha256_bytes
from index.model import CARD_FILE, GRAPH_FILE, ModelCard
from index.regions import REGIONS_FILE, RegionGraph

PATCH = 8


def make_model_folder(
    path: Path, *, dim: int = 16, size: int = 32, seed: int = 0, regions: bool = True
) -> Path:
    """Write a model folder whose graph is pool → flatten → project → unit length.

    With ``regions`` it can also say what each pooled cell adds to the embedding.
    """
    cells = (size // PATCH) ** 2 * 3
    projection = np.random.default_rng(seed).normal(size=(cells, dim)).astype(np.float32)
    constants = {
        "half": np.array(127.5, np.float32),
        "shape": np.array([0, cells], np.int64),
        "projection": projection,
        "axis": np.array([1], np.int64),
        "tiny": np.array(1e-12, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["real", "half"], ["centred"]),
        helper.make_node(
            "AveragePool", ["centred"], ["cells"], kernel_shape=[PATCH] * 2, strides=[PATCH] * 2
        ),
        helper.make_node("Reshape", ["cells", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "projection"], ["projected"]),
        helper.make_node("ReduceL2", ["projected", "axis"], ["norm"], keepdims=1),
        helper.make_node("Max", ["norm", "tiny"], ["length"]),
        helper.make_node("Div", ["projected", "length"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 3, size, size])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    path.mkdir(parents=True)
    (path / GRAPH_FILE).write_bytes(data)
    described = None
    if regions:
        side = size // PATCH
        shares = _shares_graph(projection.reshape(3, side, side, dim))
        (path / REGIONS_FILE).write_bytes(shares)
        described = RegionGraph(file=REGIONS_FILE, sha256=sha256_bytes(shares), maps=["cells"])
    card = ModelCard(
        name=f"tiny-{dim}-{seed}",
        sha256=sha256_bytes(data),
        backbone="random-projection",
        dim=dim,
        height=size,
        width=size,
        resize="squash",
        seed=seed,
        regions=described,
    )
    (path / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return path


def _shares_graph(projection: NDArray[np.float32]) -> bytes:
    """Cells [n, 3, h, w] → what each adds to the embedding before unit length, [n, h, w, d]."""
    _, h, w, dim = projection.shape
    graph = helper.make_graph(
        [helper.make_node("Einsum", ["map", "weight"], ["shares"], equation="nchw,chwd->nhwd")],
        "tiny-regions",
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 3, h, w])],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["n", h, w, dim])],
        [numpy_helper.from_array(projection, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised
