from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from index import Gallery, Item, Model, build, list_photos
from tests.service.running import Server, serving
from tests.tiny_model import make_model_folder

#: Small, so that a body beyond it is quick to send.
MAX_UPLOAD_BYTES = 2_000_000


def save_photo(path: Path, rng: np.random.Generator, base: NDArray[np.float64]) -> None:
    """A photo of coarse blocks near ``base`` (6, 8, 3), so that photos of a base look alike."""
    blocks = np.clip(base + rng.normal(scale=60, size=base.shape), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize((96, 72), Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labels of four photos, a label of one, and a photo without."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(7)
    for label in ["audi", "bmw", "fiat", "ford", "opel", "seat"]:
        base = rng.uniform(0, 255, size=(6, 8, 3))
        for number in range(4):
            save_photo(folder / label / f"{number}.jpg", rng, base)
    save_photo(folder / "alone" / "0.jpg", rng, rng.uniform(0, 255, size=(6, 8, 3)))
    save_photo(folder / "unlabelled.jpg", rng, rng.uniform(0, 255, size=(6, 8, 3)))
    return folder


@pytest.fixture(scope="session")
def gallery_folder(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, photos: Path
) -> Path:
    folder = tmp_path_factory.mktemp("galleries") / "cars"
    with Gallery.create(folder, model_folder) as gallery:
        build(gallery, list_photos(photos))
    return folder


@pytest.fixture(scope="session")
def items(gallery_folder: Path) -> list[Item]:
    with Gallery.open(gallery_folder) as gallery:
        return gallery.items(limit=1000)


@pytest.fixture(scope="session")
def vectors(model_folder: Path, items: list[Item]) -> NDArray[np.float32]:
    """The items' vectors (n, d), made from the photos without the gallery."""
    model = Model.load(model_folder)
    return model.embed(np.stack([model.prepare(item.image) for item in items]))


@pytest.fixture(scope="session")
def server(gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        gallery_folder,
        tmp_path_factory.mktemp("server"),
        "--threads",
        "2",
        python=("-X", "importtime"),
        DSCL_MAX_UPLOAD_BYTES=str(MAX_UPLOAD_BYTES),
    ) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> httpx.Client:
    return server.client
