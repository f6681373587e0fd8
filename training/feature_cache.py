"""Features of a frozen backbone on disk: computed once, used by every run that asks again.

A cache folder holds a folder for each set of features, named by the hash of all that they depend
on: ``features.npy``, and ``features.json`` with what they were made from and their checksum. While
they are computed, finished shards lie beside it, so that an interrupted run loses little. What is
trained on features is the business of ``training.last_layer``.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from index.errors import DataError, DsclError, InvalidArgumentError
from index.files import replace_folder, sha256_bytes, sha256_file, write_atomically
from training.augment import Key, PhotoLoader, in_order
from training.backbones import Backbone
from training.data import Photos
from training.embed import BATCH

__all__ = ["FeatureCacheError", "cached_features"]

#: Goes up when the same photos and weights come to give other features, as when photos are resized
#: otherwise: what was cached before is then computed anew.
FORMAT = 1

#: Forward passes to a shard: what an interruption costs, at most.
SHARD_BATCHES = 8

FEATURES = "features.npy"
CARD = "features.json"


class FeatureCacheError(DsclError):
    """A cache folder that cannot be written to."""

    code = "feature_cache_unwritable"


def cached_features(
    backbone: Backbone,
    loader: PhotoLoader,
    *,
    folder: Path,
    device: torch.device,
    description: str,
    view: int = 0,
    seed: int = 0,
    workers: int = 0,
    echo: Callable[[str], object] = print,
) -> NDArray[np.float32]:
    """Features of all photos of ``loader``, from ``folder`` if they are there, else computed.

    They are found again as long as all of this is the same: the backbone's name and its weights,
    size and resize rule, the path, size and modification time of each photo and its box; with
    augmentation also its settings, ``seed`` and ``view``. A cache that is damaged, or holds
    something else, is computed anew, and a line says so.

    Args:
        backbone: on ``device``; put into evaluation mode.
        loader: the photos. Augmented, each photo is drawn once for each view.
        folder: of the cache; made if it is missing. Several runs may share it: the second to ask
            for the same features waits for the first.
        device: where the backbone is.
        description: what the progress bar says.
        view: which draw of the augmented photos, from 0; without augmentation there is only 0.
        seed: of the draws.
        workers: processes that load photos; 0 loads in this one.
        echo: gets the lines that say what happens.

    Returns:
        float32 (n, features) in the order of the photos, mapped from disk, read-only.

    Raises:
        FeatureCacheError: ``folder`` cannot be written to.
        InvalidArgumentError: ``view`` out of range; features that are NaN or infinite.
        DataError: a photo is gone.
        ImageError: a photo cannot be read.
    """
    if view < 0 or (view > 0 and loader.augmentation is None):
        raise InvalidArgumentError(
            f"view is {view}: photos that are not augmented look the same in every view, so "
            "expected 0; augmented ones have views 0, 1, 2, …"
        )
    inputs = _inputs(backbone, loader, view, seed)
    cache = folder / sha256_bytes(json.dumps(inputs, sort_keys=True).encode())[:32]
    if cache.exists() and _problem(cache, inputs) is None:
        return _open(cache)

    with _writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(cache, echo):
        if cache.exists():
            problem = _problem(cache, inputs)
            if problem is None:  # made while we waited
                return _open(cache)
            echo(f"The feature cache {cache} cannot be used, as {problem}: computing it anew.")
        shards = cache.with_suffix(".partial")
        with _writes(folder):
            shards.mkdir(exist_ok=True)
        features = _compute(
            backbone,
            _View(loader, view, seed),
            shards,
            device=device,
            description=description,
            workers=workers,
        )
        with _writes(folder), replace_folder(cache) as fresh:
            np.save(fresh / FEATURES, features)
            card = {"sha256": sha256_file(fresh / FEATURES), "inputs": inputs}
            (fresh / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(shards)
    return _open(cache)


def _compute(
    backbone: nn.Module,
    photos: _View,
    shards: Path,
    *,
    device: torch.device,
    description: str,
    workers: int,
) -> NDArray[np.float32]:
    """Features (n, p), of which those in whole shards are read."""
    n, rows = len(photos), BATCH * SHARD_BATCHES
    files = [shards / f"{start:09}-{min(start + rows, n):09}.npy" for start in range(0, n, rows)]
    parts: list[NDArray[np.float32]] = []
    for file in files:
        shard = _read_shard(file)
        if shard is None:
            break
        parts.append(shard)
    done = sum(map(len, parts))

    backbone.eval()
    with (
        torch.inference_mode(),
        tqdm(total=n, initial=done, unit="photo", desc=description, disable=None) as bar,
    ):
        images = in_order(photos.after(done), batch_size=BATCH, workers=workers)
        for file in files[len(parts) :]:
            outputs = []
            for batch in islice(images, SHARD_BATCHES):
                outputs.append(backbone(batch.to(device)).float().cpu().numpy())
                bar.update(len(batch))
            parts.append(np.concatenate(outputs))
            done += len(parts[-1])
            bad = np.flatnonzero(~np.isfinite(parts[-1]).all(1))
            if len(bad):
                path = photos.photos.paths[done - len(parts[-1]) + bad[0]]
                raise InvalidArgumentError(
                    f"{len(bad)} of {len(parts[-1])} photos, such as {path}, have features that "
                    "are NaN or infinite: the weights of the backbone are damaged."
                )
            content = io.BytesIO()
            np.save(content, parts[-1])
            with _writes(shards):
                write_atomically(file, content.getvalue())
    return np.concatenate(parts)


class _View(PhotoLoader):
    """The photos of a loader from some position on, each in its draw of one view."""

    def __init__(self, loader: PhotoLoader, view: int, seed: int, first: int = 0) -> None:
        super().__init__(
            loader.photos,
            height=loader.height,
            width=loader.width,
            mode=loader.mode,
            augmentation=loader.augmentation,
        )
        self._key = view, seed
        self._first = first
        self._draws = np.random.SeedSequence((seed, view)).generate_state(
            len(loader.photos), np.uint64
        )

    def after(self, first: int) -> _View:
        """The same photos without the first ones."""
        view, seed = self._key
        return _View(self, view, seed, first)

    def __len__(self) -> int:
        return len(self.photos) - self._first

    def __getitem__(self, key: Key) -> Tensor:
        """uint8 [3, h, w]; the key's draw is not used."""
        position = self._first + key[0]
        return super().__getitem__((position, int(self._draws[position])))


def _inputs(backbone: Backbone, loader: PhotoLoader, view: int, seed: int) -> dict[str, Any]:
    """All that the features depend on, as JSON values."""
    augmentation = loader.augmentation
    return {
        "format": FORMAT,
        "backbone": backbone.name,
        "weights": _sha256_weights(backbone),
        "height": loader.height,
        "width": loader.width,
        "resize": loader.mode,
        "augmentation": None if augmentation is None else dataclasses.asdict(augmentation),
        "draw": None if augmentation is None else [seed, view],
        "photos": _sha256_photos(loader.photos),
        "n": len(loader),
    }


def _sha256_weights(network: nn.Module) -> str:
    """Of all parameters and buffers, those that a state dict leaves out included."""
    digest = hashlib.sha256()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # numpy knows no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256_photos(photos: Photos) -> str:
    """Of what tells whether photos are the same, without reading them."""
    boxes = [None] * len(photos) if photos.boxes is None else photos.boxes.tolist()
    listed = []
    for path, box in zip(photos.paths, boxes, strict=True):
        try:
            facts = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. Put it back.") from error
        listed.append([str(path.absolute()), facts.st_size, facts.st_mtime_ns, box])
    return sha256_bytes(json.dumps(listed).encode())


def _open(cache: Path) -> NDArray[np.float32]:
    features: NDArray[np.float32] = np.load(cache / FEATURES, mmap_mode="r")
    return features


def _problem(cache: Path, inputs: dict[str, Any]) -> str | None:
    """What is wrong with a cache; None if nothing is."""
    try:
        card = json.loads((cache / CARD).read_text(encoding="utf-8"))
        sha256 = sha256_file(cache / FEATURES)
    except (OSError, ValueError) as error:
        return f"it is incomplete ({error})"
    if not isinstance(card, dict) or card.get("inputs") != inputs:
        return f"its {CARD} describes something else"
    if card.get("sha256") != sha256:
        return f"{FEATURES} has changed since it was written"
    return None


def _read_shard(file: Path) -> NDArray[np.float32] | None:
    """A shard; None if it is missing or damaged, and to be computed."""
    try:
        shard: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return shard


@contextmanager
def _alone(cache: Path, echo: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of one set of features; the system frees it if we die."""
    with _writes(cache.parent):
        lock = cache.with_suffix(".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo("Waiting for another run, which computes the same features.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _writes(folder: Path) -> Iterator[None]:
    """Turn what the system says against writing into words about the cache."""
    try:
        yield
    except OSError as error:
        raise FeatureCacheError(
            f"the feature cache {folder} cannot be written: {error.strerror or error}. Make room, "
            "or name another folder with --feature-cache."
        ) from error
