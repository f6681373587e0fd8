"""Photos small enough to lie inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from index.errors import ImageError
from training.data import Photos, read_photo

__all__ = ["SIDE", "Thumbnail", "Thumbnails"]

#: Longer side in pixels.
SIDE = 160

QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A small JPEG as a data URI, or the reason why there is none."""

    uri: str | None
    problem: str | None


class Thumbnails:
    """Thumbnails of a data set; each photo is decoded once, however often it is shown."""

    def __init__(self, photos: Photos) -> None:
        """Nothing is read yet."""
        self._photos = photos
        self._made: dict[int, Thumbnail] = {}

    def __getitem__(self, position: int) -> Thumbnail:
        """The photo at this position, cut to its box; photos may have vanished since training."""
        if position not in self._made:
            self._made[position] = self._make(position)
        return self._made[position]

    def _make(self, position: int) -> Thumbnail:
        try:
            image = Image.fromarray(read_photo(self._photos, position, at_least=(SIDE, SIDE)))
        except ImageError as error:
            return Thumbnail(uri=None, problem=str(error))
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
        return Thumbnail(uri=f"data:image/jpeg;base64,{encoded}", problem=None)
