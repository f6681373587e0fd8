"""A gallery's next collection, filled beside the one that serves: other index, or other model.

Searches and changes go on meanwhile. What changed while rows were copied is copied after them, and
once more after the alias was moved, for those who had looked it up before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from index.errors import GalleryError, GalleryUnavailableError
from index.milvus_client import MilvusConnection, Row
from index.milvus_literals import literal
from index.milvus_place import (
    LOOK_INTERVAL,
    Place,
    collection_name,
    collection_number,
    make_collection,
)
from index.milvus_schema import ALL_FIELDS, Described, row_bytes
from index.tuning import Progress

__all__ = ["rebuild"]

#: Rounds of copying what changed meanwhile, before the alias is moved all the same.
ROUNDS = 5

#: Rows read and written at a time.
PART = 1000

#: Changed rows that are few enough to move the alias.
FEW = 100

#: Rows of another model's vectors: float32 (n, dim) for rows as they are stored now, and which of
#: them (n,) there is a vector for.
Embed = Callable[[Sequence[Row]], tuple[NDArray[np.float32], NDArray[np.bool_]]]

#: Seconds after the move until nobody changes the former collection any more.
LATE_S = 2 * LOOK_INTERVAL


def rebuild(
    place: Place,
    described: Described,
    *,
    embed: Embed | None = None,
    progress: Progress | None = None,
) -> str:
    """Fill a new collection and move the gallery's alias to it.

    The former collection stays until the next rebuild, for those who still search it. On an error
    the gallery is as it was.

    Args:
        place: the gallery.
        described: what the new collection is to be.
        embed: gives rows their vectors of another model; default: they keep those they have.
        progress: told of each stage and the share 0 … 1 that is done.

    Returns:
        The former collection's name.

    One process at a time may do this: what another has copied is taken for what a crash has left.

    Raises:
        GalleryUnavailableError: the server does not answer.
    """
    connection = place.connection
    former = place.to_change()
    number = collection_number(former)
    fresh = collection_name(place.address.name, number + 1)
    before = collection_name(place.address.name, number - 1)
    if connection.has(fresh):  # of a rebuild that was stopped
        connection.call("drop_collection", fresh)
    tell = progress or (lambda stage, share: None)
    total = max(1, connection.count(former))
    try:
        make_collection(connection, fresh, described, place.notes)
        known: dict[int, int] = {}
        copied = 0
        for turn in range(ROUNDS):
            came, gone, known = _changes(connection, former, known)
            for rows in _read(connection, former, came):
                _write(connection, fresh, rows, described.dim, embed)
                copied += len(rows)
                tell("copy", min(0.95, 0.95 * copied / total))
            connection.delete(fresh, sorted(gone))
            if turn and len(came) + len(gone) <= FEW:
                break
        connection.call("alter_alias", fresh, place.address.name)
    except BaseException:
        with suppress(GalleryUnavailableError, GalleryError):
            connection.call("drop_collection", fresh)
        raise
    tell("late changes", 0.97)
    for wait_s in (0.0, LATE_S):
        time.sleep(wait_s)  # nothing tells when the last of them has looked the alias up
        came, gone, now = _changes(connection, former, known)
        for rows in _read(connection, former, came):
            late = _not_outrun(connection, fresh, rows, known)
            _write(connection, fresh, late, described.dim, embed)
        connection.delete(fresh, sorted(gone))
        known = now
    if number > 1 and connection.has(before):
        connection.call("drop_collection", before)
    tell("done", 1.0)
    return former


def _changes(
    connection: MilvusConnection, collection: str, known: dict[int, int]
) -> tuple[set[int], set[int], dict[int, int]]:
    """Ids that came or changed since ``known``, ids that went, and id → version of all now."""
    now = {
        int(row["id"]): int(row["version"])
        for rows in connection.walk(
            collection, "", ["version"], row_bytes=256, consistency="Strong"
        )
        for row in rows
    }
    came = {item_id for item_id, version in now.items() if known.get(item_id) != version}
    return came, set(known) - set(now), now


def _read(connection: MilvusConnection, collection: str, ids: set[int]) -> Iterator[list[Row]]:
    """The whole rows of these ids, some at a time; those that are gone are passed over."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), PART):
        part = literal(ordered[start : start + PART])
        yield connection.query(collection, f"id in {part}", ALL_FIELDS, consistency="Strong")


def _not_outrun(
    connection: MilvusConnection, fresh: str, rows: Sequence[Row], known: Mapping[int, int]
) -> list[Row]:
    """Those rows that nobody has changed, removed or replaced in the new collection since.

    Args:
        connection: to the server.
        fresh: the new collection.
        rows: of the former one, which have come or changed there.
        known: the ids that were copied before.
    """

    def found(column: str, values: Sequence[int | str], field: str) -> list[Row]:
        condition = f"{column} in {literal(values)}"
        return connection.query(fresh, condition, ["id", field], consistency="Strong")

    versions = {
        row["id"]: row["version"] for row in found("id", [r["id"] for r in rows], "version")
    }
    last: dict[tuple[str, str], int] = {}  # file or sku → the greatest id that has it
    for column in ("file", "sku"):
        texts = [row[column] for row in rows if row[column]]  # "" is no sku
        for row in found(column, texts, column) if texts else ():
            last[column, row[column]] = max(row["id"], last.get((column, row[column]), 0))

    def stands(row: Row) -> bool:
        if row["id"] in known:
            return row["id"] in versions and versions[row["id"]] < row["version"]
        return all(last.get((each, row[each]), 0) < row["id"] for each in ("file", "sku"))

    return [row for row in rows if stands(row)]


def _write(
    connection: MilvusConnection,
    collection: str,
    rows: Sequence[Row],
    dim: int,
    embed: Embed | None,
) -> None:
    """Store rows under their ids, with the vectors they have or are given."""
    kept = list(rows)
    if embed is not None:
        vectors, there = embed(rows)
        kept = [
            row | {"vector": vector}
            for row, vector, is_there in zip(rows, vectors, there, strict=True)
            if is_there
        ]
    connection.upsert(collection, kept, row_bytes(dim))
