"""Photos → items of a gallery: read, embed, store; resumable.

Threads read, hash and decode photos while others embed those decoded before (ONNX Runtime and
Pillow let go of the interpreter lock); vectors are stored in small durable batches. Stopping at
any moment loses at most the batch under way; running again goes on with what is not stored yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import InvalidArgumentError
from index.gallery import Gallery
from index.items import KEEP, Item, NewItem
from index.model import Model
from index.parallel import check_workers, in_order
from index.photos import AttributeValue, Photo
from index.reading import Content, Embedded, Skipped, read_photo, stamp_of
from index.stores import PhotoPath, is_there

__all__ = ["BuildReport", "BulkEmbedder", "Duplicate", "Skipped", "build"]

#: Photos stored by one durable transaction: the most that a stop can lose.
BATCH = 64

#: Photos looked up in the catalog at a time.
PAGE = 500


@dataclass(frozen=True)
class Duplicate:
    """A photo that is, byte for byte, another one."""

    path: str
    same_as: str


@dataclass
class BuildReport:
    """What ``build`` did."""

    added: int = 0  #: photos that are new or whose content changed
    updated: int = 0  #: photos there already that got another label, attribute, sku or time stamp
    unchanged: int = 0
    removed: int = 0  #: items whose photo is gone
    duplicates: list[Duplicate] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


class BulkEmbedder(Protocol):
    """What embeds photos elsewhere than in the threads of ``build``; see ``index.bulk``."""

    def embed(
        self,
        model: Model,
        *,
        listed: Sequence[Path],
        wanted: Sequence[Path],
        tell: Callable[[int], object],
    ) -> Iterable[Embedded]:
        """Embed the files in ``wanted``, some of those ``listed``; the results in that order.

        ``tell`` is called with the number of wanted photos just dealt with.
        """
        ...

    def finish(self) -> None:
        """Everything is stored: what was kept in case of a stop may go."""
        ...


def build(
    gallery: Gallery,
    photos: Sequence[Photo],
    *,
    workers: int | None = None,
    skip_duplicates: bool = False,
    prune: bool = False,
    progress: Callable[[int], object] | None = None,
    bulk: BulkEmbedder | None = None,
) -> BuildReport:
    """Add photos to a gallery that is open for writing.

    Photos already there (same path, size and modification time) are not read again; what is stated
    about them (``Photo.stated``) is taken over. A photo whose content is in the gallery already is
    not embedded again: it becomes an item with the same vector. Unreadable photos are skipped and
    listed, never fatal.

    Args:
        gallery: where to.
        photos: what; see ``index.photos.list_photos``. Of two with the same file the last counts.
        workers: threads that read and decode, and as many that embed; default: one for each core.
        skip_duplicates: add no item for a photo that is byte for byte another one.
        prune: in the end remove the items from the photos' roots whose file is gone.
        progress: called with the number of photos just dealt with.
        bulk: what embeds, in place of threads here. The gallery becomes the same.

    Raises:
        InvalidArgumentError: less than one worker; an attribute whose type is not the one it has
            in the gallery, or an external id given twice.
        GalleryError: the gallery was not opened for writing, or cannot be written to.
    """
    workers = check_workers(workers)
    tell: Callable[[int], object] = progress or _say_nothing
    report = BuildReport()
    usable = _usable(photos, report)
    tell(len(photos) - len(usable))
    tasks = _plan(gallery, usable, report, tell)
    sources: Iterable[tuple[_Task, Embedded | None]] = zip(tasks, repeat(None), strict=False)
    if bulk is not None:
        sources = _elsewhere(bulk, gallery.model, usable, tasks, tell)
        tell = _say_nothing  # they have been counted
    _store(gallery, sources, report, workers=workers, skip_duplicates=skip_duplicates, tell=tell)
    if prune:
        report.removed = _prune(gallery, {photo.root for photo in usable})
    if bulk is not None:
        bulk.finish()
    return report


def _say_nothing(count: int) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True)
class _Task:
    """A photo to be read, and the item that the gallery has of its path."""

    photo: Photo
    item: Item | None
    same_file: bool = False  #: only what is said about the item changes


@dataclass(frozen=True)
class _Read:
    """A photo that was read."""

    task: _Task
    content: Content

    @property
    def changed(self) -> bool:
        """Whether this content is new under its path."""
        return self.task.item is None or self.task.item.sha256 != self.content.sha256


# What is to be done


def _usable(photos: Sequence[Photo], report: BuildReport) -> list[Photo]:
    """Each file once, without those whose names cannot be stored."""
    usable = []
    for photo in {photo.file: photo for photo in photos}.values():
        try:
            str(photo.file).encode()
        except UnicodeEncodeError:  # names from other systems may hold any bytes
            shown = str(photo.file).encode(errors="backslashreplace").decode()
            report.skipped.append(
                Skipped(shown, "path_not_utf8", "its name is not UTF-8: rename it.")
            )
        else:
            usable.append(photo)
    return usable


def _plan(
    gallery: Gallery, photos: list[Photo], report: BuildReport, tell: Callable[[int], object]
) -> list[_Task]:
    """What has to be read; corrections to photos that have not changed are made right away."""
    stamps = {root: gallery.files(root) for root in {photo.root for photo in photos}}
    tasks = []
    for start in range(0, len(photos), PAGE):
        page = photos[start : start + PAGE]
        same = [_has_stamp(photo, stamps[photo.root].get(photo.path)) for photo in page]
        asked = [
            photo for photo, known in zip(page, same, strict=True) if photo.stated or not known
        ]
        ids = gallery.ids_by_path([photo.file for photo in asked])
        items = dict(zip(ids, gallery.get(list(ids.values())), strict=True))
        for photo, known in zip(page, same, strict=True):
            item = items.get(photo.file)
            if known and not photo.stated:
                report.unchanged += 1
            elif item is None or not _has_stamp(photo, (item.size, item.mtime_ns)):
                tasks.append(_Task(photo, item))
                continue
            elif _is_as_stated(photo, item):
                report.unchanged += 1
            elif _takes_anothers_external_id(gallery, photo, item):
                tasks.append(_Task(photo, item, same_file=True))
                continue
            else:
                _correct(gallery, photo, item)
                report.updated += 1
            tell(1)
    return tasks


def _on_this_machine(photos: Sequence[Photo]) -> list[Path]:
    """The files of photos that other processes are to read."""
    files = [photo.file for photo in photos]
    local = [file for file in files if isinstance(file, Path)]
    if len(local) < len(files):
        raise InvalidArgumentError(
            "photos that lie in a store are embedded by threads: use --engine threads for them."
        )
    return local


def _has_stamp(photo: Photo, stamp: tuple[int, int] | None) -> bool:
    """Whether the file has this size and modification time."""
    now = stamp_of(photo.file)
    return now is not None and now == stamp  # reading it will say what is wrong


def _label(photo: Photo, item: Item | None) -> str | None:
    return photo.label if item is None or "label" in photo.stated else item.label


def _external_id(photo: Photo, item: Item | None) -> str | None:
    return photo.external_id if item is None or "sku" in photo.stated else item.external_id


def _stated_attributes(photo: Photo) -> dict[str, AttributeValue]:
    return {name: value for name, value in photo.attributes.items() if name in photo.stated}


def _is_as_stated(photo: Photo, item: Item) -> bool:
    return (
        item.label == _label(photo, item)
        and item.external_id == _external_id(photo, item)
        and all(
            item.attributes.get(name) == value for name, value in _stated_attributes(photo).items()
        )
    )


def _takes_anothers_external_id(gallery: Gallery, photo: Photo, item: Item) -> bool:
    """Whether its new external id is another item's, which it will replace."""
    external_id = _external_id(photo, item)
    if external_id is None or external_id == item.external_id:
        return False
    return external_id in gallery.ids_by_external([external_id])


def _correct(gallery: Gallery, photo: Photo, item: Item) -> None:
    external_id = _external_id(photo, item)
    gallery.update(
        item.id,
        label=_label(photo, item),
        attributes=_stated_attributes(photo),
        external_id=KEEP if external_id == item.external_id else external_id,
    )


# Reading, embedding, storing


def _elsewhere(
    bulk: BulkEmbedder,
    model: Model,
    photos: list[Photo],
    tasks: list[_Task],
    tell: Callable[[int], object],
) -> Iterator[tuple[_Task, Embedded | None]]:
    """The tasks with what ``bulk`` made of them; None where the gallery has the vector already."""
    listed = _on_this_machine(photos)
    wanted = _on_this_machine([task.photo for task in tasks if not task.same_file])
    tell(len(tasks) - len(wanted))
    results = iter(bulk.embed(model, listed=listed, wanted=wanted, tell=tell))
    for task in tasks:
        yield task, None if task.same_file else next(results)


def _store(
    gallery: Gallery,
    sources: Iterable[tuple[_Task, Embedded | None]],
    report: BuildReport,
    *,
    workers: int,
    skip_duplicates: bool,
    tell: Callable[[int], object],
) -> None:
    model = gallery.model
    under_way: dict[str, PhotoPath] = {}  # content hash → file, of photos not stored yet
    batch: list[NewItem] = []

    def flush() -> None:
        gallery.upsert(batch)
        for item in batch:
            under_way.pop(item.sha256, None)
        batch.clear()

    with closing(in_order(partial(_read, model), sources, workers)) as read:
        distinct = _with_known_vectors(gallery, read, under_way, report, skip_duplicates)
        with closing(in_order(partial(_embed, model), distinct, workers)) as embedded:
            for result in embedded:
                if isinstance(result, Skipped):
                    report.skipped.append(result)
                elif result is not None:
                    vector = result.content.vector
                    if vector is None:
                        vector = _vector_of_content(gallery, batch, result.content.sha256)
                    batch.append(_item(result, vector))
                    if result.changed:
                        report.added += 1
                    else:
                        report.updated += 1
                if len(batch) == BATCH:
                    flush()
                tell(1)
    flush()


def _read(model: Model, source: tuple[_Task, Embedded | None]) -> _Read | Skipped:
    task, embedded = source
    # What was embedded elsewhere counts if the file is still the one that was seen there.
    if embedded is not None and embedded.stamp == stamp_of(task.photo.file):
        result = embedded.result
    else:
        result = read_photo(model, task.photo.file)
    return result if isinstance(result, Skipped) else _Read(task, result)


def _with_known_vectors(
    gallery: Gallery,
    results: Iterable[_Read | Skipped],
    under_way: dict[str, PhotoPath],
    report: BuildReport,
    skip_duplicates: bool,
) -> Iterator[_Read | Skipped | None]:
    """Take the pixels of photos whose content is known, so that they are not embedded again.

    None stands for a duplicate that is left out.
    """
    for read in results:
        if isinstance(read, Skipped):
            yield read
            continue
        file = read.task.photo.file
        sha256 = read.content.sha256
        same_as = under_way.get(sha256)
        vector = None
        if same_as is None:
            known = gallery.ids_by_sha256([sha256])
            if not known:
                under_way[sha256] = file
                yield read
                continue
            [item] = gallery.get(list(known.values()))
            same_as, vector = item.image, gallery.vectors([item.id])[0]
        # Content whose other file is gone has moved; it is no duplicate.
        if read.changed and is_there(same_as):
            report.duplicates.append(Duplicate(str(file), str(same_as)))
            if skip_duplicates and read.task.item is None:
                yield None
                continue
        content = dataclasses.replace(read.content, pixels=None, vector=vector)
        yield dataclasses.replace(read, content=content)


def _embed(model: Model, read: _Read | Skipped | None) -> _Read | Skipped | None:
    if read is None or isinstance(read, Skipped):
        return read
    return dataclasses.replace(read, content=read.content.embedded(model))


def _vector_of_content(gallery: Gallery, batch: list[NewItem], sha256: str) -> NDArray[np.float32]:
    """The vector of a photo with this content that was embedded earlier in this run."""
    for item in batch:
        if item.sha256 == sha256:
            return item.vector
    vector: NDArray[np.float32]
    [vector] = gallery.vectors(list(gallery.ids_by_sha256([sha256]).values()))
    return vector


def _item(read: _Read, vector: NDArray[np.float32]) -> NewItem:
    photo, item, content = read.task.photo, read.task.item, read.content
    attributes = dict(photo.attributes)
    if item is not None:
        attributes |= item.attributes | _stated_attributes(photo)
    return NewItem(
        root=photo.root,
        path=photo.path,
        sha256=content.sha256,
        size=content.size,
        mtime_ns=content.mtime_ns,
        label=_label(photo, item),
        attributes=attributes,
        external_id=_external_id(photo, item),
        vector=vector,
    )


def _prune(gallery: Gallery, roots: set[PhotoPath]) -> int:
    gone = [
        root / path
        for root in sorted(roots, key=str)
        for path in gallery.files(root)
        if not is_there(root / path)
    ]
    ids = list(gallery.ids_by_path(gone).values())
    gallery.remove(ids)
    return len(ids)
