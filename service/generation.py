"""``Generation``: which gallery all processes of one service are to serve.

A small file in the private folder of a service: one process writes it after a reload, the others
look at it a few times a second and follow.
"""

from __future__ import annotations

import json
from pathlib import Path

from index.address import GalleryAddress, parse_address
from index.files import write_atomically

__all__ = ["Generation"]


class Generation:
    """The file, as one process sees it."""

    def __init__(self, folder: Path) -> None:
        """Look at the file in ``folder``, the state folder of the service."""
        self._file = folder / "generation.json"
        self._seen = self._read()

    def publish(self, gallery: GalleryAddress) -> None:
        """Tell the other processes to serve ``gallery`` from now on."""
        number, _ = self._read()
        self._seen = (number + 1, _text(gallery))
        write_atomically(self._file, json.dumps(self._seen).encode())

    def news(self) -> GalleryAddress | None:
        """The gallery that another process has told of since the last call, if any."""
        now = self._read()
        if now == self._seen:
            return None
        self._seen = now
        return parse_address(now[1])

    def present(self) -> GalleryAddress | None:
        """The gallery that is served, if it is not the one in the settings."""
        number, gallery = self._read()
        return parse_address(gallery) if number else None

    def _read(self) -> tuple[int, str]:
        if not self._file.exists():
            return 0, ""
        number, gallery = json.loads(self._file.read_text(encoding="utf-8"))
        return int(number), str(gallery)


def _text(gallery: GalleryAddress) -> str:
    return str(gallery) if isinstance(gallery, Path) else gallery.url
