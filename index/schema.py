"""The tables of a catalog, and how those of an older format become today's.

Format 1 kept vectors in the table ``items`` and knew neither external ids nor types of attributes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from index.attributes import RESERVED, FieldType, check_name, type_of
from index.errors import InvalidArgumentError
from index.photos import AttributeValue

__all__ = [
    "FORMAT_VERSION",
    "add_field",
    "create_tables",
    "drop_field",
    "field_expression",
    "upgrade",
]

FORMAT_VERSION = 2

#: Each attribute costs an index; more of them than this are a mistake.
MAX_FIELDS = 256

TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    "CREATE TABLE roots (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE) STRICT",
    # AUTOINCREMENT: an id that was removed never names another photo
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        seq INTEGER NOT NULL,
        root INTEGER NOT NULL REFERENCES roots (id),
        path TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        label TEXT,
        attributes TEXT NOT NULL,
        external_id TEXT,
        UNIQUE (root, path)
    ) STRICT""",
    "CREATE INDEX items_by_seq ON items (seq)",
    "CREATE INDEX items_by_label ON items (label)",
    "CREATE TABLE removed (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL) STRICT",
    "CREATE INDEX removed_by_seq ON removed (seq)",
)

#: What format 1 did not have. Vectors lie apart, so that a look through the items stays short.
SINCE_2 = (
    "CREATE INDEX items_by_sha256 ON items (sha256)",
    "CREATE UNIQUE INDEX items_by_external_id ON items (external_id) WHERE external_id IS NOT NULL",
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY REFERENCES items (id), vector BLOB NOT NULL)"
    " STRICT",
    "CREATE TABLE fields (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, type TEXT NOT NULL)"
    " STRICT",
)


def create_tables(connection: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """Make the tables of an empty catalog; ``meta`` holds what the gallery as a whole has."""
    for statement in (*TABLES, *SINCE_2):
        connection.execute(statement)
    values = {"format_version": str(FORMAT_VERSION), "seq": "0", "floor": "0", **meta}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())


def field_expression(name: str) -> str:
    """SQL for the value of an attribute in table ``items``; NULL where it is missing.

    ``name`` must have passed ``index.attributes.check_name``. The index of a field is on this very
    expression, which is why the name is not a parameter.
    """
    check_name(name)
    literal = name.replace("'", "''")
    return f"""json_extract(items.attributes, '$."{literal}"')"""


def add_field(connection: sqlite3.Connection, name: str, kind: FieldType) -> None:
    """Note the type of a new attribute and index its values.

    Raises:
        InvalidArgumentError: a name that no attribute can have, or too many attributes.
    """
    expression = field_expression(name).replace("items.", "")
    [(count,)] = connection.execute("SELECT count(*) FROM fields").fetchall()
    if count >= MAX_FIELDS:
        raise InvalidArgumentError(
            f"the attribute {name!r} would be number {count + 1} of this gallery, which can have "
            f"{MAX_FIELDS}: put what differs from item to item into values, not into names."
        )
    [(field,)] = connection.execute(
        "INSERT INTO fields (name, type) VALUES (?, ?) RETURNING id", (name, kind)
    ).fetchall()
    connection.execute(
        f"CREATE INDEX {_index_of(field)} ON items ({expression}) WHERE {expression} IS NOT NULL"
    )


def drop_field(connection: sqlite3.Connection, name: str) -> None:
    """Forget an attribute that no item has any more."""
    [(field,)] = connection.execute(
        "DELETE FROM fields WHERE name = ? RETURNING id", (name,)
    ).fetchall()
    connection.execute(f"DROP INDEX {_index_of(field)}")


def _index_of(field: int) -> str:
    return f"items_by_field_{field:d}"


def upgrade(connection: sqlite3.Connection) -> None:
    """Turn a catalog of format 1 into today's, inside the transaction that is open.

    An attribute whose values are of several types becomes text, as does a value that cannot be
    kept, such as an integer beyond 64 bits; NaN and infinity become null. An attribute whose name
    cannot be kept gets another: ``_`` in place of what is not allowed, or after a reserved word.

    Raises:
        InvalidArgumentError: too many attributes.
    """
    connection.execute("ALTER TABLE items ADD COLUMN external_id TEXT")
    for statement in SINCE_2:
        connection.execute(statement)
    connection.execute("INSERT INTO vectors SELECT id, vector FROM items")
    connection.execute("ALTER TABLE items DROP COLUMN vector")
    for name, kind in _upgrade_attributes(connection).items():
        add_field(connection, name, kind)
    connection.execute("ANALYZE items")
    connection.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        {
            "format_version": str(FORMAT_VERSION),
            "floor": "0",
            "precision": "fp32",
            "index_kind": "auto",
            "target_recall": "0.99",
        }.items(),
    )


def _upgrade_attributes(connection: sqlite3.Connection) -> dict[str, FieldType]:
    """Give attributes names and types that today's format can hold."""
    rows = connection.execute(
        "SELECT id, attributes FROM items WHERE attributes != '{}'"
    ).fetchall()
    items: list[tuple[int, str, dict[str, AttributeValue]]] = [
        (item_id, text, {name: _kept(value) for name, value in json.loads(text).items()})
        for item_id, text in rows
    ]
    types: dict[str, set[FieldType]] = {}
    for _, _, attributes in items:
        for name, value in attributes.items():
            kind = type_of(value)
            types.setdefault(name, set()).update({kind} if kind else set())
    names: dict[str, str] = {}
    for name in types:
        names[name] = _allowed(name, {*types, *names.values()} - {name})
    mixed = {name for name, kinds in types.items() if len(kinds) > 1}
    changed = []
    for item_id, before, attributes in items:
        new = {
            names[name]: _as_text(value) if name in mixed else value
            for name, value in attributes.items()
        }
        after = json.dumps(new, ensure_ascii=False, allow_nan=False)
        if after != before:
            changed.append((after, item_id))
    connection.executemany("UPDATE items SET attributes = ? WHERE id = ?", changed)
    return {
        names[name]: "string" if name in mixed else kinds.pop()
        for name, kinds in types.items()
        if kinds
    }


def _allowed(name: str, taken: set[str]) -> str:
    try:
        check_name(name)
    except InvalidArgumentError:
        kept = "".join("_" if each in '"\\' or not each.isprintable() else each for each in name)
        name = kept[:50] + ("_" if kept in RESERVED or not kept else "")
        while name in taken:
            name += "_"
    return name


def _kept(value: AttributeValue) -> AttributeValue:
    """The value, or what stands for it where today's format cannot hold it."""
    try:
        type_of(value)
    except InvalidArgumentError:
        if isinstance(value, str):
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return None if isinstance(value, float) else json.dumps(value)
    return value


def _as_text(value: AttributeValue) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
