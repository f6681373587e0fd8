"""An archive of photos → items: a job that can be stopped, and run again to go on.

What a photo of an archive is, is known by its content and its ``sku``: one that is there already
is not stored and not embedded a second time. ``index.ingest`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from index import BuildReport, Gallery, Photo, build
from index.files import sha256_bytes
from index.ingest import Skipped
from index.parallel import in_order
from service.archives import Archive, ArchiveError
from service.jobs import JobCancelledError, Progress
from service.photo_store import PhotoStore

__all__ = ["add_archive"]

#: Photos that are stored and embedded at a time: what a stop can lose.
CHUNK = 64

#: Photos that are written at a time.
WRITERS = 4

#: Skipped photos that a job's result lists; the others are counted.
LISTED = 1000


def add_archive(
    gallery: Gallery,
    archive: Archive,
    photos: Sequence[Photo],
    *,
    workers: int,
    progress: Progress,
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    """Add the photos of an archive to a gallery that is open for writing.

    A photo whose ``sku`` is there replaces that item, unless it is the same photo; then, as with a
    photo without ``sku`` that is there, only what the archive's list states is taken over.
    Photos that cannot be used are skipped and listed.

    Args:
        gallery: where to.
        archive: what holds them.
        photos: which, as ``archive.photos`` gives them.
        workers: threads that decode and embed.
        progress: told after each photo.
        cancelled: asked after every 64 photos.

    Returns:
        Counts ``added``, ``updated``, ``unchanged``, ``duplicates`` and ``skipped``, and
        ``problems``: path, code and reason of the first 1,000 that were skipped.

    Raises:
        JobCancelledError: it was cancelled; what was added stays.
        InvalidArgumentError: an attribute whose type is not the one it has in the gallery.
        GalleryError: the gallery cannot be written to.
    """
    adding = _Adding(gallery, archive)
    total = len(photos)
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total, "adding photos")

    progress(0, total, "adding photos")
    for start in range(0, total, CHUNK):
        if cancelled():
            raise JobCancelledError(f"cancelled after {done} of {total} photos.")
        adding.add(photos[start : start + CHUNK], workers, tell)
    return adding.result()


@dataclass(frozen=True)
class _Placed:
    """A photo of the archive, its bytes, and its path in the store if it is there already."""

    photo: Photo
    data: bytes
    known: str | None


class _Adding:
    """The photos added so far, and the files that they have claimed."""

    def __init__(self, gallery: Gallery, archive: Archive) -> None:
        self._gallery = gallery
        self._archive = archive
        self._store = PhotoStore.of(gallery)
        self._claimed: set[str] = set()
        self._report = BuildReport()

    def add(self, photos: Sequence[Photo], workers: int, tell: Callable[[int], object]) -> None:
        """Store and embed some photos, and leave no file without an item."""
        names: dict[str, str] = {}  # path in the store → in the archive
        replaced: list[str] = []

        def keep(placed: _Placed) -> Photo:
            path = placed.known or self._store.put(placed.data).path
            names[path] = placed.photo.path
            return replace(placed.photo, root=self._store.folder, path=path)

        stored = []
        try:
            # Several at a time: the disk makes many files durable at about the price of one.
            with closing(in_order(keep, self._read(photos, tell), WRITERS)) as kept:
                for photo in kept:
                    self._claimed.add(photo.path)
                    replaced += self._replaced_by(photo)
                    stored.append(photo)
            with self._store.in_their_words(names):
                report = build(self._gallery, stored, workers=workers, progress=tell)
            self._take(report, names)
        finally:
            self._store.tidy(self._gallery, [*names, *replaced])

    def result(self) -> dict[str, Any]:
        """What was done, for JSON."""
        report = self._report
        return {
            "added": report.added,
            "updated": report.updated,
            "unchanged": report.unchanged,
            "duplicates": len(report.duplicates),
            "skipped": len(report.skipped),
            "problems": [asdict(each) for each in report.skipped[:LISTED]],
        }

    def _read(self, photos: Sequence[Photo], tell: Callable[[int], object]) -> Iterator[_Placed]:
        for photo in photos:
            try:
                data = self._archive.read(photo.path)
            except ArchiveError as error:
                self._report.skipped.append(Skipped(photo.path, error.code, str(error)))
                tell(1)
                continue
            known = self._known(photo, sha256_bytes(data))
            if known is not None:
                self._claimed.add(known)
            yield _Placed(photo, data, known)

    def _known(self, photo: Photo, sha256: str) -> str | None:
        """The place of the item that this photo is, if there is one."""
        if photo.external_id is not None:
            ids = list(self._gallery.ids_by_external([photo.external_id]).values())
            same = [item for item in self._gallery.get(ids) if item.sha256 == sha256]
        else:
            files = [self._store.folder / path for path in self._store.paths_of(sha256)]
            items = self._gallery.get(list(self._gallery.ids_by_path(files).values()))
            same = [item for item in items if item.external_id is None]
            # Twice in the archive under two labels, it is two items, and each finds its own again.
            same.sort(key=lambda item: (item.label != photo.label, item.id))
        for item in same:
            if self._store.holds(item) and item.path not in self._claimed:
                return item.path
        return None

    def _replaced_by(self, photo: Photo) -> list[str]:
        """The place of the item whose ``sku`` this photo takes."""
        if photo.external_id is None:
            return []
        ids = list(self._gallery.ids_by_external([photo.external_id]).values())
        return [
            item.path
            for item in self._gallery.get(ids)
            if self._store.holds(item) and item.path != photo.path
        ]

    def _take(self, report: BuildReport, names: dict[str, str]) -> None:
        """Add up, with the names that the sender knows."""
        own = {str(self._store.folder / path): name for path, name in names.items()}
        self._report.added += report.added
        self._report.updated += report.updated
        self._report.unchanged += report.unchanged
        self._report.duplicates += report.duplicates
        for each in report.skipped:
            name = own[each.path]
            reason = each.reason.replace(each.path, name)
            self._report.skipped.append(Skipped(name, each.code, reason))
