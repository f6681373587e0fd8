"""``GalleryMap``: where each item of a gallery is on a map of it, and the file that keeps that.

A map is drawn once and kept with the gallery. Items that came since are put amid their nearest;
items that went are passed over by whoever reads it. A file that is missing, damaged, or of another
model or history is no map: drawing one again loses nothing but the time.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import GalleryError, InvalidArgumentError
from index.files import write_atomically
from index.projection import Progress, place, project

__all__ = ["MAX_POINTS", "GalleryMap", "draw", "extend", "read_map", "write_map"]

FILE = "map.npz"

FORMAT_VERSION = 1

#: Items that are laid out; of a larger gallery it is a sample.
MAX_POINTS = 100_000

#: Items that may be put into a map that is there, as a share of those on it, before it is drawn
#: anew: many that are like nothing there would all be crowded in between.
PLACED_SHARE = 0.1

#: Coordinates go from 0 to this.
LARGEST = 65_535

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GalleryMap:
    """A map of m items. Neighbours on it are neighbours in search; its distances have no unit."""

    seq: int  #: the change of the catalog after which it was drawn or extended
    model_sha256: str  #: of the model whose vectors it shows
    created: datetime  #: when it was drawn or extended
    last_id: int  #: the highest id that the gallery then had: items above it came later
    items: int  #: how many the gallery then had; more than m if this is a sample
    ids: NDArray[np.int64]  #: (m,), ascending
    positions: NDArray[np.uint16]  #: (m, 2), x and y; the wider of the two goes from 0 to 65,535

    def positions_of(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Those of ``ids`` (ascending) that are on the map, (p,), and where they are, (p, 2)."""
        found, _, rows = np.intersect1d(ids, self.ids, assume_unique=True, return_indices=True)
        return found, self.positions[rows]


def draw(
    ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    *,
    seq: int,
    model_sha256: str,
    before: GalleryMap | None = None,
    progress: Progress | None = None,
) -> GalleryMap:
    """Draw a map.

    Args:
        ids: (n,), ascending, n at least 1; of more than 100,000, a sample at even steps is drawn.
        vectors: (n, d), unit rows.
        seq: goes into the result.
        model_sha256: goes into the result.
        before: an earlier map, which the new one is to resemble.
        progress: told (done, total, stage); what it raises stops the work.

    Raises:
        InvalidArgumentError: there are no items.
    """
    if len(ids) == 0:
        raise InvalidArgumentError("the gallery is empty: add photos, then draw its map.")
    chosen = np.arange(len(ids))
    if len(ids) > MAX_POINTS:
        chosen = np.linspace(0, len(ids) - 1, MAX_POINTS).astype(np.int64)
    some, some_vectors = ids[chosen], vectors[chosen]
    start = None
    if before is not None and np.isin(some, before.ids).any():
        start = _placed(some, some_vectors, before).astype(np.float64)
    plane = project(some_vectors, start=start, progress=progress)
    return GalleryMap(
        seq=seq,
        model_sha256=model_sha256,
        created=datetime.now(UTC),
        last_id=int(ids[-1]),
        items=len(ids),
        ids=some,
        positions=_quantized(plane),
    )


def extend(
    before: GalleryMap, ids: NDArray[np.int64], vectors: NDArray[np.float32], *, seq: int
) -> GalleryMap | None:
    """The map with the items that came since; None if they are too many for that.

    Args:
        before: the map.
        ids: (n,), ascending: all that the gallery has now.
        vectors: (n, d), theirs.
        seq: goes into the result.
    """
    kept, _ = before.positions_of(ids)
    new = ids > before.last_id
    if len(kept) == 0 or np.count_nonzero(new) > PLACED_SHARE * len(kept):
        return None
    rows = np.isin(ids, kept) | new
    return GalleryMap(
        seq=seq,
        model_sha256=before.model_sha256,
        created=datetime.now(UTC),
        last_id=max(before.last_id, int(ids[-1])),
        items=len(ids),
        ids=ids[rows],
        positions=_placed(ids[rows], vectors[rows], before),
    )


def write_map(folder: Path, drawn: GalleryMap) -> None:
    """Keep a map in a gallery's folder, in place of the one there.

    Raises:
        GalleryError: it cannot be written; the one before stays.
    """
    about = {
        "format_version": FORMAT_VERSION,
        "seq": drawn.seq,
        "model_sha256": drawn.model_sha256,
        "created": drawn.created.isoformat(),
        "last_id": drawn.last_id,
        "items": drawn.items,
    }
    content = io.BytesIO()
    np.savez(
        content,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        ids=drawn.ids,
        positions=drawn.positions,
    )
    try:
        write_atomically(folder / FILE, content.getvalue())
    except OSError as error:
        raise GalleryError(
            f"the map cannot be written to {folder / FILE} ({error.strerror or error}): mend that, "
            "and draw it again."
        ) from error


def read_map(folder: Path) -> GalleryMap | None:
    """The map in a gallery's folder; None if there is none that can be read, which the log says."""
    path = folder / FILE
    try:
        # Each member of the archive has a checksum, which reading it compares.
        with np.load(path, allow_pickle=False) as content:
            about = json.loads(content["about"].tobytes())
            if about["format_version"] != FORMAT_VERSION:
                log.warning("%s is of format %s: draw the map again", path, about["format_version"])
                return None
            return GalleryMap(
                seq=int(about["seq"]),
                model_sha256=about["model_sha256"],
                created=datetime.fromisoformat(about["created"]),
                last_id=int(about["last_id"]),
                items=int(about["items"]),
                ids=content["ids"],
                positions=content["positions"],
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s): draw the map again", path, error)
        return None


def _placed(
    ids: NDArray[np.int64], vectors: NDArray[np.float32], before: GalleryMap
) -> NDArray[np.uint16]:
    """Positions of all of ``ids``: where they were, or amid their nearest of those."""
    _, there, known = np.intersect1d(ids, before.ids, assume_unique=True, return_indices=True)
    positions = np.empty((len(ids), 2), np.uint16)
    positions[there] = before.positions[known]
    new = np.setdiff1d(np.arange(len(ids)), there, assume_unique=True)
    if len(new):
        positions[new] = place(vectors[new], vectors[there], positions[there])
    return positions


def _quantized(plane: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Both axes at one scale, centred, in 0 … 65,535."""
    low, high = plane.min(0), plane.max(0)
    side = float((high - low).max())
    scale = LARGEST / side if side > 0 else 0.0
    centred = (plane - (low + high) / 2) * scale + LARGEST / 2
    return np.asarray(np.clip(np.rint(centred), 0, LARGEST), np.uint16)
