"""Which runtime is meant, and that each of them computes what the graph says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from index.errors import InvalidArgumentError, ModelError
from index.model import GRAPH_FILE
from index.runtimes import Precision, Runtime, RuntimeName, _providers, choose_runtime, open_session
from tests.tiny_model import PATCH, make_model_folder

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)
RUNTIMES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (
        make_model_folder(tmp_path_factory.mktemp("models") / "model") / GRAPH_FILE
    ).read_bytes()


def batch(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)


def by_hand(graph: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What ``make_model_folder`` says its graph computes."""
    initializers = onnx.load_from_string(graph).graph.initializer
    (projection,) = (numpy_helper.to_array(c) for c in initializers if c.name == "projection")
    n, channels, height, width = pixels.shape
    cells = (pixels - 127.5).reshape(n, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    projected = cells.mean(axis=(3, 5)).reshape(n, -1) @ projection.astype(np.float64)
    unit: NDArray[np.float64] = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    return unit


def bf16_here() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# Which one


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_choice_does_not_change_when_openvino_is_installed(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, installed: bool
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "a spec" if installed else None)
    assert choose_runtime("auto", precision) == "onnxruntime"
    assert choose_runtime("onnxruntime", precision) == "onnxruntime"


@pytest.mark.parametrize(
    ("runtime", "precision"), [("auto", "bf16"), ("openvino", "bf16"), ("openvino", "fp32")]
)
def test_openvino_is_taken_where_it_is_meant_and_asked_for_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime, precision: Precision
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "a spec")
    assert choose_runtime(runtime, precision) == "openvino"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=rf"{precision}.*not installed: pip install .*\[openvino\]"
    ):
        choose_runtime(runtime, precision)


@pytest.mark.parametrize(
    ("runtime", "precision", "message"),
    [
        ("onnxruntime", "bf16", r"ONNX Runtime has no bf16.*pip install"),
        ("openvino", "int8", "Use runtime onnxruntime"),
    ],
)
def test_a_precision_that_the_runtime_does_not_have_is_refused(
    runtime: Runtime, precision: Precision, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        choose_runtime(runtime, precision)


def test_names_that_are_not_known_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'tensorrt' is not one of .*'openvino'"):
        choose_runtime("tensorrt", "fp32")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"'fp16' is not one of .*'bf16'"):
        choose_runtime("auto", "fp16")  # type: ignore[arg-type]


def test_cuda_is_used_for_fp32_alone_and_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cpu])
    assert _providers("fp32") == [cpu]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, cpu])
    assert _providers("fp32") == [(cuda, {"use_tf32": "0"}), cpu]
    assert _providers("int8") == [cpu]


# What it computes


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("count", [1, 5])
def test_fp32_is_what_the_graph_says_to_seven_digits(
    graph: bytes, runtime: RuntimeName, count: int
) -> None:
    """A runtime that chose bf16 by itself would be off by a thousandth."""
    session = open_session(graph, runtime=runtime, precision="fp32", threads=1)
    found = session.run(batch(count))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(graph, batch(count)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_share_a_session_without_mixing_up_their_photos(
    graph: bytes, runtime: RuntimeName
) -> None:
    session = open_session(graph, runtime=runtime, precision="fp32", threads=1)
    pixels = batch(200)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda image: session.run(image[None])[0], pixels))
    np.testing.assert_allclose(np.stack(parts), by_hand(graph, pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_answer_stays_as_it_was_when_the_next_photo_is_run(
    graph: bytes, runtime: RuntimeName
) -> None:
    session = open_session(graph, runtime=runtime, precision="fp32", threads=1)
    first = session.run(batch(2)[:1])
    kept = first.copy()
    session.run(batch(2)[1:])
    assert np.array_equal(first, kept)


@needs_openvino
def test_bf16_is_near_fp32_or_the_processor_is_said_to_lack_it(graph: bytes) -> None:
    if not bf16_here():
        with pytest.raises(ModelError, match=r"does not compute in bf16.*Use precision fp32"):
            open_session(graph, runtime="openvino", precision="bf16", threads=1)
        return
    session = open_session(graph, runtime="openvino", precision="bf16", threads=1)
    found, exact = session.run(batch(50)), by_hand(graph, batch(50))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert (found * exact).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_no_graph_is_refused(runtime: RuntimeName) -> None:
    with pytest.raises(ModelError, match="cannot load the graph"):
        open_session(b"no graph", runtime=runtime, precision="fp32", threads=1)


def test_openvino_is_imported_only_when_it_runs(graph: bytes, tmp_path: Path) -> None:
    (tmp_path / GRAPH_FILE).write_bytes(graph)
    program = (
        "import sys; from pathlib import Path; from index.runtimes import open_session; "
        "open_session(Path(sys.argv[1]).read_bytes(), runtime='onnxruntime', precision='fp32', "
        "threads=1); print(sorted({'openvino', 'torch', 'onnx'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, tmp_path / GRAPH_FILE],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert printed.strip() == "[]"
