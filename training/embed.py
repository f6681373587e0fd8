"""Photos → embeddings of a network, as it is and without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.augment import PhotoLoader, in_order

__all__ = ["embed"]

#: Photos in one forward pass.
BATCH = 64


def embed(
    network: nn.Module,
    loader: PhotoLoader,
    device: torch.device,
    description: str,
    *,
    workers: int = 0,
) -> Tensor:
    """Embed all photos of ``loader``, which must not augment.

    Args:
        network: maps photos to embeddings; put into evaluation mode.
        loader: the photos.
        device: where the network is.
        description: what the progress bar says.
        workers: processes that load photos; 0 loads in this one.

    Returns:
        float32 [n, d] on the CPU.
    """
    network.eval()
    parts = []
    with (
        torch.inference_mode(),
        tqdm(total=len(loader), unit="photo", desc=description, disable=None) as bar,
    ):
        for images in in_order(loader, batch_size=BATCH, workers=workers):
            parts.append(network(images.to(device)).float().cpu())
            bar.update(len(images))
    return torch.cat(parts)
