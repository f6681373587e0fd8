"""What runs a model's graph: ONNX Runtime or OpenVINO, and in which precision.

A runtime takes a graph's bytes and answers one question, pixels → the graph's output. Files, cards
and unit length are the business of ``index.model``.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import Any, Literal, Protocol, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from index.errors import InvalidArgumentError, ModelError

__all__ = ["Precision", "Runtime", "RuntimeName", "Session", "choose_runtime", "open_session"]

RuntimeName = Literal["onnxruntime", "openvino"]
Runtime = Literal["auto", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]

#: How OpenVINO gets what it lacks. ONNX Runtime is a dependency of the package itself.
INSTALL_OPENVINO = "pip install 'dscl-retrieval[openvino]'"


class Session(Protocol):
    """A graph that is ready to run, from several threads at once."""

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, 3, h, w] → the graph's output, float32 [n, d]."""
        ...


def choose_runtime(runtime: Runtime, precision: Precision) -> RuntimeName:
    """The runtime that is meant.

    ``auto`` depends on the precision alone, never on what happens to be installed, so that a
    gallery is searched with what it was made with: OpenVINO for bf16, which ONNX Runtime does not
    have, and ONNX Runtime else. In fp32 both give the same vectors and are about equally fast. An
    int8 graph is ONNX Runtime's alone: OpenVINO rounds elsewhere in it, and its vectors are others.

    Raises:
        InvalidArgumentError: a name that is not known.
        ModelError: the runtime does not have the precision, or is not installed.
    """
    if runtime not in get_args(Runtime):
        raise InvalidArgumentError(f"runtime {runtime!r} is not one of {get_args(Runtime)}.")
    if precision not in get_args(Precision):
        raise InvalidArgumentError(f"precision {precision!r} is not one of {get_args(Precision)}.")
    if runtime == "onnxruntime" and precision == "bf16":
        raise ModelError(
            "ONNX Runtime has no bf16. Use OpenVINO, which has it on processors that do "
            f"({INSTALL_OPENVINO}), or precision fp32 or int8."
        )
    if runtime == "openvino" and precision == "int8":
        raise ModelError(
            "int8 graphs are calibrated and measured with ONNX Runtime; OpenVINO's vectors of them "
            "are others. Use runtime onnxruntime, or precision fp32 or bf16."
        )
    if runtime == "onnxruntime" or (runtime == "auto" and precision != "bf16"):
        return "onnxruntime"
    if importlib.util.find_spec("openvino") is None:
        raise ModelError(
            f"precision {precision} with runtime {runtime} needs OpenVINO, which is not installed: "
            f"{INSTALL_OPENVINO}. Or use runtime onnxruntime with precision fp32 or int8."
        )
    return "openvino"


def open_session(
    graph: bytes, *, runtime: RuntimeName, precision: Precision, threads: int
) -> Session:
    """Make a graph ready to run.

    Args:
        graph: of the precision asked for; bf16 is computed from the fp32 graph.
        runtime: see ``choose_runtime``.
        precision: what to compute in.
        threads: CPU threads of one pass; passes beside one another each have as many.

    Raises:
        ModelError: the runtime cannot load the graph, or the processor lacks the precision.
    """
    if runtime == "openvino":
        return _OpenVino(graph, precision, threads)
    return _OnnxRuntime(graph, precision, threads)


class _OnnxRuntime:
    def __init__(self, graph: bytes, precision: Precision, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Warnings about initialisers and the like help nobody who runs a finished model.
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=_providers(precision)
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower public base
            raise ModelError(f"ONNX Runtime cannot load the graph: {error}") from error

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = self._session.run(["embedding"], {"pixels": pixels})[0]
        return embedding


def _providers(precision: Precision) -> list[Any]:
    """CUDA for fp32 where this build of ONNX Runtime has it; its int8 is no faster than a CPU's."""
    cpu = "CPUExecutionProvider"
    if precision != "fp32" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return [cpu]
    # TF32 rounds to 10 bits: vectors would not be those that a CPU gives.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), cpu]


class _OpenVino:
    def __init__(self, graph: bytes, precision: Precision, threads: int) -> None:
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise ModelError(
                "this processor does not compute in bf16 "
                f"({core.get_property('CPU', 'FULL_DEVICE_NAME')}). Use precision fp32 or int8."
            )
        # A stream runs one call at a time: as many as the cores can serve beside one another.
        streams = max(1, (os.cpu_count() or 1) // threads)
        settings = {
            # Left alone, OpenVINO computes an fp32 graph in bf16 wherever it can.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            # Several processes would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._model = core.compile_model(core.read_model(graph), "CPU", settings)
        except Exception as error:  # OpenVINO raises bare RuntimeError
            raise ModelError(f"OpenVINO cannot load the graph: {error}") from error
        # A request serves one call at a time.
        self._requests = threading.local()

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._model.create_infer_request()
        embedding: NDArray[np.float32] = request.infer({"pixels": pixels})["embedding"]
        return embedding
