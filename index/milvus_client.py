"""``MilvusConnection``: a Milvus server as a gallery needs it: deadlines and errors.

The only module that imports pymilvus (extra ``milvus``). It knows nothing of items.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from index.address import Consistency, MilvusAddress
from index.errors import GalleryError, GalleryUnavailableError, InvalidArgumentError
from index.milvus_literals import literal

__all__ = ["MAX_WINDOW", "MilvusConnection", "Row"]

Row = dict[str, Any]

#: The most results of one call, those that it skips included: Milvus's own limit.
MAX_WINDOW = 16_384

#: The oldest release that has what a gallery needs: JSON fields, upsert, count(*).
OLDEST = (2, 3)

#: Seconds for which nobody asks a server that has just not answered.
PAUSE_S = 1.0

#: The code of a collection that cannot be searched until it is loaded.
NOT_LOADED = 101

#: Codes of errors that asking again does not mend.
NOT_FOUND = 100
REFUSED = (1400, 1401)
INVALID = (1, 6, 1001, 1100, 1101)  # 6 is Milvus Lite's

#: Words of errors with such codes that asking again does mend.
PASSING = ("unavailable", "not ready", "timeout")

#: Bytes of rows that are read or written at a time: below gRPC's limit of 64 MiB.
BLOCK_BYTES = 8 * 2**20


class MilvusConnection:
    """Calls to one server. Safe to use from several threads."""

    def __init__(self, address: MilvusAddress) -> None:
        """Connect.

        Raises:
            InvalidArgumentError: pymilvus is not installed.
            GalleryUnavailableError: nothing answers there.
            GalleryError: the server refuses the name and password, has no such database, or is
                older than 2.3.
        """
        self.address = address
        self._lock = threading.Lock()
        self._paused_until = 0.0
        pymilvus = _import_pymilvus(lite=bool(address.file))
        self._errors: type[Exception] = pymilvus.MilvusException
        self.types = pymilvus.DataType
        try:
            self._client = pymilvus.MilvusClient(
                address.uri,
                token=address.token,
                db_name=address.database,
                timeout=address.timeout_s,
            )
        except Exception as error:
            raise self._translated(error) from error
        version = str(self.call("get_server_version"))
        numbers = re.search(r"(\d+)\.(\d+)", version)
        if numbers is None or tuple(map(int, numbers.groups())) < OLDEST:
            self.close()
            raise GalleryError(
                f"{address} is a Milvus server of version {version}; this release needs "
                f"{'.'.join(map(str, OLDEST))} or newer: upgrade the server."
            )

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of ``pymilvus.MilvusClient``, within the address's timeout.

        After the server has not answered, calls fail at once for a second; then one tries.

        Raises:
            GalleryUnavailableError: the server does not answer, or cannot serve this now.
            GalleryError: it refuses.
        """
        self._take_turn()
        kwargs.setdefault("timeout", self.address.timeout_s)
        try:
            try:
                result = getattr(self._client, method)(*args, **kwargs)
            except Exception as error:
                if _code_of(error) != NOT_LOADED or method not in ("query", "search"):
                    raise
                # Somebody has released the collection, or the server was started anew. It goes on
                # loading when this has waited as long as a call may take.
                self._client.load_collection(args[0], timeout=kwargs["timeout"])
                result = getattr(self._client, method)(*args, **kwargs)
        except Exception as error:
            translated = self._translated(error)
            if not isinstance(translated, GalleryUnavailableError):
                self._paused_until = 0.0
            raise translated from error
        self._paused_until = 0.0
        return result

    # Collections

    def has(self, collection: str) -> bool:
        """Whether there is a collection, or an alias, of this name."""
        return bool(self.call("has_collection", collection))

    def load(self, collection: str) -> None:
        """Make a collection searchable, which it stays; one that is so already takes no time."""
        self.call("load_collection", collection, timeout=max(60.0, self.address.timeout_s))

    def schema(self) -> Any:
        """An empty schema for ``create``."""
        return self._client.create_schema(auto_id=False, enable_dynamic_field=False)

    def create(self, collection: str, schema: Any, index: Mapping[str, Any]) -> None:
        """Make a collection and load it; ``index`` is of its field ``vector``."""
        parameters = self._client.prepare_index_params()
        parameters.add_index("vector", metric_type="IP", **index)
        self.call(
            "create_collection",
            collection,
            schema=schema,
            index_params=parameters,
            consistency_level="Session",
            timeout=max(60.0, self.address.timeout_s),
        )

    # Rows

    def insert(self, collection: str, rows: Sequence[Row], row_bytes: int) -> None:
        """Store rows whose ids are new, durably."""
        for part in _parts(rows, row_bytes):
            self.call("insert", collection, part)

    def upsert(self, collection: str, rows: Sequence[Row], row_bytes: int) -> None:
        """Store rows, durably, in place of those with the same id."""
        for part in _parts(rows, row_bytes):
            self.call("upsert", collection, part)

    def delete(self, collection: str, keys: Sequence[int | str], *, key: str = "id") -> None:
        """Remove rows by their primary keys, durably; those that are not there are passed over."""
        for start in range(0, len(keys), MAX_WINDOW):
            # Not by ``ids``: pymilvus writes texts into its expression without escapes.
            part = literal(keys[start : start + MAX_WINDOW])
            try:
                self.call("delete", collection, filter=f"{key} in {part}")
            finally:
                _deletions.happened(self.address.uri, self.address.database, collection)

    def query(
        self,
        collection: str,
        condition: str,
        fields: Sequence[str],
        *,
        limit: int = MAX_WINDOW,
        consistency: Consistency | None = None,
        least_keys: bool = False,
    ) -> list[Row]:
        """Up to ``limit`` rows that match, in no order.

        With ``least_keys`` they are those with the least primary keys; there may then be fewer of
        them than match, but not none.
        """
        rows = self._read(
            "query",
            filter=condition,
            output_fields=list(fields),
            limit=limit,
            reduce_stop_for_best=least_keys,
            collection=collection,
            consistency=consistency,
        )
        return [dict(row) for row in rows]

    def count(
        self, collection: str, condition: str = "", *, consistency: Consistency | None = None
    ) -> int:
        """How many rows match."""
        [row] = self._read(
            "query",
            filter=condition,
            output_fields=["count(*)"],
            collection=collection,
            consistency=consistency,
        )
        return int(row["count(*)"])

    def walk(
        self,
        collection: str,
        condition: str,
        fields: Sequence[str],
        *,
        row_bytes: int,
        key: str = "id",
        after: int | str | None = None,
        most: int = MAX_WINDOW,
        consistency: Consistency | None = None,
    ) -> Iterator[list[Row]]:
        """All rows that match, by ascending primary key, some at a time.

        Args:
            collection: of which.
            condition: which rows; "" for all.
            fields: what of them, beside the key.
            row_bytes: about so many bytes a row.
            key: the primary key's name.
            after: only rows with a greater key.
            most: rows at a time.
            consistency: of all reads; default: the address's.
        """
        batch = max(1, min(MAX_WINDOW, most, BLOCK_BYTES // row_bytes))
        while True:
            beyond = [] if after is None else [f"{key} > {literal(after)}"]
            every = f'{key} >= ""' if isinstance(after, str) or key != "id" else f"{key} >= 0"
            rows = self.query(
                collection,
                " and ".join([f"({each})" for each in (condition, *beyond) if each]) or every,
                [key, *fields],
                limit=batch,
                consistency=consistency,
                least_keys=True,
            )
            if not rows:
                return
            rows.sort(key=lambda row: row[key])
            yield rows
            after = rows[-1][key]

    def search(
        self,
        collection: str,
        vectors: Any,
        limit: int,
        *,
        condition: str = "",
        parameters: Mapping[str, Any],
    ) -> list[list[tuple[int, float]]]:
        """Id and inner product of the nearest rows of each vector."""
        found = self._read(
            "search",
            data=vectors,
            anns_field="vector",
            filter=condition,
            limit=limit,
            output_fields=["id"],
            search_params={"metric_type": "IP", "params": dict(parameters)},
            collection=collection,
        )
        return [[(int(hit["id"]), float(hit["distance"])) for hit in hits] for hits in found]

    # Inside

    def _read(
        self, method: str, *, collection: str, consistency: Consistency | None = None, **kwargs: Any
    ) -> Any:
        """A read that sees what this process has changed before, deletions included."""
        level = consistency or self.address.consistency
        place = (self.address.uri, self.address.database, collection)
        unseen = _deletions.unseen(*place)
        if unseen and level == "Session":
            level = "Strong"
        result = self.call(method, collection, consistency_level=level, **kwargs)
        if level == "Strong":
            _deletions.seen(*place, unseen)
        return result

    def _take_turn(self) -> None:
        """Let one call try a server that has not answered, and refuse those beside it."""
        if not self._paused_until:
            return
        with self._lock:
            now = time.monotonic()
            if now < self._paused_until:
                raise self._unavailable("it has not answered a moment ago")
            if self._paused_until:
                self._paused_until = now + self.address.timeout_s

    def _translated(self, error: Exception) -> Exception:
        """What a user can act on, in place of what pymilvus raised; no password is in it."""
        code = _code_of(error)
        text = str(getattr(error, "message", None) or error)
        text = text.replace(self.address.token or "\0", "…")
        name = getattr(code, "name", "")
        if not isinstance(error, self._errors) and not name:
            return error  # not of the server's making
        if code == NOT_FOUND or ("not found" in text and "collection" in text):
            return GalleryError(f"{self.address}: {text}.")
        if any(_refuses(each) for each in _causes(error)):
            return GalleryError(
                f"{self.address} refuses the name and password: give them in the address, as "
                "milvus://USER:PASSWORD@HOST:PORT/NAME, or in DSCL_MILVUS_TOKEN."
            )
        if "database not found" in text:
            return GalleryError(
                f"{self.address} has no database {self.address.database!r}: make it, or name "
                "another by ?database=."
            )
        if "cannot parse expression" in text:
            return GalleryError(f"{self.address} refuses the filter: {text}")
        if code in INVALID and not any(word in text for word in PASSING):
            return GalleryError(f"{self.address} refuses: {text}")
        with self._lock:
            self._paused_until = time.monotonic() + PAUSE_S
        return self._unavailable(text)

    def _unavailable(self, why: str) -> GalleryUnavailableError:
        return GalleryUnavailableError(
            f"{self.address} does not answer: is Milvus running there, and reachable from here? "
            f"({why[:300]})"
        )


class _Deletions:
    """Deletions of this process that no read has been sure to see yet.

    For "Session", pymilvus asks for the state after the last change of the process, by the time
    that the server gave it. Milvus 2.3 gives none for a deletion; so the next read is "Strong".
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}

    def happened(self, uri: str, database: str, collection: str) -> None:
        with self._lock:
            key = (uri, database, collection)
            self._counts[key] = self._counts.get(key, 0) + 1

    def unseen(self, uri: str, database: str, collection: str) -> int:
        """How many there are; 0 for none."""
        return self._counts.get((uri, database, collection), 0)

    def seen(self, uri: str, database: str, collection: str, count: int) -> None:
        """A read has seen so many; those that came meanwhile are still to be seen."""
        with self._lock:
            key = (uri, database, collection)
            if self._counts.get(key) == count:
                del self._counts[key]


#: Of all connections, as pymilvus does with the times of other changes.
_deletions = _Deletions()


def _code_of(error: BaseException) -> Any:
    code = getattr(error, "code", None)
    return code() if callable(code) else code


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: pymilvus calls all that fails at connecting the same."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _refuses(error: BaseException) -> bool:
    """Whether it is about who asks."""
    code = _code_of(error)
    name = getattr(code, "name", "")
    return (
        code in REFUSED
        or name in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        or "auth check failure" in str(error).lower()
    )


def _parts(rows: Sequence[Row], row_bytes: int) -> Iterator[list[Row]]:
    size = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def _import_pymilvus(*, lite: bool) -> Any:
    try:
        import pymilvus

        if lite:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise InvalidArgumentError(
            "a gallery on Milvus needs pymilvus: pip install 'dscl-retrieval[milvus]'."
        ) from error
    # It logs each error with its traceback, also those that are expected; we raise them.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return pymilvus
