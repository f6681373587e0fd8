"""Keeping a gallery well: check, compact, snapshot, restore.

All of them work on the gallery's folder while other processes search it. A snapshot is itself a
gallery.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

from index.approximate import Base
from index.base_files import CURRENT_FILE, current_name, read_base, write_base
from index.catalog import FILE as CATALOG_FILE
from index.catalog import Catalog
from index.errors import BaseDamagedError, DsclError, GalleryError, ModelMismatchError
from index.files import folder_bytes, replace_folder, sha256_bytes, sha256_file, sync_folder
from index.gallery import MODEL_FOLDER, VECTORS_FOLDER, Gallery
from index.items import Item
from index.kept_photos import link_photos
from index.lock import WriterLock
from index.model import Model
from index.parallel import check_workers, in_order
from index.photos import image_files
from index.scan import scan
from index.stores import PhotoPath, is_remote, read_photo, stamp_of

__all__ = ["CheckReport", "Finding", "check", "compact", "restore", "snapshot"]

#: Times a snapshot starts over because the index files were replaced under it.
SNAPSHOT_TRIES = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """Something that ``check`` saw; ``code`` is stable."""

    code: str
    message: str
    items: list[int] = field(default_factory=list)  #: ids of the items concerned


@dataclass
class CheckReport:
    """What ``check`` saw. Notes are worth knowing; problems have to be mended."""

    items: int = 0
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)


def check(
    folder: Path,
    *,
    photos: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> CheckReport:
    """Look for damage. Changes nothing; others may search and change the gallery meanwhile.

    Problems, by their code: ``catalog_damaged`` (SQLite's own check, vectors of a wrong length or
    not of unit length, items without a vector and vectors without an item), ``model_damaged``,
    ``index_damaged`` (files that are not what their manifest says), ``photo_missing``,
    ``photo_moved`` (missing, but the same content lies elsewhere below its root),
    ``photo_changed`` (another size, or with ``photos`` another content, than was indexed) and
    ``photo_outside`` (a path that leads out of its root).

    Notes: ``duplicate_content`` (items that are byte for byte the same photo) and ``leftover``
    (index files that belong to nothing).

    Args:
        folder: the gallery.
        photos: read every photo and compare its SHA-256 with the catalog's.
        workers: threads that read photos; default: one for each core.
        progress: called with (items just checked, all items).

    Raises:
        GalleryError: there is no gallery, or its catalog cannot be read at all.
    """
    workers = check_workers(workers)
    folder = folder.absolute()
    report = CheckReport()
    catalog = Catalog(folder)
    try:
        report.problems += [Finding("catalog_damaged", each) for each in catalog.integrity()]
        report.problems += _check_model(folder, catalog)
        report.problems += _check_index(folder, catalog)
        report.notes += _leftovers(folder / VECTORS_FOLDER)
        try:
            _check_items(catalog, report, photos=photos, workers=workers, progress=progress)
        except GalleryError as error:  # as far as the damage
            report.problems.append(Finding("catalog_damaged", str(error)))
    finally:
        catalog.close()
    return report


def compact(
    folder: Path, *, progress: Callable[[str, float], None] | None = None
) -> tuple[int, int]:
    """Build the index anew from the catalog and give unused disk space back.

    Others may search meanwhile. Index files that belong to nothing are removed.

    Returns:
        Bytes of the gallery's folder before and after.

    Raises:
        GalleryError: no gallery, or another process writes to it.
    """
    with Gallery.open(folder, writable=True) as gallery:
        before = folder_bytes(folder)
        gallery.rebuild(progress=progress)
        catalog = Catalog(folder, writable=True)
        try:
            catalog.vacuum()
            catalog.checkpoint()
        finally:
            catalog.close()
        return before, folder_bytes(folder)


def snapshot(folder: Path, target: Path) -> None:
    """Copy a gallery as it is at one moment; others may search and change it meanwhile.

    The copy is a gallery of its own. Its index files and its model share their disk space with the
    gallery's where the file system has hard links: none of these files is ever changed in place.
    So do the photos that the gallery keeps itself; those in indexed folders are not copied.

    Raises:
        GalleryError: no gallery at ``folder``, or something at ``target`` already.
    """
    folder, target = folder.absolute(), target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise GalleryError(f"{target} exists already: choose a new folder for the copy.")
    catalog = Catalog(folder)
    try:
        own_file = catalog.path.stat()
        with replace_folder(target) as fresh:
            # The index first: the catalog must not be older than it.
            _link_index(folder / VECTORS_FOLDER, fresh / VECTORS_FOLDER)
            _link_files(folder / MODEL_FOLDER, fresh / MODEL_FOLDER)
            # Before the catalog those that may go, after it those that have come.
            link_photos(folder, fresh)
            catalog.backup(fresh / CATALOG_FILE)
            link_photos(folder, fresh)
            if not os.path.samestat(own_file, catalog.path.stat()):
                raise GalleryError(
                    f"{folder} was migrated while it was copied, so there is no copy: run it again."
                )
            _expect_own_model(fresh)
    finally:
        catalog.close()


def restore(folder: Path, source: Path) -> None:
    """Bring a gallery back to the state of a snapshot.

    Where there is no gallery at ``folder``, it is made. Otherwise its content is replaced in one
    transaction: processes that have it open for reading go on, and their next search finds the
    restored state, never a mixture. Items keep the ids they had in the snapshot; ids that were
    given since are not given again.

    Raises:
        GalleryError: no snapshot at ``source``, or a damaged one; or another process writes to the
            gallery. Nothing changes.
        ModelMismatchError: the snapshot's vectors were made with another model than the gallery
            has now, or in another precision.
    """
    folder, source = folder.absolute(), source.absolute()
    base = _expect_sound(source)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        snapshot(source, folder)
        return
    with WriterLock.acquire(folder):
        catalog = Catalog(folder, writable=True)
        try:
            _expect_same_precision(catalog, source)
            link_photos(source, folder)
            shift = catalog.replace_content(source / CATALOG_FILE)
        finally:
            catalog.close()
        # From here on the old index is known to be of another history. Without a new one the
        # gallery would be whole too: it would be built when the gallery is opened.
        if base is not None:
            try:
                write_base(folder / VECTORS_FOLDER, replace(base, seq=base.seq + shift))
            except OSError as error:
                raise GalleryError(
                    f"the items of {folder} are restored, but its index cannot be written: "
                    f"{error}. Mend that, then `dscl index compact` builds it anew."
                ) from error


# Checking


def _check_model(folder: Path, catalog: Catalog) -> list[Finding]:
    try:
        model = Model.load(folder / MODEL_FOLDER)
    except DsclError as error:
        return [Finding("model_damaged", str(error))]
    expected = catalog.meta("model_sha256")
    if model.sha256 != expected:
        return [
            Finding(
                "model_damaged",
                f"{folder / MODEL_FOLDER} holds model {model.sha256[:12]}…, but the vectors are of "
                f"{expected[:12]}…: put that model back.",
            )
        ]
    return []


def _check_index(folder: Path, catalog: Catalog) -> list[Finding]:
    mend = "`dscl index compact` builds it anew."
    try:
        base = read_base(folder / VECTORS_FOLDER)
    except BaseDamagedError as error:
        return [Finding("index_damaged", f"{error} {mend}")]
    # Read after the base, so that a writer's newer base does not look wrong.
    if base is not None and base.seq > catalog.seq():
        return [
            Finding(
                "index_damaged",
                f"the index in {folder / VECTORS_FOLDER} is of change {base.seq}, and the catalog "
                f"knows only {catalog.seq()}: they do not belong together. {mend}",
            )
        ]
    return []


def _leftovers(vectors: Path) -> list[Finding]:
    """Bases that were replaced, or never finished; a writer removes them with its next base."""
    try:
        own = {CURRENT_FILE, current_name(vectors)}
    except BaseDamagedError:
        return []  # a problem already, and so it is not known which are left over
    return [
        Finding(
            "leftover",
            f"{path} belongs to nothing, unless a process is writing it now: `dscl index compact` "
            "removes it.",
        )
        for path in (sorted(vectors.iterdir()) if vectors.is_dir() else [])
        if path.name not in own
    ]


def _check_items(
    catalog: Catalog,
    report: CheckReport,
    *,
    photos: bool,
    workers: int,
    progress: Callable[[int, int], object] | None,
) -> None:
    total = catalog.count()
    contents: dict[str, list[int]] = defaultdict(list)
    missing: list[tuple[Item, Finding]] = []
    items = (item for page in scan(catalog) for item in page)
    for item, finding in in_order(partial(_check_photo, content=photos), items, workers):
        report.items += 1
        contents[item.sha256].append(item.id)
        if finding is not None and finding.code == "photo_missing":
            missing.append((item, finding))
        elif finding is not None:
            report.problems.append(finding)
        if progress is not None:
            progress(1, total)
    report.problems += _missing_or_moved(missing)
    report.notes += [
        Finding("duplicate_content", f"items {_few(ids)} are the same photo, byte for byte.", ids)
        for ids in contents.values()
        if len(ids) > 1
    ]


def _check_photo(item: Item, *, content: bool) -> tuple[Item, Finding | None]:
    path = PurePosixPath(item.path)
    if path.is_absolute() or ".." in path.parts:
        text = f"item {item.id} has path {item.path}, which leads out of {item.root}: remove it."
        return item, Finding("photo_outside", text, [item.id])
    try:
        size, _ = stamp_of(item.image)
        changed = size != item.size or (content and _sha256_of(item.image) != item.sha256)
    except OSError as error:
        reason = error.strerror or "no such object"
        text = f"{item.image} (item {item.id}) cannot be read ({reason}): "
        mend = "put it back, or remove the item."
        return item, Finding("photo_missing", text + mend, [item.id])
    if changed:
        text = (
            f"{item.image} (item {item.id}) is not the photo that was indexed: `dscl index add` "
            "takes the new one."
        )
        return item, Finding("photo_changed", text, [item.id])
    return item, None


def _sha256_of(photo: PhotoPath) -> str:
    return sha256_bytes(read_photo(photo)) if is_remote(photo) else sha256_file(photo)


def _missing_or_moved(missing: list[tuple[Item, Finding]]) -> list[Finding]:
    """The same findings, but where a photo is elsewhere below its root, say where."""
    by_root: dict[PhotoPath, list[Item]] = defaultdict(list)
    for item, _ in missing:
        by_root[item.root].append(item)
    found = {root: _find(root, items) for root, items in by_root.items()}
    findings = []
    for item, finding in missing:
        now = found[item.root].get(item.sha256)
        if now is not None:
            text = f"{item.image} (item {item.id}) is now {now}: "
            mend = "index that folder again with --prune."
            finding = Finding("photo_moved", text + mend, [item.id])
        findings.append(finding)
    return findings


def _find(root: PhotoPath, items: list[Item]) -> dict[str, Path]:
    """Content hash → file below ``root``, for those of ``items`` that are there.

    Nothing in a store moves: there is none.
    """
    sizes = {item.size for item in items}
    wanted = {item.sha256 for item in items}
    found: dict[str, Path] = {}
    if is_remote(root) or not root.is_dir():
        return found
    for file in image_files(root):
        if file.stat().st_size in sizes and (content := sha256_file(file)) in wanted:
            found.setdefault(content, file)
    return found


def _few(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (", …" if len(ids) > 10 else "")


# Copying


def _link_index(source: Path, target: Path) -> None:
    """The current base of ``source``, or nothing if there is none that can be used."""
    for _ in range(SNAPSHOT_TRIES):
        try:
            name = current_name(source)
            if name is None:
                return
            _link_files(source / name, target / name)
            shutil.copyfile(source / CURRENT_FILE, target / CURRENT_FILE)
            if current_name(target) == name:
                sync_folder(target)
                return
        except FileNotFoundError:
            pass  # replaced meanwhile
        except BaseDamagedError:
            pass  # the copy builds its own
        shutil.rmtree(target, ignore_errors=True)


def _link_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, target / file.name)
    sync_folder(target)


def _expect_own_model(folder: Path) -> None:
    catalog = Catalog(folder)
    try:
        if problems := _check_model(folder, catalog):
            raise GalleryError(problems[0].message)
    finally:
        catalog.close()


# Restoring


def _expect_sound(source: Path) -> Base | None:
    """Refuse a damaged snapshot; returns its index, or None if it has none that can be used."""
    catalog = Catalog(source)
    try:
        if problems := catalog.integrity():
            raise GalleryError(
                f"snapshot {source} is damaged, so nothing was restored: {' '.join(problems[:3])}"
            )
        try:
            base = read_base(source / VECTORS_FOLDER)
        except BaseDamagedError as error:
            log.warning("%s", error)
            return None
        if base is None or not int(catalog.meta("floor")) <= base.seq <= catalog.seq():
            return None
        return base
    finally:
        catalog.close()


def _expect_same_precision(catalog: Catalog, source: Path) -> None:
    other = Catalog(source)
    try:
        theirs, ours = other.meta("precision"), catalog.meta("precision")
    finally:
        other.close()
    if theirs != ours:
        raise ModelMismatchError(
            f"snapshot {source} holds vectors in {theirs}, gallery {catalog.path.parent} those in "
            f"{ours}, and they do not mix. Move the gallery away, then restore it."
        )
