"""``Notes``: small texts and files that a gallery on Milvus keeps beside its items.

A collection of their own: a key, a text, and a vector that means nothing, as Milvus wants one.
What all replicas of a service must know lies here: the types of attributes, the model, jobs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from index.errors import GalleryError, InvalidArgumentError
from index.files import replace_folder
from index.milvus_client import MilvusConnection
from index.milvus_literals import literal

__all__ = ["Notes"]

#: Bytes of a key and of a text.
MAX_KEY = 512
MAX_TEXT = 65_000

#: Bytes of a file that one text holds, as base64.
CHUNK = MAX_TEXT // 4 * 3

#: Texts written at a time.
BATCH = 100


class Notes:
    """Texts by their keys. A text that was put is durable, and found at once by everyone."""

    def __init__(self, connection: MilvusConnection, collection: str) -> None:
        """Use the collection, which ``make`` has made."""
        self._connection = connection
        self._collection = collection

    def make(self) -> None:
        """Make the collection, if it is not there."""
        if self._connection.has(self._collection):
            return
        types = self._connection.types
        schema = self._connection.schema()
        schema.add_field("key", types.VARCHAR, max_length=MAX_KEY, is_primary=True)
        schema.add_field("text", types.VARCHAR, max_length=65_535)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=2)
        self._connection.create(self._collection, schema, {"index_type": "FLAT", "params": {}})

    def get(self, key: str) -> str | None:
        """The text under a key, or None."""
        rows = self._connection.query(
            self._collection, f"key == {literal(key)}", ["text"], consistency="Strong"
        )
        return str(rows[0]["text"]) if rows else None

    def put(self, key: str, text: str) -> None:
        """Keep a text under a key, in place of what was there.

        Raises:
            InvalidArgumentError: a key of more than 512 bytes, or a text of more than 65,000.
        """
        self.put_all({key: text})

    def put_all(self, texts: dict[str, str]) -> None:
        """Keep several texts. Raises as ``put``."""
        for key, text in texts.items():
            if len(key.encode()) > MAX_KEY or len(text.encode()) > MAX_TEXT:
                raise InvalidArgumentError(
                    f"note {key[:100]!r} has {len(text.encode())} bytes: expected up to {MAX_TEXT}."
                )
        rows = [{"key": key, "text": text, "vector": [1.0, 0.0]} for key, text in texts.items()]
        self._connection.upsert(self._collection, rows, MAX_TEXT)

    def delete(self, *keys: str) -> None:
        """Forget what is under these keys, if there is anything."""
        if keys:
            self._connection.delete(self._collection, keys, key="key")

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that start with ``prefix``, ascending."""
        return list(self._texts(prefix, ["key"]))

    def items(self, prefix: str = "") -> dict[str, str]:
        """All texts whose keys start with ``prefix``, by ascending key."""
        return self._texts(prefix, ["text"])

    def drop(self) -> None:
        """Remove the collection with all there is."""
        self._connection.call("drop_collection", self._collection)

    # Files

    def put_files(self, prefix: str, files: Sequence[Path]) -> None:
        """Keep files under ``prefix``; they are there once all of them are."""
        sizes = {}
        for file in files:
            data = file.read_bytes()
            sizes[file.name] = len(data)
            chunks = {
                f"{prefix}/{file.name}/{start // CHUNK:06}": base64.b64encode(
                    data[start : start + CHUNK]
                ).decode()
                for start in range(0, len(data), CHUNK)
            }
            for first in range(0, len(chunks), BATCH):
                self.put_all(dict(list(chunks.items())[first : first + BATCH]))
        self.put(f"{prefix}.files", json.dumps(sizes))

    def has_files(self, prefix: str) -> bool:
        """Whether all files under ``prefix`` are there."""
        return self.get(f"{prefix}.files") is not None

    def get_files(self, prefix: str, folder: Path) -> None:
        """Write the files under ``prefix`` to a folder, which they replace.

        Raises:
            GalleryError: they are not there, or incomplete.
        """
        listed = self.get(f"{prefix}.files")
        if listed is None:
            raise GalleryError(f"{self._connection.address} has no {prefix}: copy it there again.")
        with replace_folder(folder) as fresh:
            for name, size in json.loads(listed).items():
                chunks = self._texts(f"{prefix}/{name}/", ["text"])
                try:
                    data = b"".join(base64.b64decode(text) for text in chunks.values())
                except ValueError:
                    data = b""
                if len(data) != size:
                    raise GalleryError(
                        f"{self._connection.address}: {name} has {len(data)} bytes, "
                        f"expected {size}."
                    )
                (fresh / name).write_bytes(data)

    def _texts(self, prefix: str, fields: Sequence[str]) -> dict[str, str]:
        # Keys are compared by their bytes; U+10FFFF is above all that a key holds.
        condition = f"key >= {literal(prefix)} and key < {literal(prefix + chr(0x10FFFF))}"
        walk = self._connection.walk(
            self._collection,
            condition,
            fields,
            row_bytes=MAX_TEXT,
            key="key",
            consistency="Strong",
        )
        return {row["key"]: row.get("text", "") for rows in walk for row in rows}
