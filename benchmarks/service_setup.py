"""What benchmarks/service.py and benchmarks/hostile.py serve: a model, photos and a gallery.

Made once in a folder that is kept between runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from index import Gallery, NewItem
from index.files import replace_folder
from training.backbones import Backbone
from training.export import WEIGHTS_FILE, export
from training.inference import InferenceNetwork
from training.render import CarModel, render_car

BACKBONE = "mobilenet_v2"
SIDE = 224
DIM = 128

#: Distinct photos that clients send, and what a camera or shop would make of them.
PHOTOS = 64
PHOTO_WIDTH = 512
QUALITY = 90

#: Items a class, and how far they lie from its centre: neighbours as uneven as real ones.
PER_CLASS = 80
SPREAD = 0.7
ADDED_AT_A_TIME = 10_000


def network(weights: str = "none") -> InferenceNetwork:
    """MobileNetV2 and a linear head. Speed does not depend on what it has learned."""
    torch.manual_seed(0)
    backbone = Backbone(BACKBONE, weights=weights, size=SIDE)
    return InferenceNetwork(backbone, nn.Linear(backbone.features, DIM)).eval()


def load_network(model: Path) -> InferenceNetwork:
    """The network that was exported to a model folder."""
    loaded = network()
    loaded.load_state_dict(load_file(model / WEIGHTS_FILE))
    return loaded


def make_model(path: Path, weights: str) -> Path:
    """Export the network unless that was done before."""
    if not path.exists():
        export(
            network(weights),
            path,
            name=f"{BACKBONE}-benchmark",
            height=SIDE,
            width=SIDE,
            resize="squash",
            facts={},
        )
    return path


def make_photos(folder: Path) -> Path:
    """Rendered cars as JPEG files, unless they are there."""
    if not folder.exists():
        with replace_folder(folder) as fresh:
            for n in range(PHOTOS):
                car = CarModel.sample(np.random.default_rng([0, n]))
                photo = render_car(car, np.random.default_rng([1, n]), size=PHOTO_WIDTH)
                Image.fromarray(photo).save(fresh / f"{n:03}.jpg", quality=QUALITY)
    return folder


def make_vectors(path: Path, count: int) -> NDArray[np.float32]:
    """Unit vectors (count, d) around centres, the same each time; also written to ``path``."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(-(-count // PER_CLASS), DIM)))
    noise = unit(rng.normal(size=(count, DIM)))
    scattered = unit(np.repeat(centres, PER_CLASS, axis=0)[:count] + SPREAD * noise)
    vectors = scattered.astype(np.float32)
    np.save(path, vectors)
    return vectors


def make_gallery(path: Path, model: Path, vectors: NDArray[np.float32]) -> Path:
    """A gallery of these vectors with its index built, unless it is there."""
    if not path.exists():
        with replace_folder(path) as fresh, Gallery.create(fresh / "gallery", model) as gallery:
            for first in range(0, len(vectors), ADDED_AT_A_TIME):
                part = vectors[first : first + ADDED_AT_A_TIME]
                gallery.add([item(path, first + n, vector) for n, vector in enumerate(part)])
            gallery.settle()
    return path / "gallery"


def item(root: Path, n: int, vector: NDArray[np.float32]) -> NewItem:
    return NewItem(
        root=root,
        path=f"{n}.jpg",
        sha256=f"{n:064x}",
        size=1,
        mtime_ns=1,
        label=f"class-{n // PER_CLASS:05}",
        attributes={"year": 1990 + n % 36},
        vector=vector,
    )


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
