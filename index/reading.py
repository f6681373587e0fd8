"""One photo file → its content and its vector, or the reason why there is none.

Every way to fill a gallery reads photos through here, so that all of them store the same.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import ImageError
from index.files import sha256_bytes
from index.model import Model
from index.stores import PhotoPath
from index.stores import read_photo as read_bytes
from index.stores import stamp_of as stamp_in_store

__all__ = ["Content", "Embedded", "Skipped", "Stamp", "embed_photo", "read_photo", "stamp_of"]

#: Size in bytes and modification time in ns: what tells whether a file has changed.
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Skipped:
    """A photo that could not be used, and why."""

    path: str
    code: str
    reason: str


@dataclass(frozen=True)
class Content:
    """What a file held: ``pixels`` uint8 [3, h, w] until ``vector``, float32 (d,), is known."""

    sha256: str
    size: int
    mtime_ns: int
    pixels: NDArray[np.uint8] | None = None
    vector: NDArray[np.float32] | None = None

    def embedded(self, model: Model) -> Content:
        """This content with its vector."""
        if self.pixels is None:
            return self
        # One by one: on a CPU larger batches gain nothing, and a vector then never depends on its
        # neighbours in the batch.
        return dataclasses.replace(self, pixels=None, vector=model.embed(self.pixels[None])[0])


@dataclass(frozen=True)
class Embedded:
    """A photo that was dealt with elsewhere or earlier, and its stamp then; None: no such file."""

    stamp: Stamp | None
    result: Content | Skipped


def stamp_of(file: PhotoPath) -> Stamp | None:
    """Size and modification time of a file, or None if there is none that can be asked."""
    try:
        return stamp_in_store(file)
    except OSError:
        return None


def read_photo(model: Model, file: PhotoPath) -> Content | Skipped:
    """Read, decode and hash a photo. What is wrong with the file is a result, not an error."""
    try:
        # The stamp comes first: a file that changes while it is read differs from it next time.
        size, mtime_ns = stamp_in_store(file)
        data = read_bytes(file)
        pixels = model.prepare(data)
    except ImageError as error:
        return Skipped(str(file), error.code, str(error))
    except OSError as error:
        return Skipped(str(file), "image_missing", f"cannot be read: {error.strerror}.")
    return Content(sha256_bytes(data), size, mtime_ns, pixels)


def embed_photo(model: Model, file: PhotoPath) -> Embedded:
    """Read and embed a photo."""
    stamp = stamp_of(file)
    result = read_photo(model, file)
    if isinstance(result, Skipped):
        return Embedded(stamp, result)
    return Embedded((result.size, result.mtime_ns), result.embedded(model))
