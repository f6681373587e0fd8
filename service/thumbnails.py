"""Small versions of photos, made when they are first asked for and kept within a bound."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from PIL import Image

from index.images import decode, resize
from index.stores import PhotoPath

__all__ = ["LARGEST", "SMALLEST", "Thumbnails", "make_thumbnail"]

#: The longer side of a thumbnail in pixels.
SMALLEST, LARGEST = 16, 1024

#: Memory that thumbnails take: some ten thousand of 200 pixels.
CACHE_BYTES = 64_000_000

JPEG_QUALITY = 85


class Thumbnails:
    """Thumbnails by content and size; those not asked for longest go first. For any thread."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, photo: PhotoPath, sha256: str, size: int) -> bytes:
        """A photo's thumbnail as JPEG.

        Args:
            photo: its file.
            sha256: the photo's content hash: what it is known by.
            size: the longer side in pixels.

        Raises:
            ImageError: the file cannot be read or decoded.
            StoreError: the store that holds it does not answer.
        """
        key = (sha256, size)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = make_thumbnail(photo, size)  # outside the lock: others need not wait for it
        with self._lock:
            self._bytes += len(made) - len(self._made.pop(key, b""))
            self._made[key] = made
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return made


def make_thumbnail(photo: PhotoPath, size: int) -> bytes:
    """A photo, upright, as a JPEG whose longer side has ``size`` pixels; never enlarged.

    Raises:
        ImageError: the file cannot be read or decoded.
        StoreError: the store that holds it does not answer.
    """
    pixels = decode(photo, at_least=(size, size))
    height, width = pixels.shape[:2]
    scale = min(1.0, size / max(height, width))
    small = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)), "squash")
    file = io.BytesIO()
    Image.fromarray(small).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
