"""Network → model folder: one ONNX graph from uint8 photos to unit vectors, checked for parity.

Whitening is folded into the last linear layer. The folder appears whole or not at all, and only
after ONNX Runtime has given the network's own embeddings back. Beside the graph lies a small one
that shows similar regions, where the network has one to offer.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from index.errors import DsclError
from index.files import replace_folder, sha256_file
from index.images import ResizeMode
from index.model import CARD_FILE, GRAPH_FILE, ModelCard
from index.regions import MAP_INPUT, REGIONS_FILE, SHARES_OUTPUT, RegionGraph, RegionReader
from training.inference import InferenceNetwork
from training.regions import WithMaps, find_shares

__all__ = ["WEIGHTS_FILE", "ParityError", "check_parity", "export"]

WEIGHTS_FILE = "weights.safetensors"
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "pillow", "dscl-retrieval")

#: Least cosine similarity of the network's embedding and the graph's. Whitening magnifies the
#: rounding of float32, most for an untrained network, whose features hardly vary; a graph that
#: computes something else is far below this.
PARITY = 0.9999


class ParityError(DsclError):
    """The exported graph does not give the network's embeddings."""

    code = "export_parity"


def export(
    network: InferenceNetwork,
    path: Path,
    *,
    name: str,
    height: int,
    width: int,
    resize: ResizeMode,
    facts: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> ModelCard:
    """Write a model folder, replacing an earlier one at ``path`` only when the new one is good.

    Args:
        network: what to export; moved to the CPU and into evaluation mode.
        path: the model folder.
        name: what people will call the model.
        height: of the photos, pixels.
        width: of the photos, pixels.
        resize: how photos come to that size.
        facts: further fields of ``ModelCard``: loss, dataset, protocol, metrics, settings, seed.
        weights: what to keep for more training; default: the network's own state.

    Raises:
        ParityError: ONNX Runtime's embeddings differ from the network's, or the shares of regions
            do not add up to them.
    """
    network = network.cpu().eval()
    examples = _examples(height, width)
    with replace_folder(path) as fresh:
        graph = fresh / GRAPH_FILE
        regions = _write_graphs(network, torch.from_numpy(examples), fresh)
        check_parity(network, graph, examples)
        if regions is not None:
            check_regions(network, graph, fresh / regions.file, regions.maps, examples)
        state = network.state_dict() if weights is None else weights
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in state.items()},
            fresh / WEIGHTS_FILE,
        )
        card = ModelCard(
            name=name,
            sha256=sha256_file(graph),
            backbone=network.backbone.name,
            dim=network.dim,
            height=height,
            width=width,
            resize=resize,
            versions={package: importlib.metadata.version(package) for package in PACKAGES},
            regions=regions,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **facts,
        )
        (fresh / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return card


def check_parity(network: nn.Module, graph: Path, pixels: NDArray[np.uint8]) -> None:
    """Compare the graph under ONNX Runtime with the network, alone and in batches.

    Raises:
        ParityError: an embedding's cosine similarity with the network's is below ``PARITY``.
    """
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels)).numpy()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    together = session.run(["embedding"], {"pixels": pixels})[0]
    alone = session.run(["embedding"], {"pixels": pixels[:1]})[0]
    # NumPy's minimum, as Python's loses NaN; and NaN is no parity either.
    same = np.minimum((together * expected).sum(axis=1).min(), (alone * expected[:1]).sum())
    if not same >= PARITY:
        raise ParityError(
            f"the exported graph does not give the network's embeddings: their cosine similarity "
            f"is {same:.6f}, expected at least {PARITY}. Nothing was written. Non-finite weights "
            "are the usual cause; else report the backbone and the versions of torch and "
            "onnxruntime."
        )


def check_regions(
    network: nn.Module,
    graph: Path,
    shares: Path,
    maps: Sequence[str],
    pixels: NDArray[np.uint8],
) -> None:
    """Compare the sum of all regions' shares under ONNX Runtime with the network.

    Raises:
        ParityError: the cosine similarity of the two is below ``PARITY``.
    """
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels)).numpy()
    reader = RegionReader(graph.read_bytes(), shares.read_bytes(), maps)
    total = reader.shares(pixels).sum(axis=(1, 2))
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    same = (total * expected).sum(axis=1).min()
    if not same >= PARITY:
        raise ParityError(
            f"the shares of regions do not add up to the embedding: the cosine similarity of their "
            f"sum with it is {same:.6f}, expected at least {PARITY}. Nothing was written. Report "
            "the backbone and the versions of torch and onnxruntime."
        )


def _write_graphs(network: InferenceNetwork, examples: Tensor, folder: Path) -> RegionGraph | None:
    """The model's graph, and the one that makes shares of its last map, if there is one."""
    found = find_shares(network, examples)
    if found is None:
        _write_graph(network, examples[:2], folder / GRAPH_FILE, "pixels", ["embedding"])
        return None
    where, shares = found
    with_maps = WithMaps(network, where).eval()
    outputs = ["embedding", *with_maps.names]
    _write_graph(with_maps, examples[:2], folder / GRAPH_FILE, "pixels", outputs)
    # Its name stays in the graph, and ``index.regions`` asks for it; an embedding does not.
    model = onnx.load(folder / GRAPH_FILE)
    del model.graph.output[1:]
    onnx.save(model, folder / GRAPH_FILE)
    with torch.inference_mode():
        feature_map = with_maps(examples[:2])[1].clone()
    _write_graph(shares.eval(), feature_map, folder / REGIONS_FILE, MAP_INPUT, [SHARES_OUTPUT])
    sha256 = sha256_file(folder / REGIONS_FILE)
    return RegionGraph(file=REGIONS_FILE, sha256=sha256, maps=with_maps.names)


def _write_graph(
    network: nn.Module, example: Tensor, path: Path, given: str, gives: Sequence[str]
) -> None:
    # The exporter warns and logs about its own internals; what counts is the parity check.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=[given],
            output_names=list(gives),
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _examples(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth and noisy pictures: [3, 3, h, w]."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, 3, height, width), np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (1, 3, height, width))
    return np.concatenate([noise, ramp, 255 - ramp])
