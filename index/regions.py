"""Which parts of two photos make their embeddings alike.

A model whose embedding adds up over the positions of its last feature map comes with a second,
small graph: feature map → what each position adds to the embedding, its **share**. The cosine of
two embeddings is then a sum over the positions of one photo, of the other, or over pairs of
positions, and these summands can be looked at (Stylianou, Souvenir and Pless, "Visualizing Deep
Similarity Networks", WACV 2019). How a network comes to shares is the business of training.

Explaining needs a graph that gives its feature map away, which ``Model`` opens when it is first
asked to: a model that only embeds is not slower for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from index.errors import InvalidArgumentError, ModelError

__all__ = [
    "MAP_INPUT",
    "REGIONS_FILE",
    "SHARES_OUTPUT",
    "Explanation",
    "RegionGraph",
    "RegionPair",
    "RegionReader",
    "heat",
    "similar_regions",
    "with_outputs",
]

REGIONS_FILE = "regions.onnx"

#: Input and output of the small graph.
MAP_INPUT = "map"
SHARES_OUTPUT = "shares"

#: Shorter sums of shares have no direction.
TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class RegionGraph:
    """The small graph of a model, as its card names it."""

    file: str  #: beside ``model.onnx``
    sha256: str
    #: The tensors of ``model.onnx`` that are its inputs: of the photo, and of its mirror image if
    #: the model looks at both.
    maps: list[str]


@dataclass(frozen=True)
class RegionPair:
    """A position of each photo, (row, column), and what the two add to the score together."""

    query: tuple[int, int]
    result: tuple[int, int]
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """A score as a sum: ``query`` adds up to it, and so does ``result``."""

    score: float  #: cosine similarity in [−1, 1]
    query: NDArray[np.float32]  #: what each position of the query adds, (h, w)
    result: NDArray[np.float32]  #: what each position of the result adds, (h, w)
    pairs: list[RegionPair]  #: those that add most, the largest first


class RegionReader:
    """Photos → shares. May be used from several threads at once."""

    def __init__(
        self, graph: bytes, shares: bytes, maps: Sequence[str], *, threads: int = 1
    ) -> None:
        """Make both graphs ready to run.

        Args:
            graph: the model's own, in fp32.
            shares: the small one.
            maps: see ``RegionGraph``.
            threads: CPU threads of one pass.

        Raises:
            ModelError: ONNX Runtime cannot load one of them, or the model lacks a feature map.
        """
        self._maps = list(maps)
        self._model = _session(with_outputs(graph, self._maps), threads)
        self._head = _session(shares, threads)

    def shares(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What each position adds to the embedding before that is brought to unit length.

        Args:
            pixels: uint8 [n, 3, height, width], as ``Model.prepare`` gives them.

        Returns:
            float32 [n, h, w, d]. Summed over h and w, and brought to unit length, they are the
            embeddings.
        """
        first, *mirrored = [
            self._head.run([SHARES_OUTPUT], {MAP_INPUT: feature_map})[0]
            for feature_map in self._model.run(self._maps, {"pixels": pixels})
        ]
        shares: NDArray[np.float32] = first
        for other in mirrored:
            shares = (shares + other[:, :, ::-1]) / 2
        return shares


def similar_regions(
    query: NDArray[np.float32], result: NDArray[np.float32], *, pairs: int = 5
) -> Explanation:
    """Where the similarity of two photos comes from.

    Args:
        query: shares of one photo, [h, w, d].
        result: shares of the other, [h, w, d], of the same model.
        pairs: how many pairs of positions to name at most. A position is named once.

    Raises:
        InvalidArgumentError: shares of different models.
    """
    if query.ndim != 3 or query.shape[2:] != result.shape[2:]:
        raise InvalidArgumentError(
            f"shares have shapes {list(query.shape)} and {list(result.shape)}: expected [h, w, d] "
            "with the same d."
        )
    rows = _of_unit_sum(query)
    columns = _of_unit_sum(result)
    products = rows @ columns.T  # (positions of the query, of the result)
    return Explanation(
        score=float(products.sum()),
        query=products.sum(axis=1).reshape(query.shape[:2]).astype(np.float32),
        result=products.sum(axis=0).reshape(result.shape[:2]).astype(np.float32),
        pairs=_largest(products, query.shape[1], result.shape[1], pairs),
    )


def heat(contributions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Contributions as a picture: 0 where nothing or less is added, 1 where most is.

    All 0 where nothing adds anything.
    """
    positive: NDArray[np.float32] = np.maximum(contributions, np.float32(0))
    highest = positive.max(initial=0)
    if highest > TINY:
        positive /= highest
    return positive


def with_outputs(graph: bytes, names: Sequence[str]) -> bytes:
    """An ONNX graph that also gives away ``names``, tensors inside it.

    Protocol buffers are made to be merged by writing one after another: what follows adds
    entries to the list of outputs, and needs neither the ``onnx`` package nor a parse of the
    weights.
    """
    outputs = b"".join(_field(12, _field(1, name.encode())) for name in names)  # ValueInfoProto
    return graph + _field(7, outputs)  # ModelProto.graph


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no narrower public base
        raise ModelError(
            f"the graphs that show similar regions cannot be loaded: {error} "
            "Export the model again."
        ) from error


def _of_unit_sum(shares: NDArray[np.float32]) -> NDArray[np.float64]:
    """[h, w, d] → [h · w, d], scaled so that they add up to a vector of unit length."""
    flat = shares.reshape(-1, shares.shape[2]).astype(np.float64)
    scaled: NDArray[np.float64] = flat / max(float(np.linalg.norm(flat.sum(axis=0))), TINY)
    return scaled


def _largest(
    products: NDArray[np.float64], query_width: int, result_width: int, count: int
) -> list[RegionPair]:
    left = products.copy()
    found: list[RegionPair] = []
    while len(found) < count:
        i, j = np.unravel_index(int(left.argmax()), left.shape)
        contribution = float(left[i, j])
        if not contribution > 0:
            break
        found.append(
            RegionPair(
                query=(int(i) // query_width, int(i) % query_width),
                result=(int(j) // result_width, int(j) % result_width),
                contribution=contribution,
            )
        )
        # The neighbours of a strong position are strong with the same partner: name each once.
        left[i, :] = -np.inf
        left[:, j] = -np.inf
    return found
