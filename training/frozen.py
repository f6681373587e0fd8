"""A frozen backbone as a model folder: search without labels and without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from index.errors import InvalidArgumentError
from index.images import ResizeMode
from index.model import ModelCard
from index.photos import list_photos
from training.augment import PhotoLoader
from training.backbones import Backbone, default_size
from training.data import Photos, check_photos
from training.embed import embed
from training.export import export
from training.inference import InferenceNetwork
from training.memory import keep_freed_memory
from training.quantize import add_int8, calibration_photos
from training.whitening import Whitening

__all__ = ["export_frozen"]


def export_frozen(
    backbone: str,
    *,
    out: Path,
    weights: str = "imagenet",
    whiten_on: Path | None = None,
    dim: int | None = None,
    whitening_ridge: float = 0.1,
    size: int | None = None,
    resize: ResizeMode = "squash",
    seed: int = 0,
    int8: bool = False,
) -> ModelCard:
    """Export a backbone's own features, whitened with the photos at ``whiten_on`` if given.

    Args:
        backbone: see ``Backbone``.
        out: the model folder.
        weights: see ``Backbone``.
        whiten_on: folder, CSV or image; labels are not needed. Unreadable photos are left out.
        dim: with ``whiten_on``, how many axes of largest variance to keep; default: all.
        whitening_ridge: see ``Whitening.fit``.
        size: side of the input in pixels; default: the backbone's own.
        resize: how a photo comes to a square.
        seed: of random weights.
        int8: also export in int8, calibrated on the photos at ``whiten_on``, which it needs.

    Raises:
        DsclError: backbone, weights, photos or settings that cannot be used.
    """
    if int8 and whiten_on is None:
        raise InvalidArgumentError("int8 is calibrated on the photos to whiten with: name some.")
    keep_freed_memory()
    torch.manual_seed(seed)
    side = default_size(backbone) if size is None else size
    network = Backbone(backbone, weights=weights, size=side)
    network.check_size(side)
    whitening = loader = None
    if whiten_on is not None:
        files = tuple(Path(str(photo.file)) for photo in list_photos(whiten_on))
        unlabelled = Photos(paths=files, labels=np.zeros(len(files), np.int64), classes=("",))
        photos, _ = check_photos(unlabelled)
        loader = PhotoLoader(photos, height=side, width=side, mode=resize)
        features = embed(network, loader, torch.device("cpu"), "Whitening")
        whitening = Whitening.fit(features, ridge=whitening_ridge, dim=dim)
    # A file is usually named after its network already.
    source = Path(weights).stem.removeprefix(f"{backbone}-")
    card = export(
        InferenceNetwork.frozen(network, whitening),
        out,
        name=f"{backbone}-{source}{'-whitened' if whitening else ''}",
        height=side,
        width=side,
        resize=resize,
        facts={
            "dataset": whiten_on.name if whiten_on else None,
            "settings": {"weights": weights, "dim": dim, "whitening_ridge": whitening_ridge},
            "seed": seed,
        },
    )
    if int8 and loader is not None:
        card = add_int8(out, calibration_photos(loader))
    return card
