"""Photos embedded in shards, by processes or a cluster, for ``index.ingest.build``.

The shards are planned here and their outputs handed over; who embeds them is a ``Runner``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from index.address import GalleryAddress
from index.errors import InvalidArgumentError
from index.model import Model
from index.reading import Embedded
from index.shard_manifest import MANIFEST_FILE, Shard
from index.shard_runner import Runner
from index.shards import Work

__all__ = ["MAX_SHARD", "ShardedEmbedder", "default_work_folder"]

#: Photos of a shard, unless there are too few for all workers: seconds of work, little to lose.
MAX_SHARD = 1000

#: Shards for each worker, where photos are few: none waits long for the slowest.
SHARDS_PER_WORKER = 4

#: Outputs held in memory: photos that came later lie in other shards than their neighbours.
OUTPUTS_HELD = 8


def default_work_folder(gallery: GalleryAddress) -> Path:
    """Beside the gallery; of one on Milvus, where the command is called."""
    beside = gallery.absolute() if isinstance(gallery, Path) else Path.cwd() / gallery.name
    return beside.with_name(f"{gallery.name}.shards")


class ShardedEmbedder:
    """Embeds photos in shards that are kept until all of them are in the gallery.

    A work folder that is there already is gone on with: photos that it lacks are put into further
    shards.
    """

    def __init__(self, folder: Path, runner: Runner, *, shard_size: int | None = None) -> None:
        """Nothing is read or made yet.

        Raises:
            InvalidArgumentError: shards of less than one photo.
        """
        if shard_size is not None and shard_size < 1:
            raise InvalidArgumentError(f"shard size is {shard_size}: expected at least 1.")
        self._folder = folder
        self._runner = runner
        self._shard_size = shard_size
        self._work: Work | None = None

    def embed(
        self,
        model: Model,
        *,
        listed: Sequence[Path],
        wanted: Sequence[Path],
        tell: Callable[[int], object],
    ) -> Iterator[Embedded]:
        """See ``index.ingest.BulkEmbedder``. All are embedded before the first is handed over.

        Raises:
            ShardError: the work folder is of another model or of other photos, is damaged, or
                cannot be written to; a worker was killed, or the cluster lost.
        """
        if (self._folder / MANIFEST_FILE).exists():
            work = self._work = Work.open(self._folder)
            work.check_model(model)
            places = work.check_photos(listed)
        elif wanted:
            work = self._work = Work.create(self._folder, model)
            places = {}
        else:
            return
        lacking = [file for file in wanted if file not in places]
        for shard in work.append(lacking, self._size(len(lacking))) if lacking else ():
            for position, file in enumerate(work.files(shard)):
                places[file] = (shard, position)
        self._run(work, [places[file][0] for file in wanted], tell)
        read = lru_cache(OUTPUTS_HELD)(work.read)
        for file in wanted:
            shard, position = places[file]
            yield read(shard)[position]

    def finish(self) -> None:
        """Remove the work folder: its vectors are in the gallery."""
        if self._work is not None:
            self._work.discard()

    def _size(self, photos: int) -> int:
        if self._shard_size is not None:
            return self._shard_size
        shards = SHARDS_PER_WORKER * self._runner.workers
        return min(MAX_SHARD, -(-photos // shards))

    def _run(self, work: Work, shards: Sequence[Shard], tell: Callable[[int], object]) -> None:
        """Embed what is not done; ``shards`` holds one for each photo wanted."""
        photos: dict[int, int] = {}
        for shard in shards:
            photos[shard.number] = photos.get(shard.number, 0) + 1
        missing = []
        for number, count in photos.items():
            if work.is_done(work.shard(number)):
                tell(count)
            else:
                missing.append(number)
        if not missing:
            return
        with closing(self._runner.run(work, missing)) as done:
            for number in done:
                tell(photos[number])
