"""``Place``: which collection of a Milvus server is the gallery now.

A gallery NAME is an alias of a collection NAME__1, NAME__2, …: a new one, with another index or the
vectors of another model, is filled beside the one that serves, and the alias is moved in one step.
NAME__notes holds what goes with the name.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from index.errors import GalleryError, ModelMismatchError
from index.milvus_client import MilvusConnection
from index.milvus_notes import Notes
from index.milvus_schema import Described, add_fields, foreign, index_of

__all__ = ["Place"]

#: Seconds between two looks whether another collection has taken over.
LOOK_INTERVAL = 1.0

#: Seconds after another collection has taken over, within which the last changes of the former one
#: are copied to it.
SETTLES_S = 3.0

#: The note that describes a collection.
COLLECTION = "collection/"

#: Between a gallery's name and the number of its collection, or what else belongs to it.
MARK = "__"


class Place:
    """The collection behind a gallery's name. Safe to use from several threads."""

    def __init__(self, connection: MilvusConnection) -> None:
        """Look up what is there.

        Raises:
            GalleryError: there is no such gallery, or something else has made it.
            GalleryUnavailableError: the server does not answer.
        """
        self.connection = connection
        self.address = connection.address
        self.notes = Notes(connection, notes_name(self.address.name))
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._settled_at = 0.0
        self.collection = ""
        self.collection, self.described = self._resolve()

    @classmethod
    def create(
        cls,
        connection: MilvusConnection,
        described: Described,
        *,
        prepare: Callable[[Notes], None],
    ) -> Place:
        """Make the collections of a new, empty gallery. What fails leaves nothing behind.

        Args:
            connection: to the server.
            described: what the gallery is to be.
            prepare: puts notes down before the gallery can be seen.

        Raises:
            GalleryError: something of that name is there already.
        """
        name = connection.address.name
        if connection.has(name):
            raise GalleryError(f"{connection.address} exists already: choose another name.")
        notes = Notes(connection, notes_name(name))
        first = collection_name(name, 1)
        if connection.has(first):  # of a creation that was stopped: nothing has named it
            connection.call("drop_collection", first)
        if connection.has(notes_name(name)):
            notes.drop()
        try:
            notes.make()
            prepare(notes)
            make_collection(connection, first, described, notes)
            # The last step: whoever looks sees a whole gallery or none.
            connection.call("create_alias", first, name)
        except BaseException:
            for each in (first, notes_name(name)):
                if connection.has(each):
                    connection.call("drop_collection", each)
            raise
        return cls(connection)

    def now(self, *, at_once: bool = False) -> str:
        """The collection that serves; looked up again after a second, or ``at_once``.

        One that holds another model's vectors is left to those who open the gallery anew: this
        goes on with the one it knows.
        """
        if at_once or time.monotonic() >= self._look_at:
            self._look()
        return self.collection

    def to_change(self) -> str:
        """The collection that changes belong in.

        Raises:
            ModelMismatchError: the gallery holds the vectors of another model since it was opened.
        """
        if not self._look():
            raise ModelMismatchError(
                f"{self.address} has been migrated to another model since it was opened: open it "
                "anew (a service: `POST /admin/reload`, or SIGHUP)."
            )
        return self.collection

    def settled(self) -> bool:
        """Whether all is in the collection that serves, even if it has just taken over."""
        return time.monotonic() >= self._settled_at

    def taken_over(self) -> bool:
        """Whether the name stands for another collection than the one that serves here."""
        return self.alias() != self.collection

    def alias(self) -> str:
        """The collection that the gallery's name stands for."""
        return str(self.connection.call("describe_alias", self.address.name)["collection_name"])

    def _look(self) -> bool:
        """Look the collection up; whether it holds vectors of the model that is known here."""
        collection, described = self._resolve()
        with self._lock:
            known = described.model_sha256 == self.described.model_sha256
            if known and collection != self.collection:
                self._settled_at = time.monotonic() + SETTLES_S
                self.collection, self.described = collection, described
            self._look_at = time.monotonic() + LOOK_INTERVAL
        return known

    def _resolve(self) -> tuple[str, Described]:
        name = self.address.name
        if not self.connection.has(name):
            raise GalleryError(
                f"there is no gallery at {self.address}. Make one with `dscl index build --model … "
                f"--images … --gallery {self.address}`."
            )
        if not self.connection.has(notes_name(name)):
            raise foreign(self.address)
        collection = self.alias()
        if collection == self.collection:
            return collection, self.described
        for each in (notes_name(name), collection):
            self.connection.load(each)
        text = self.notes.get(f"{COLLECTION}{collection}")
        if text is None:
            raise foreign(self.address)
        return collection, Described.parse(self.address, text)


def make_collection(
    connection: MilvusConnection, name: str, described: Described, notes: Notes
) -> None:
    """Make an empty collection for items."""
    schema = connection.schema()
    add_fields(connection, schema, described.dim)
    connection.create(name, schema, index_of(described.index_kind))
    notes.put(f"{COLLECTION}{name}", described.text())


def notes_name(name: str) -> str:
    """The collection of a gallery's notes."""
    return f"{name}{MARK}notes"


def collection_name(name: str, number: int) -> str:
    """The ``number``-th collection of a gallery."""
    return f"{name}{MARK}{number}"


def collection_number(collection: str) -> int:
    """Which collection of its gallery one is, from 1."""
    found = re.fullmatch(rf".*{MARK}(\d+)", collection)
    if found is None:
        raise GalleryError(f"collection {collection!r} is no gallery's: it has no number.")
    return int(found[1])
