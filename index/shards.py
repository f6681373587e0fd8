"""The shard manifest: which photos make up each shard, and which shards are done.

A work folder is on storage that all who embed can reach, and holds

    manifest.json        the model's hash and precision; of each shard the number of photos and the
                         SHA-256 of its list. Written by the process that plans, and only by it
    model/               a copy of the model
    00017.photos.json    shard 17: the paths of its photos
    00017.npz            what they gave; see ``index.shard_output``
    00017.done.json      the SHA-256 of that, written after it
    00017.begun.json     how often a cluster began it

Every file is replaced atomically, so any number of processes may embed shards beside one another,
even the same one, and a stop at any moment costs the shards under way. Nothing is embedded here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from index.errors import ShardError
from index.files import replace_folder, sha256_bytes, sha256_file, sync_folder, write_atomically
from index.model import Model
from index.reading import Embedded
from index.runtimes import Precision
from index.shard_output import pack, unpack

__all__ = ["MANIFEST_FILE", "Shard", "Work"]

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FOLDER = "model"


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


class Work:
    """A work folder. Reading and ``write`` are safe from any number of processes."""

    def __init__(
        self, path: Path, model_sha256: str, precision: Precision, shards: Sequence[Shard]
    ) -> None:
        """Use ``create`` or ``open``."""
        self.path = path
        self.model_sha256 = model_sha256
        self.precision = precision
        self.shards = list(shards)

    @classmethod
    def create(cls, path: Path, model: Model) -> Work:
        """Make a work folder without shards, as a whole or not at all.

        Raises:
            ShardError: something else is at ``path``, or it cannot be written to.
            ModelError: the model folder has changed since it was loaded.
        """
        path = path.absolute()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ShardError(
                f"work folder {path} holds something else: {MANIFEST_FILE} is missing. Name a "
                "folder that does not exist yet by --work."
            )
        try:
            with replace_folder(path) as fresh:
                model.copy_to(fresh / MODEL_FOLDER)
                work = cls(fresh, model.sha256, model.precision, [])
                work._write_manifest()
        except OSError as error:
            raise ShardError(
                f"work folder {path} cannot be made: {error.strerror}. Make room, or name another "
                "by --work."
            ) from error
        work.path = path
        return work

    @classmethod
    def open(cls, path: Path) -> Work:
        """Open a work folder.

        Raises:
            ShardError: there is none, or its manifest is damaged or of another format.
        """
        path = path.absolute()
        file = path / MANIFEST_FILE
        try:
            values = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise ShardError(
                f"{path} is no work folder: {MANIFEST_FILE} is missing. `dscl index build --engine "
                "processes` makes one; on another machine it must be at the same path."
            ) from None
        except (OSError, ValueError) as error:
            raise ShardError(f"{file} cannot be read: {error}. {_REMOVE}") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ShardError(
                f"{file} has format version {version!r}; this release reads {FORMAT_VERSION}. "
                "Finish it with the release that began it, or delete the folder."
            )
        try:
            shards = [Shard(**each) for each in values["shards"]]
            return cls(path, values["model_sha256"], cast(Precision, values["precision"]), shards)
        except (KeyError, TypeError) as error:
            raise ShardError(f"{file} is incomplete: {error}. {_REMOVE}") from error

    # Planning

    def check_model(self, model: Model) -> None:
        """Refuse another model, or another precision, than the one the shards are made with.

        Raises:
            ShardError: says which of the two differs.
        """
        for what, ours, theirs in (
            ("model", self.model_sha256, model.sha256),
            ("precision", self.precision, model.precision),
        ):
            if ours != theirs:
                raise ShardError(
                    f"work folder {self.path} was begun with another {what}: it has {ours[:12]}, "
                    f"the gallery {theirs[:12]}. {_ANOTHER}"
                )

    def check_photos(self, listed: Sequence[Path]) -> dict[Path, tuple[Shard, int]]:
        """Where each photo is: its shard and its position there.

        Raises:
            ShardError: photos of the shards are not among those ``listed``, though they are there
                still: the folder is another run's. Or a list of photos is damaged.
        """
        places = {
            file: (shard, position)
            for shard in self.shards
            for position, file in enumerate(self.files(shard))
        }
        others = sorted(places.keys() - set(listed))
        for file in others:
            if file.exists():
                raise ShardError(
                    f"work folder {self.path} was begun with other photos: {len(others)} of its "
                    f"{len(places)} are not among the {len(listed)} named now, such as {file}. "
                    f"{_ANOTHER}"
                )
        return places

    def append(self, files: Sequence[Path], shard_size: int) -> list[Shard]:
        """Divide more photos into shards of up to ``shard_size``, and return these.

        Raises:
            ShardError: the folder cannot be written to.
        """
        added: list[Shard] = []
        try:
            for start in range(0, len(files), shard_size):
                part = [str(file) for file in files[start : start + shard_size]]
                data = _json(part)
                number = len(self.shards) + len(added)
                shard = Shard(number, len(part), sha256_bytes(data))
                write_atomically(self.path / shard.input_file, data)
                added.append(shard)
            self.shards += added
            self._write_manifest()
        except OSError as error:
            raise self._unwritable(error) from error
        return added

    def _write_manifest(self) -> None:
        values = {
            "format_version": FORMAT_VERSION,
            "model_sha256": self.model_sha256,
            "precision": self.precision,
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_atomically(self.path / MANIFEST_FILE, _json(values))

    # Shards

    def shard(self, number: int) -> Shard:
        """The shard with this number.

        Raises:
            ShardError: there is none.
        """
        if not 0 <= number < len(self.shards):
            raise ShardError(
                f"there is no shard {number} in {self.path}: it has {len(self.shards)}, from 0 on."
            )
        return self.shards[number]

    def files(self, shard: Shard) -> list[Path]:
        """The photos of a shard.

        Raises:
            ShardError: the list is missing or not the one that was written.
        """
        file = self.path / shard.input_file
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ShardError(f"{file} cannot be read: {error.strerror}. {_REMOVE}") from error
        if sha256_bytes(data) != shard.input_sha256:
            raise ShardError(f"{file} is not what was written: it is damaged. {_REMOVE}")
        return [Path(each) for each in json.loads(data)]

    def is_done(self, shard: Shard) -> bool:
        """Whether the output is there, whole, and of this model and these photos."""
        try:
            return self._stated(shard) == sha256_file(self.path / shard.output_file)
        except OSError:
            return False

    def model(self) -> Model:
        """The model, ready to run in one thread.

        Raises:
            ModelError: the copy is damaged, or what runs it is not installed.
            ShardError: the copy is of another model.
        """
        model = Model.load(self.path / MODEL_FOLDER, precision=self.precision)
        self.check_model(model)
        return model

    def begin(self, shard: Shard, run: str) -> int:
        """Note that a shard is begun; returns how often it was in the run of this name.

        Raises:
            ShardError: the folder cannot be written to.
        """
        file = self.path / shard.begun_file
        try:
            before = json.loads(file.read_bytes())
            times = before["times"] if before["run"] == run else 0
        except (OSError, ValueError, KeyError, TypeError):
            times = 0
        try:
            write_atomically(file, _json({"run": run, "times": times + 1}))
        except OSError as error:
            raise self._unwritable(error) from error
        return int(times) + 1

    def write(self, shard: Shard, results: Sequence[Embedded]) -> None:
        """Store what the shard's photos gave, durably.

        Args:
            shard: which one.
            results: one for each of its photos, in their order.

        Raises:
            ShardError: the folder cannot be written to.
        """
        data = pack(results)
        done = {**self._expected(shard), "output_sha256": sha256_bytes(data)}
        try:
            write_atomically(self.path / shard.output_file, data)
            write_atomically(self.path / shard.done_file, _json(done))
        except OSError as error:
            raise self._unwritable(error) from error

    def read(self, shard: Shard) -> list[Embedded]:
        """What the photos of a shard that is done gave, in their order.

        Raises:
            ShardError: the output is missing or not what was written.
        """
        file = self.path / shard.output_file
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ShardError(f"{file} cannot be read: {error.strerror}. {_AGAIN}") from error
        if sha256_bytes(data) != self._stated(shard):
            raise ShardError(f"{file} is not what was written: it is damaged. {_AGAIN}")
        return unpack(data, self.files(shard))

    def discard(self) -> None:
        """Remove the folder. Stopped midway, it leaves nothing under its name."""
        aside = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}.old-"))
        self.path.replace(aside / self.path.name)
        sync_folder(self.path.parent)
        shutil.rmtree(aside)

    def _expected(self, shard: Shard) -> dict[str, Any]:
        return {
            "input_sha256": shard.input_sha256,
            "model_sha256": self.model_sha256,
            "precision": self.precision,
        }

    def _stated(self, shard: Shard) -> str | None:
        """The SHA-256 that the output is to have; None if it was made of something else."""
        try:
            done = json.loads((self.path / shard.done_file).read_bytes())
            output = done.pop("output_sha256")
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return str(output) if done == self._expected(shard) else None

    def _unwritable(self, error: OSError) -> ShardError:
        return ShardError(
            f"work folder {self.path} cannot be written to: {error.strerror}. Make room or make it "
            "writable, and run the same command again; it goes on."
        )


_ANOTHER = "Finish it with what it was begun with, name another by --work, or delete it."
_REMOVE = "Delete the work folder and begin again."
_AGAIN = "Run the same command again: the shard is embedded anew."


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
