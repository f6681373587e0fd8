"""What lies in folders, seen without what systems and archivers leave behind.

Knows nothing of classes or layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.data.names import few

__all__ = ["contents", "existing", "unwrap", "visible"]


def visible(path: Path) -> list[Path]:
    """Sorted entries of a folder, less what systems and archivers leave behind."""
    return sorted(
        entry
        for entry in path.iterdir()
        if not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


def contents(path: Path) -> str:
    """What is in a folder, for error messages."""
    return few([entry.name + "/" * entry.is_dir() for entry in visible(path)]) or "nothing"


def unwrap(path: Path) -> Path:
    """The folder inside the folders of folders that archives unpack to."""
    entries = visible(path)
    inner = entries[0] if len(entries) == 1 and entries[0].is_dir() else None
    if inner is None or inner.name == "train" or not any(e.is_dir() for e in visible(inner)):
        return path
    return unwrap(inner)


def existing(paths: Sequence[Path]) -> list[int]:
    """Positions of the paths that are there; each folder is listed once, however many it holds."""
    folders = {path.parent for path in paths}
    present = {file for folder in folders if folder.is_dir() for file in folder.iterdir()}
    return [i for i, path in enumerate(paths) if path in present]
