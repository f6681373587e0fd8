"""One SQLite file as a catalog needs it: threads, transactions, read-only folders, errors.

It knows nothing of items. A change is durable when ``change`` is left without an error, and not
there at all otherwise.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from index.errors import GalleryError

__all__ = ["Database"]

#: Seconds to wait for another process to finish its transaction.
PATIENCE = 30

#: Pages that a writer keeps: a change touches leaves all over the indexes of a large catalog.
CACHE_KB = 65_536

#: Rows of an index that SQLite looks at to learn how many items share a value.
ANALYSIS_LIMIT = 1000

#: What SQLite says where it cannot create its shared memory beside the file: the folder is
#: read-only, or the disk is full.
NO_SHARED_MEMORY = (
    "SQLITE_READONLY_DIRECTORY",
    "SQLITE_READONLY_CANTINIT",
    "SQLITE_CANTOPEN",
    "SQLITE_IOERR_SHMSIZE",
)


class Database:
    """A database in WAL mode. Safe to use from several threads; one process writes."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Open an existing database.

        Raises:
            GalleryError: not a database, damaged, or (``writable``) it cannot be written to.
        """
        self.path = path.absolute()
        self.writable = writable
        self._lock = threading.RLock()
        self._reopened = 0
        with self._readable():
            self.connection, self._frozen = self._connect()
        self._file = self.path.stat()

    @staticmethod
    def create(path: Path) -> sqlite3.Connection:
        """Make a new database in WAL mode, for its tables to be created in."""
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        """Close the database. Closing twice is harmless."""
        with self._lock:
            self.connection.close()

    # Reading

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            GalleryError: the database is damaged or cannot be read.
        """
        with self._lock, self._readable():
            self._notice_writers()
            return self.connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        rows = self.rows(query, values)
        return rows[0] if rows else None

    @contextmanager
    def view(self) -> Iterator[sqlite3.Connection]:
        """Several reads of one moment; a view or change that is open already is joined."""
        with self._lock, self._readable():
            self._notice_writers()
            yield from _of_one_moment(self.connection)

    @contextmanager
    def view_apart(self) -> Iterator[sqlite3.Connection]:
        """Several long reads of one moment, on a connection of their own: nobody waits for them.

        Inside a ``view`` they join that instead: they are of its moment.
        """
        with self._readable():
            with self._lock:
                self._notice_writers()
                # In a transaction, it is this thread's: others wait for the lock.
                apart = None if self.connection.in_transaction else self._connect_apart()
                if apart is None:
                    yield from _of_one_moment(self.connection)
                    return
            try:
                yield from _of_one_moment(apart)
            finally:
                apart.close()

    def data_version(self) -> int:
        """A number that differs after another connection has changed the database."""
        with self._lock:
            [(version,)] = self.rows("PRAGMA data_version")
            return int(version) + (self._reopened << 32)

    # Writing

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, undone wholly on an error.

        Raises:
            GalleryError: not opened for writing, or the database cannot be written to.
        """
        if not self.writable:
            raise GalleryError(f"{self.path} is open for reading: open it writable.")
        with self._lock:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException as error:
                self.connection.rollback()
                if _is_the_databases(error):
                    raise self._unchanged(error) from error
                raise

    def maintain(self, statement: str) -> None:
        """Run a statement that cannot be part of a transaction, such as VACUUM.

        Raises:
            GalleryError: not opened for writing, or the database cannot be written to.
        """
        if not self.writable:
            raise GalleryError(f"{self.path} is open for reading: open it writable.")
        with self._lock:
            try:
                self.connection.execute(statement).fetchall()
            except sqlite3.DatabaseError as error:
                raise self._unchanged(error) from error

    # Inside

    def _connect(self) -> tuple[sqlite3.Connection, tuple[int, ...] | None]:
        """A connection and, where it goes without SQLite's locks, the stamp of the file."""
        if self.writable:
            connection = self._connect_as("mode=rw")
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
                connection.execute(f"PRAGMA analysis_limit = {ANALYSIS_LIMIT}")
            except BaseException:
                connection.close()
                raise
            return connection, None
        try:
            return self._connect_as("mode=ro"), None
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname not in NO_SHARED_MEMORY or self._has_log():
                raise
        # The folder is read-only and nobody writes: the file alone is the whole database.
        stamp = self._stamp()
        return self._connect_as("immutable=1"), stamp

    def _connect_apart(self) -> sqlite3.Connection | None:
        """A further connection to the same file; None where the path leads to another by now."""
        if not self._is_in_place():
            return None
        connection, _ = self._connect()
        if self._is_in_place():
            return connection
        connection.close()
        return None

    def _is_in_place(self) -> bool:
        """Whether the path leads to the file that was opened: ``migrate`` exchanges galleries."""
        try:
            return os.path.samestat(self._file, self.path.stat())
        except FileNotFoundError:
            return False

    def _connect_as(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?{mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=PATIENCE,
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _notice_writers(self) -> None:
        """Open the file anew if, without locks, it was changed by others under us."""
        if self._frozen is None or self.connection.in_transaction or not self._is_in_place():
            return
        if self._has_log() or self._frozen != self._stamp():
            self.connection.close()
            self._reopened += 1
            self.connection, self._frozen = self._connect()

    def _has_log(self) -> bool:
        """Whether there are changes beside the file; SQLite leaves an empty log on a full disk."""
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size > 0
        except FileNotFoundError:
            return False

    def _stamp(self) -> tuple[int, ...]:
        status = self.path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if not _is_the_databases(error):
                raise
            raise GalleryError(
                f"{self.path} cannot be read as a catalog: {error}. If it is damaged, move the "
                "gallery away and bring a snapshot back with `dscl index restore`."
            ) from error

    def _unchanged(self, error: BaseException) -> GalleryError:
        return GalleryError(
            f"{self.path} cannot be changed: {error}. Nothing was; mend that and run it again."
        )


def _of_one_moment(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    if connection.in_transaction:
        yield connection
        return
    connection.execute("BEGIN")
    try:
        yield connection
    finally:
        connection.rollback()


def _is_the_databases(error: BaseException) -> bool:
    """Whether the file or the disk is to blame, not the call."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.ProgrammingError
    )
