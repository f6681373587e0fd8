"""A base on disk: whole or absent, and known to be what was written.

A folder holds one base, ``base-<seq>-<random>/`` with its arrays, its FAISS index and a manifest
of their SHA-256, and the file ``CURRENT``: the base's name and the SHA-256 of its manifest. A base
never changes; a new one is written beside it, ``CURRENT`` is replaced, and the old one is removed.
Whoever has the old one open goes on with it: its vectors stay mapped until they are let go.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from index.approximate import Base, SearchParameters, stored_vectors
from index.errors import BaseDamagedError
from index.files import replace_folder, sha256_file, sync_folder, write_atomically

__all__ = ["current_name", "read_base", "write_base"]

FORMAT_VERSION = 1

CURRENT_FILE = "CURRENT"
MANIFEST_FILE = "manifest.json"
IDS_FILE = "ids.npy"
VECTORS_FILE = "vectors.npy"
ANN_FILE = "index.faiss"

POINTER = re.compile(r"(base-\d+-[0-9a-f]{16}) ([0-9a-f]{64})\n")


def write_base(folder: Path, base: Base) -> None:
    """Make ``base`` the folder's base, durably; on an error the one before stays.

    Args:
        folder: made if missing. Only one process may write at a time.
        base: what to write.

    Raises:
        OSError: the disk is full, the folder read-only, …
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"base-{base.seq}-{secrets.token_hex(8)}"
    with replace_folder(folder / name) as fresh:
        files: dict[str, Callable[[BinaryIO], object]] = {
            IDS_FILE: lambda file: _write_array(base.ids, file)
        }
        if base.kind != "hnsw":  # whose FAISS index holds them
            files[VECTORS_FILE] = lambda file: _write_array(base.vectors, file)
        if base.ann is not None:
            files[ANN_FILE] = lambda file: _write_ann(base.ann, file)
        for file_name, write in files.items():
            with (fresh / file_name).open("wb") as file:
                write(file)
        manifest = {
            "format_version": FORMAT_VERSION,
            "seq": base.seq,
            "shape": list(base.vectors.shape),
            "kind": base.kind,
            "requested": base.requested,
            "planned": base.planned,
            "parameters": {
                "nprobe": base.parameters.nprobe,
                "ef_search": base.parameters.ef_search,
                "refine": base.parameters.refine,
            },
            "recall": base.recall,
            "target_recall": base.target_recall,
            "files": {file_name: sha256_file(fresh / file_name) for file_name in files},
        }
        (fresh / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        manifest_sha256 = sha256_file(fresh / MANIFEST_FILE)
    try:
        write_atomically(folder / CURRENT_FILE, f"{name} {manifest_sha256}\n".encode())
    except BaseException:
        shutil.rmtree(folder / name)
        raise
    for other in folder.iterdir():
        # Also what a writer left that was killed
        if other.name != name and other.name.startswith(("base-", ".base-", f".{CURRENT_FILE}.")):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    sync_folder(folder)


def read_base(folder: Path) -> Base | None:
    """The folder's base, checked against its hashes; None if there never was one.

    Vectors are mapped into memory, not read. A base that is replaced meanwhile is no error.

    Raises:
        BaseDamagedError: a file is missing, cut off, changed or of an unknown format. The base can
            be rebuilt from the catalog.
    """
    while True:
        pointer = _pointer(folder)
        if pointer is None:
            return None
        name, manifest_sha256 = pointer
        try:
            return _load(folder / name, manifest_sha256)
        except BaseDamagedError:
            if _pointer(folder) == pointer:
                raise


def current_name(folder: Path) -> str | None:
    """The name of the folder's base, to notice another; None if there never was one.

    Raises:
        BaseDamagedError: the pointer is not one.
    """
    pointer = _pointer(folder)
    return None if pointer is None else pointer[0]


def _pointer(folder: Path) -> tuple[str, str] | None:
    """Name of the base and SHA-256 of its manifest."""
    path = folder / CURRENT_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    found = POINTER.fullmatch(content.decode("ascii", errors="replace"))
    if found is None:
        raise _damaged(path, "does not name a base")
    return found[1], found[2]


# Both NumPy and FAISS, given a file of the operating system, write through buffers of their own and
# miss that the disk is full when its rest is flushed: the file would be cut off unnoticed.


def _write_array(array: NDArray[Any], file: BinaryIO) -> None:
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)
    file.write(np.ascontiguousarray(array).data)


def _write_ann(ann: Any, file: BinaryIO) -> None:
    faiss.write_index(ann, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


def _load(folder: Path, manifest_sha256: str) -> Base:
    manifest = _manifest(folder / MANIFEST_FILE, manifest_sha256)
    for file_name, sha256 in manifest["files"].items():
        _check(folder / file_name, sha256)
    ids = _read(folder / IDS_FILE, lambda path: np.load(path, allow_pickle=False))
    ann: Any | None = None
    if ANN_FILE in manifest["files"]:
        # FAISS copies fast-scan codes out of a mapped file, and would hold both.
        flags = faiss.IO_FLAG_MMAP_IFC if manifest["kind"] == "hnsw" else 0
        ann = _read(folder / ANN_FILE, lambda path: faiss.read_index(str(path), flags))
    if VECTORS_FILE in manifest["files"]:
        mapped = _read(
            folder / VECTORS_FILE, lambda path: np.load(path, mmap_mode="r", allow_pickle=False)
        )
        # The plain array over the same memory: each view of a memmap costs microseconds.
        vectors = np.asarray(mapped)
    else:
        assert ann is not None
        vectors = stored_vectors(ann)
    return Base(
        ids=ids,
        vectors=vectors,
        kind=manifest["kind"],
        requested=manifest["requested"],
        planned=manifest["planned"],
        ann=ann,
        parameters=SearchParameters(**manifest["parameters"]),
        recall=manifest["recall"],
        target_recall=manifest["target_recall"],
        seq=manifest["seq"],
    )


def _manifest(path: Path, sha256: str) -> dict[str, Any]:
    _check(path, sha256)
    manifest: dict[str, Any] = json.loads(_read(path, lambda path: path.read_bytes()))
    if manifest["format_version"] != FORMAT_VERSION:
        raise _damaged(path, f"is of format {manifest['format_version']}, not {FORMAT_VERSION}")
    return manifest


def _check(path: Path, sha256: str) -> None:
    if _read(path, sha256_file) != sha256:
        raise _damaged(path, "is not what was written (its SHA-256 differs)")


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise _damaged(path, "is missing") from error
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    except RuntimeError as error:  # FAISS's, of another version's index
        raise _damaged(path, f"cannot be read ({error})") from error


def _damaged(path: Path, reason: str) -> BaseDamagedError:
    return BaseDamagedError(
        f"index file {path} {reason}: it has to be rebuilt from the catalog, which loses nothing."
    )
