"""Explaining as it runs on a thread: two photos → what their parts add to the score.

Takes the open gallery first, as ``Engine.photo`` gives it. Nothing here knows HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index import Gallery
from index.errors import DsclError
from index.images import Area
from index.regions import Explanation, similar_regions
from index.stores import PhotoPath

__all__ = ["Explained", "RegionsMissingError", "explain"]

#: Pairs of regions that an answer names.
PAIRS = 5


class RegionsMissingError(DsclError):
    """A model whose embedding does not add up over regions of a photo."""

    code = "regions_missing"


@dataclass(frozen=True)
class Explained:
    """Why two photos are similar, and by which model."""

    model_name: str
    model_sha256: str
    explanation: Explanation
    query_area: Area
    result_area: Area


def explain(gallery: Gallery, query: bytes | int, result: int) -> Explained:
    """Why an item is near a query.

    Args:
        gallery: the open gallery.
        query: an encoded photo, or the id of an item.
        result: the id of an item.

    Raises:
        RegionsMissingError: the model cannot tell.
        ItemNotFoundError: no such item.
        ImageError: a photo cannot be used, or the file of an item is gone.
        StoreError: the store that holds it does not answer.
    """
    model = gallery.model
    reader = model.regions()
    if reader is None:
        raise RegionsMissingError(
            f"{model.card.name} cannot show similar regions: it was exported before models could, "
            "or its embedding does not add up over a feature map. Export it again, or do without."
        )

    def seen(photo: bytes | int) -> tuple[NDArray[np.uint8], Area]:
        return model.prepare_with_area(_file(gallery, photo) if isinstance(photo, int) else photo)

    (left, query_area), (right, result_area) = seen(query), seen(result)
    shares = reader.shares(np.stack([left, right]))
    return Explained(
        model_name=model.card.name,
        model_sha256=model.sha256,
        explanation=similar_regions(shares[0], shares[1], pairs=PAIRS),
        query_area=query_area,
        result_area=result_area,
    )


def _file(gallery: Gallery, item_id: int) -> PhotoPath:
    [item] = gallery.get([item_id])
    return item.image
