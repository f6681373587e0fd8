"""Another model for a gallery on Milvus, which goes on serving and may go on changing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.address import MilvusAddress
from index.errors import InvalidArgumentError
from index.files import sha256_bytes
from index.lock import WriterLock
from index.milvus_client import Row
from index.milvus_gallery import cache_folder, keep_model, open_parts
from index.milvus_rebuild import rebuild
from index.model import Model
from index.reembedding import MigrateReport, Vectors, embed_missing, embed_photo, refuse_lost
from index.tuning import Progress

__all__ = ["migrate_milvus"]


def migrate_milvus(
    address: MilvusAddress,
    model: Model,
    *,
    skip_missing: bool,
    workers: int,
    progress: Callable[[int, int], object] | None,
    building: Progress | None,
) -> MigrateReport:
    """As ``index.migrate.migrate``. Vectors are kept on this machine until all are made.

    Services that have the gallery open go on with the former collection and refuse changes, until
    they open it anew.
    """
    parts = open_parts(address, runtime="auto")
    try:
        described = parts.place.described
        if (described.model_sha256, described.precision) == (model.sha256, model.precision):
            raise InvalidArgumentError(
                f"gallery {address} is of model {model.card.name} ({model.sha256[:12]}…) in "
                f"{model.precision} already: there is nothing to migrate."
            )
        key = sha256_bytes(f"{address} {model.sha256} {model.precision}".encode())[:16]
        work = cache_folder() / "migrations" / key
        work.mkdir(parents=True, exist_ok=True)
        with WriterLock.acquire(work), Vectors.open(work / "vectors.sqlite") as vectors:
            made, lost = embed_missing(
                parts.catalog, model=model, vectors=vectors, workers=workers, progress=progress
            )
            refuse_lost(lost, skip_missing)
            keep_model(parts.notes, model)
            gone: set[str] = set()

            def embed(rows: Sequence[Row]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
                found = np.zeros((len(rows), model.card.dim), np.float32)
                there = np.zeros(len(rows), np.bool_)
                for place, row in enumerate(rows):
                    item = parts.catalog.item(row)
                    if item.sha256 not in vectors:  # it came meanwhile, or its photo is lost
                        _, vector = embed_photo(model, item)
                        if vector is None:
                            gone.add(str(item.image))
                            continue
                        vectors.put([(item.sha256, vector)])
                    found[place], there[place] = vectors[item.sha256], True
                return found, there

            former = rebuild(
                parts.place,
                replace(
                    described,
                    model_sha256=model.sha256,
                    precision=model.precision,
                    dim=model.card.dim,
                ),
                embed=embed,
                progress=building,
            )
            items = parts.place.connection.count(parts.place.alias())
        for file in work.iterdir():
            file.unlink()
        work.rmdir()
    finally:
        parts.live.close()
    return MigrateReport(items=items, embedded=made, removed=sorted(gone), former=former)
