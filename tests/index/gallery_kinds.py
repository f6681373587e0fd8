"""The kinds of gallery that one suite is run over: see ``test_gallery_contract``."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from index import Gallery, Model
from index.address import MilvusAddress, parse_address
from index.errors import GalleryError, GalleryUnavailableError
from index.milvus_client import MilvusConnection
from scripts.milvus_server import START_S
from tests.index.oracle_gallery import OracleGallery

#: host:port of a Milvus server that the tests may make galleries on, and remove them from.
SERVER = os.environ.get("DSCL_TEST_MILVUS", "")

NEEDS_SERVER = [
    pytest.mark.milvus_server,
    pytest.mark.skipif(
        not SERVER,
        reason="needs a Milvus server: `make test-milvus`, or DSCL_TEST_MILVUS=host:port",
    ),
]


def needs_server(test: Callable[..., Any]) -> Callable[..., Any]:
    """Skip a test without such a server."""
    for mark in NEEDS_SERVER:
        test = mark(test)
    return test


KINDS = ["folder", "oracle", "lite", pytest.param("server", marks=NEEDS_SERVER)]
MILVUS_KINDS = ["lite", pytest.param("server", marks=NEEDS_SERVER)]


@dataclass
class Folders:
    """Galleries in folders."""

    folder: Path
    name: str = "folder"
    made: int = 0

    def create(self, model: Model, **settings: Any) -> Any:
        self.made += 1
        return Gallery.create(self.folder / f"gallery-{self.made}", model, **settings)

    def open(self, gallery: Any, *, writable: bool = False) -> Any:
        return Gallery.open(gallery.path, writable=writable)


@dataclass
class Oracles:
    """Dicts."""

    name: str = "oracle"

    def create(self, model: Model) -> Any:
        return OracleGallery(model)

    def open(self, gallery: Any, *, writable: bool = False) -> Any:
        return OracleGallery(gallery.model, gallery.held, writable=writable)


@dataclass
class OnMilvus:
    """Collections of one server or file. Each change is seen by everyone at once."""

    name: str
    prefix: str  #: of an address, up to the name of the gallery
    made: list[str] = field(default_factory=list)

    def new_url(self) -> str:
        self.made.append(f"{self.prefix}/test_{secrets.token_hex(6)}?consistency=Strong")
        return self.made[-1]

    def create(self, model: Model, **settings: Any) -> Any:
        return Gallery.create(self.new_url(), model, **settings)

    def open(self, gallery: Any, *, writable: bool = False) -> Any:
        return Gallery.open(gallery.path, writable=writable)

    def clean(self) -> None:
        for url in self.made:
            drop(url)


@contextmanager
def place_of(name: str, folder: Path) -> Iterator[Any]:
    """Where galleries of a kind are made; nothing of them is left on a server."""
    if name == "folder":
        yield Folders(folder)
    elif name == "oracle":
        yield Oracles()
    elif name == "lite":
        with lite(folder) as file:
            yield OnMilvus(name, f"milvus://{file}")
    else:
        place = OnMilvus(name, f"milvus://{SERVER}")
        try:
            yield place
        finally:
            place.clean()


@contextmanager
def lite(folder: Path) -> Iterator[Path]:
    """A file for Milvus Lite; its server, which is in this process, ends with it."""
    from milvus_lite.server_manager import server_manager_instance

    file = folder / "milvus.db"
    try:
        yield file
    finally:
        server_manager_instance.release_server(str(file))


def drop(url: str) -> None:
    """Remove all that there is of a gallery on Milvus.

    A server that was killed drops nothing for some half a minute after it answers again.
    """
    address = parse_address(url)
    assert isinstance(address, MilvusAddress)
    connection = MilvusConnection(address)
    end = time.monotonic() + START_S

    def call(*arguments: str) -> Any:
        while True:
            try:
                return connection.call(*arguments)
            except GalleryUnavailableError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    try:
        try:
            call("drop_alias", address.name)
        except GalleryUnavailableError:
            raise
        except GalleryError:  # it has no alias
            pass
        for each in call("list_collections"):
            if each.startswith(f"{address.name}__") or each == address.name:
                call("drop_collection", each)
    finally:
        connection.close()


def empty(gallery: Any) -> None:
    """Remove all items. The types of attributes that there were stay known."""
    if ids := gallery.ids().tolist():
        gallery.remove(ids)
