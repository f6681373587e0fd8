"""Photos that a gallery keeps itself, in its own folder: those that came over the network.

The catalog names their folder relative to the gallery's, so that a gallery that is moved, copied
or restored finds them. The service writes and removes them; a file's content never changes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["PHOTOS_FOLDER", "link_photos"]

PHOTOS_FOLDER = "photos"


def link_photos(gallery: Path, target: Path) -> None:
    """Give the gallery folder ``target`` the photos that ``gallery`` keeps; those it has stay.

    Hard links where the file system has them. Photos that go meanwhile are left out.
    """
    for file in (gallery / PHOTOS_FOLDER).glob("*/*"):
        copy = target / PHOTOS_FOLDER / file.parent.name / file.name
        try:
            # Empty, or hidden: a photo that is just being written.
            if copy.exists() or file.name.startswith(".") or file.stat().st_size == 0:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, copy)
            except FileNotFoundError:
                raise
            except OSError:  # another file system, or one without hard links
                shutil.copy2(file, copy)
        except FileNotFoundError:
            continue
