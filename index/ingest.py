"""Photos → items of a gallery: read, embed, store; resumable.

Photos are read, decoded and embedded by a pool of threads (ONNX Runtime and Pillow let go of the
interpreter lock) and stored in small durable batches. Stopping at any moment loses at most the
batch under way; running again goes on with what is not stored yet.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from index.catalog import NewItem
from index.errors import ImageError, InvalidArgumentError
from index.files import sha256_bytes
from index.gallery import Gallery
from index.model import Model
from index.photos import Photo

__all__ = ["BuildReport", "Skipped", "build"]

#: Photos stored by one durable transaction: the most that a stop can lose.
BATCH = 64


@dataclass(frozen=True)
class Skipped:
    """A photo that could not be used, and why."""

    path: str
    code: str
    reason: str


@dataclass
class BuildReport:
    """What ``build`` did. A photo that changed since it was indexed counts as added."""

    added: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def build(
    gallery: Gallery,
    photos: Sequence[Photo],
    *,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> BuildReport:
    """Add photos to a gallery that is open for writing.

    Photos already there (same path, size and modification time) are left alone. Unreadable ones
    are skipped and listed, never fatal.

    Args:
        gallery: where to.
        photos: what; see ``index.photos.list_photos``.
        workers: threads that decode and embed; default: one for each core.
        progress: called with the number of photos just dealt with.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise InvalidArgumentError(f"workers is {workers}: expected at least 1.")
    tell = progress or (lambda count: None)
    report = BuildReport()
    todo = _not_stored(gallery, photos)
    report.unchanged = len(photos) - len(todo)
    tell(report.unchanged)
    batch: list[NewItem] = []
    for result in _in_order(lambda photo: _embed(gallery.model, photo), todo, workers):
        if isinstance(result, Skipped):
            report.skipped.append(result)
        else:
            batch.append(result)
        if len(batch) == BATCH:
            report.added += len(gallery.add(batch))
            batch = []
        tell(1)
    report.added += len(gallery.add(batch))
    return report


def _not_stored(gallery: Gallery, photos: Sequence[Photo]) -> list[Photo]:
    stored = {root: gallery.files(root) for root in {photo.root for photo in photos}}
    return [
        photo
        for photo in photos
        if (known := stored[photo.root].get(photo.path)) is None or known != _stamp(photo)
    ]


def _stamp(photo: Photo) -> tuple[int, int] | None:
    try:
        status = photo.file.stat()
    except OSError:
        return None  # reading it will say what is wrong
    return status.st_size, status.st_mtime_ns


def _is_utf8(path: str) -> bool:
    """Whether a path can be stored: names from other systems may hold any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _embed(model: Model, photo: Photo) -> NewItem | Skipped:
    if not _is_utf8(photo.path):
        shown = str(photo.file).encode(errors="backslashreplace").decode()
        return Skipped(shown, "path_not_utf8", "its name is not UTF-8: rename it.")
    try:
        # The stamp comes first: a file that changes while it is read differs from it next time.
        status = photo.file.stat()
        data = photo.file.read_bytes()
        pixels = model.prepare(data)
    except ImageError as error:
        return Skipped(str(photo.file), error.code, str(error))
    except OSError as error:
        return Skipped(str(photo.file), "image_missing", f"cannot be read: {error.strerror}.")
    return NewItem(
        root=photo.root,
        path=photo.path,
        sha256=sha256_bytes(data),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        label=photo.label,
        attributes=photo.attributes,
        vector=model.embed(pixels[None])[0],
    )


def _in_order(
    function: Callable[[Photo], NewItem | Skipped], photos: Iterable[Photo], workers: int
) -> Iterator[NewItem | Skipped]:
    """Map in threads, results in order, never more than a few photos ahead of the consumer."""
    waiting: deque[Future[NewItem | Skipped]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="embed")
    source = iter(photos)
    try:
        waiting.extend(pool.submit(function, photo) for photo in islice(source, 4 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, photo) for photo in islice(source, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
