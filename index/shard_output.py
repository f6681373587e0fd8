"""What the photos of one shard gave, as the bytes of an ``.npz`` file without pickle.

positions   int64 (m,)     which photos of the shard, of n, have a vector
vectors     float32 (m, d) unit rows
sha256      uint8 (m, 32)  of the photo files
stamps      int64 (n, 2)   size and mtime_ns of every photo; −1 where there was no file
skipped     uint8 (b,)     the others, JSON in UTF-8: [[position, code, reason], …]
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from index.reading import Content, Embedded, Skipped, Stamp

__all__ = ["pack", "unpack"]

NO_FILE = (-1, -1)


def pack(results: Sequence[Embedded]) -> bytes:
    """Results of all n photos of a shard, in their order → the file's bytes."""
    skipped, positions, contents = [], [], []
    for position, each in enumerate(results):
        if isinstance(each.result, Skipped):
            skipped.append([position, each.result.code, each.result.reason])
        else:
            positions.append(position)
            contents.append(each.result)
    vectors = [each.vector for each in contents if each.vector is not None]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        positions=np.array(positions, np.int64),
        vectors=np.array(vectors, np.float32),
        sha256=np.array([list(bytes.fromhex(each.sha256)) for each in contents], np.uint8),
        stamps=np.array([each.stamp or NO_FILE for each in results], np.int64).reshape(-1, 2),
        skipped=np.frombuffer(json.dumps(skipped).encode(), np.uint8),
    )
    return buffer.getvalue()


def unpack(data: bytes, files: Sequence[Path]) -> list[Embedded]:
    """The results that were packed, of the photos ``files``, in their order."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        positions = arrays["positions"].tolist()
        vectors, hashes = arrays["vectors"], arrays["sha256"]
        rows: list[list[int]] = arrays["stamps"].tolist()
        skipped = json.loads(arrays["skipped"].tobytes())
    stamps: list[Stamp | None] = [None if size < 0 else (size, time) for size, time in rows]
    results: dict[int, Content | Skipped] = {
        position: Skipped(str(files[position]), code, reason) for position, code, reason in skipped
    }
    for position, vector, sha256 in zip(positions, vectors, hashes, strict=True):
        size, mtime_ns = rows[position]
        results[position] = Content(sha256.tobytes().hex(), size, mtime_ns, vector=vector)
    return [Embedded(stamp, results[position]) for position, stamp in enumerate(stamps)]
