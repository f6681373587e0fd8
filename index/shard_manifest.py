"""``manifest.json`` of a work folder: the model, and the shards that the photos are divided into.

    {"format_version": 1, "model_sha256": …, "precision": "fp32",
     "shards": [{"number": 0, "photos": 1000, "input_sha256": …}, …]}

What is done is not in it, so that those who embed need not share a file; see ``index.shards``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from index.errors import ShardError
from index.files import write_atomically
from index.runtimes import Precision

__all__ = [
    "BEGIN_AGAIN",
    "MANIFEST_FILE",
    "Manifest",
    "Shard",
    "read_manifest",
    "write_manifest",
]

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"

#: The way out where what a work folder is to hold cannot be known any more.
BEGIN_AGAIN = "Delete the work folder and begin again."


@dataclass(frozen=True)
class Shard:
    """Some photos that are embedded together. ``input_sha256`` is that of the list of them."""

    number: int
    photos: int
    input_sha256: str

    @property
    def input_file(self) -> str:
        """The list of photos."""
        return f"{self.number:05}.photos.json"

    @property
    def output_file(self) -> str:
        """What the photos gave."""
        return f"{self.number:05}.npz"

    @property
    def begun_file(self) -> str:
        """How often it was begun, where that is counted."""
        return f"{self.number:05}.begun.json"

    @property
    def done_file(self) -> str:
        """The hash of the output, once that is whole."""
        return f"{self.number:05}.done.json"


@dataclass(frozen=True)
class Manifest:
    """What all shards have in common, and the shards."""

    model_sha256: str
    precision: Precision
    shards: Sequence[Shard]


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a work folder.

    Raises:
        ShardError: there is none, or it is damaged or of another format.
    """
    file = folder / MANIFEST_FILE
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ShardError(
            f"{folder} is no work folder: {MANIFEST_FILE} is missing. `dscl index build --engine "
            "processes` makes one; on another machine it must be at the same path."
        ) from None
    except (OSError, ValueError) as error:
        raise ShardError(f"{file} cannot be read: {error}. {BEGIN_AGAIN}") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{file} has format version {version!r}; this release reads {FORMAT_VERSION}. "
            "Finish it with the release that began it, or delete the folder."
        )
    try:
        shards = [Shard(**each) for each in values["shards"]]
        return Manifest(values["model_sha256"], cast(Precision, values["precision"]), shards)
    except (KeyError, TypeError) as error:
        raise ShardError(f"{file} is incomplete: {error}. {BEGIN_AGAIN}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a work folder, atomically and durably."""
    values = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    data = json.dumps(values, ensure_ascii=False).encode()
    write_atomically(folder / MANIFEST_FILE, data)
