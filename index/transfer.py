"""Export and import: a gallery's items with their vectors, for other programs and back.

Two forms with the same fields: a Parquet file (extra ``parquet``), or a folder with
``vectors.npy`` (float32 [n, d]), ``items.jsonl`` (a line for each row) and ``export.json``. Both
name the model that made the vectors. Vectors are streamed: memory does not grow with their number.

Fields of an item: ``id``, ``sku``, ``root`` and ``path`` (the photo's folder, and its path below
it), ``sha256``, ``size`` and ``mtime_ns`` (of the photo when it was read), ``label``,
``attributes`` (an object; in Parquet its JSON text), ``vector`` (Parquet only).
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from index.attributes import MAX_INTEGER, FieldType, check_text, new_types
from index.catalog import Catalog
from index.errors import DataError, InvalidArgumentError, ModelMismatchError
from index.files import replace_folder, sync_folder
from index.gallery import Gallery
from index.items import UNIT_TOLERANCE, Item, NewItem
from index.model import Model
from index.runtimes import Precision
from index.scan import scan
from index.stores import PhotoPath, is_remote, place_named

__all__ = ["ExportHeader", "ImportReport", "export_header", "export_items", "import_items"]

FORMAT_VERSION = 1

#: Rows in memory at a time; a row group of a Parquet file.
ROWS = 8192

VECTORS_FILE = "vectors.npy"
ITEMS_FILE = "items.jsonl"
HEADER_FILE = "export.json"
PARQUET_SUFFIX = ".parquet"

#: Where a Parquet file's schema keeps the header.
METADATA_KEY = b"dscl"

REQUIRED = ("root", "path", "sha256", "size", "mtime_ns")
OPTIONAL = ("sku", "label", "attributes")

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class ExportHeader:
    """What an export says of itself."""

    format_version: int
    model_sha256: str
    precision: Precision
    dim: int
    items: int

    @classmethod
    def parse(cls, name: str, text: str | bytes) -> ExportHeader:
        """Read a header; ``name`` says whose in errors.

        Raises:
            DataError: it is none, or of another format version.
        """
        fields = _object(f"{name}: the header", text)
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{name} has export format {version}; this release reads {FORMAT_VERSION}. Use the "
                "release that made it."
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise DataError(f"{name} has no header of an export: {error}.") from error

    def expect_model(self, source: Path, model: Model) -> None:
        """Refuse a model that did not make these vectors.

        Raises:
            ModelMismatchError: another model, or another precision.
            DataError: the vectors have another length.
        """
        if (self.model_sha256, self.precision) != (model.sha256, model.precision):
            raise ModelMismatchError(
                f"{source} holds vectors of model {self.model_sha256[:12]}… in {self.precision}, "
                f"the gallery those of {model.sha256[:12]}… in {model.precision}: they do not "
                "compare. Index the photos again."
            )
        if self.dim != model.card.dim:
            raise DataError(
                f"{source} says that its vectors have {self.dim} values; those of its model have "
                f"{model.card.dim}."
            )


@dataclass
class ImportReport:
    """What ``import_items`` did."""

    added: int = 0
    unchanged: int = 0  #: rows that were in the gallery as they are


# Export


def export_items(folder: Path, target: Path, *, progress: Progress | None = None) -> int:
    """Write all items of gallery ``folder`` to ``target``, as they are at one moment.

    Others may search and change the gallery meanwhile. ``target`` is whole or absent.

    Args:
        folder: the gallery.
        target: ``NAME.parquet``, or else the folder to make.
        progress: called with (rows just written, all rows).

    Returns:
        How many items were written.

    Raises:
        GalleryError: no gallery there.
        InvalidArgumentError: something is at ``target`` already, or pyarrow is not installed.
    """
    target = target.absolute()
    if target.exists():
        raise InvalidArgumentError(f"{target} exists already: choose a new name for the export.")
    parquet = target.suffix.lower() == PARQUET_SUFFIX
    if parquet:
        _import_pyarrow()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        with _frozen(folder, Path(scratch)) as catalog:
            header = ExportHeader(
                format_version=FORMAT_VERSION,
                model_sha256=catalog.meta("model_sha256"),
                precision=cast(Precision, catalog.meta("precision")),
                dim=catalog.dim,
                items=catalog.count(),
            )
            rows = _rows(catalog, header.items, progress)
            if not parquet:
                _write_folder(target, header, rows)
                return header.items
            file = Path(scratch) / target.name
            _write_parquet(file, header, rows)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(target)
        sync_folder(target.parent)
    return header.items


@contextmanager
def _frozen(folder: Path, scratch: Path) -> Iterator[Catalog]:
    """A copy of the catalog, so that all pages are of one moment."""
    live = Catalog(folder)
    try:
        live.backup(scratch / live.path.name)
    finally:
        live.close()
    catalog = Catalog(scratch)
    try:
        yield catalog
    finally:
        catalog.close()


def _rows(
    catalog: Catalog, total: int, progress: Progress | None
) -> Iterator[tuple[list[Item], NDArray[np.float32]]]:
    for items in scan(catalog, page=ROWS):
        yield items, catalog.vectors([item.id for item in items])
        if progress is not None:
            progress(len(items), total)


def _fields(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "sku": item.external_id,
        "root": str(item.root),
        "path": item.path,
        "sha256": item.sha256,
        "size": item.size,
        "mtime_ns": item.mtime_ns,
        "label": item.label,
        "attributes": item.attributes,
    }


def _write_folder(
    target: Path, header: ExportHeader, rows: Iterable[tuple[list[Item], NDArray[np.float32]]]
) -> None:
    with replace_folder(target) as fresh:
        vectors = np.lib.format.open_memmap(
            fresh / VECTORS_FILE, mode="w+", dtype=np.float32, shape=(header.items, header.dim)
        )
        start = 0
        with (fresh / ITEMS_FILE).open("w", encoding="utf-8") as file:
            for items, part in rows:
                vectors[start : start + len(items)] = part
                start += len(items)
                file.writelines(
                    json.dumps(_fields(item), ensure_ascii=False) + "\n" for item in items
                )
        vectors.flush()
        text = json.dumps(dataclasses.asdict(header), indent=2) + "\n"
        (fresh / HEADER_FILE).write_text(text, encoding="utf-8")


def _write_parquet(
    file: Path, header: ExportHeader, rows: Iterable[tuple[list[Item], NDArray[np.float32]]]
) -> None:
    pa, pq = _import_pyarrow()
    text = pa.string()
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("sku", text),
            pa.field("root", text, nullable=False),
            pa.field("path", text, nullable=False),
            pa.field("sha256", text, nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64(), nullable=False),
            pa.field("label", text),
            pa.field("attributes", text, nullable=False),
            pa.field("vector", pa.list_(pa.float32(), header.dim), nullable=False),
        ],
        metadata={METADATA_KEY: json.dumps(dataclasses.asdict(header)).encode()},
    )
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for items, vectors in rows:
            columns = [_fields(item) for item in items]
            for fields in columns:
                fields["attributes"] = json.dumps(fields["attributes"], ensure_ascii=False)
            arrays = [
                pa.array([fields[field.name] for fields in columns], field.type)
                for field in schema
                if field.name != "vector"
            ]
            values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(values, header.dim))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


# Import


def export_header(source: Path) -> ExportHeader:
    """What an export says of itself.

    Raises:
        DataError: no export there, or a damaged one.
        InvalidArgumentError: pyarrow is not installed.
    """
    return _open(source).header


def import_items(
    gallery: Gallery, source: Path, *, progress: Progress | None = None
) -> ImportReport:
    """Add the items of an export to a gallery that is open for writing.

    The whole source is checked first: if a row cannot be used, none is stored. Rows are then stored
    in durable batches; stopped and run again, it goes on with those that are not there yet. A row
    replaces the item that has its photo's path or its ``sku``. Items get ids of this gallery.

    Args:
        gallery: where to; of the model that made the vectors.
        source: a ``.parquet`` file, or a folder with the three files of an export.
        progress: called with (rows just dealt with, all rows), over both passes.

    Raises:
        DataError: no export, damaged, or a row that cannot be used; names it.
        ModelMismatchError: the vectors are of another model or precision than the gallery's.
        InvalidArgumentError: an attribute whose type is not the one it has in the gallery, text
            that cannot be stored, or pyarrow is not installed.
        GalleryError: the gallery is not open for writing, or cannot be written to.
    """
    export = _open(source)
    header = export.header
    header.expect_model(source, gallery.model)
    tell = progress or (lambda count, total: None)
    seen = _Seen(source, gallery)
    for items in export.batches():
        seen.check(items)
        tell(len(items), 2 * header.items)
    if seen.rows != header.items:
        raise DataError(
            f"{source} holds {seen.rows} rows, its header says {header.items}: it is cut off or "
            "was changed. Export it again."
        )
    report = ImportReport()
    for items in export.batches():
        new = _not_there(gallery, items)
        gallery.upsert(new)
        report.added += len(new)
        report.unchanged += len(items) - len(new)
        tell(len(items), 2 * header.items)
    return report


class _Export(Protocol):
    @property
    def header(self) -> ExportHeader: ...

    def batches(self) -> Iterator[list[NewItem]]: ...


def _open(source: Path) -> _Export:
    if source.is_dir():
        return _FolderExport(source)
    if source.is_file():
        return _ParquetExport(source)
    raise DataError(f"{source} does not exist: name a .parquet file or the folder of an export.")


class _FolderExport:
    """``vectors.npy`` and ``items.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._items = folder / ITEMS_FILE
        try:
            text = (folder / HEADER_FILE).read_text(encoding="utf-8")
            self._vectors = np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} is no export that can be read: {error}.") from error
        self.header = ExportHeader.parse(str(folder / HEADER_FILE), text)
        expected = (self.header.items, self.header.dim)
        if self._vectors.shape != expected or self._vectors.dtype != np.float32:
            raise DataError(
                f"{folder / VECTORS_FILE} is {self._vectors.dtype} {list(self._vectors.shape)}; "
                f"expected float32 {list(expected)}."
            )

    def batches(self) -> Iterator[list[NewItem]]:
        number = 0
        try:
            with self._items.open(encoding="utf-8") as file:
                while lines := list(islice(file, ROWS)):
                    items = []
                    for line in lines:
                        number += 1
                        if number > self.header.items:
                            raise DataError(f"{self._items} has more lines than there are vectors.")
                        name = f"{self._items}, line {number}"
                        fields = _object(name, line)
                        vector = np.array(self._vectors[number - 1])
                        items.append(_new_item(name, fields, fields.get("attributes"), vector))
                    yield items
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self._items} cannot be read: {error}.") from error


class _ParquetExport:
    """One Parquet file."""

    def __init__(self, file: Path) -> None:
        self._pa, pq = _import_pyarrow()
        self._name = str(file)
        try:
            self._file = pq.ParquetFile(file)
        except (OSError, self._pa.ArrowException) as error:
            raise DataError(f"{file} cannot be read as Parquet: {error}.") from error
        schema = self._file.schema_arrow
        self.header = ExportHeader.parse(self._name, (schema.metadata or {}).get(METADATA_KEY, b""))
        missing = [name for name in (*REQUIRED, "vector") if name not in schema.names]
        if missing:
            raise DataError(f"{file} has no column {', '.join(missing)}: export it again.")
        expected = self._pa.list_(self._pa.float32(), self.header.dim)
        if schema.field("vector").type != expected:
            raise DataError(
                f"{file}: column vector is {schema.field('vector').type}, expected {expected}."
            )
        self._columns = [n for n in (*REQUIRED, *OPTIONAL, "vector") if n in schema.names]

    def batches(self) -> Iterator[list[NewItem]]:
        number = 0
        try:
            for batch in self._file.iter_batches(batch_size=ROWS, columns=self._columns):
                column = batch.column("vector")
                if column.null_count:
                    row = number + 1 + column.is_valid().to_pylist().index(False)
                    raise DataError(f"{self._name}, row {row} has no vector.")
                # A value that is missing becomes NaN, which is refused with the row's name.
                values = column.flatten().to_numpy(zero_copy_only=False)
                vectors = values.astype(np.float32).reshape(-1, self.header.dim)
                columns = batch.select([n for n in self._columns if n != "vector"]).to_pylist()
                items = []
                for fields, vector in zip(columns, vectors, strict=True):
                    number += 1
                    name = f"{self._name}, row {number}"
                    attributes = _object(f"{name}: attributes", fields.get("attributes") or "{}")
                    items.append(_new_item(name, fields, attributes, vector))
                yield items
        except (OSError, self._pa.ArrowException) as error:
            raise DataError(f"{self._name} is damaged: {error}. Export it again.") from error


def _object(name: str, text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} is {value!r:.40}: expected an object.")
    return value


def _new_item(
    name: str, fields: dict[str, Any], attributes: Any, vector: NDArray[np.float32]
) -> NewItem:
    """Check one row; ``name`` says which in errors."""
    for field in REQUIRED:
        value: Any = fields.get(field)
        if field not in ("size", "mtime_ns"):
            check_text(f"{name}: {field}", value)
        elif type(value) is not int or abs(value) > MAX_INTEGER:
            raise DataError(f"{name}: {field} is {value!r}, expected an integer of 64 bits.")
    for field in ("sku", "label"):
        if fields.get(field) is not None:
            check_text(f"{name}: {field}", fields[field])
    if fields.get("sku") == "":
        raise DataError(f"{name}: sku is empty, expected text or null.")
    if not isinstance(attributes, dict | None):
        raise DataError(f"{name}: attributes is {attributes!r}, expected an object.")
    name_of_root, path = fields["root"], PurePosixPath(fields["path"])
    root = place_named(name_of_root, Path())
    absolute = is_remote(root) or Path(name_of_root).is_absolute()
    if not absolute or path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(
            f"{name}: path {fields['path']} does not lie below root {fields['root']}, or that is "
            "no absolute path."
        )
    return NewItem(
        root=root,
        path=path.as_posix(),
        sha256=fields["sha256"],
        size=fields["size"],
        mtime_ns=fields["mtime_ns"],
        label=fields.get("label"),
        attributes=attributes or {},
        external_id=fields.get("sku"),
        vector=vector,
    )


class _Seen:
    """The first pass: usable vectors and attributes, no path and no external id twice."""

    def __init__(self, source: Path, gallery: Gallery) -> None:
        self.rows = 0
        self._source = source
        self._types: dict[str, FieldType] = gallery.fields()
        self._paths: set[PhotoPath] = set()
        self._external_ids: set[str] = set()

    def check(self, items: list[NewItem]) -> None:
        for item in items:
            self.rows += 1
            name = f"{self._source}, row {self.rows}"
            length = float(np.linalg.norm(item.vector))
            if not abs(length - 1) <= UNIT_TOLERANCE:  # also true of NaN
                raise DataError(f"{name}: the vector has length {length:g}, expected 1.")
            if item.image in self._paths:
                raise DataError(f"{name}: photo {item.image} is in it twice.")
            self._paths.add(item.image)
            if item.external_id in self._external_ids:
                raise DataError(f"{name}: sku {item.external_id} is in it twice.")
            if item.external_id is not None:
                self._external_ids.add(item.external_id)
            self._types |= new_types(self._types, [(name, item.attributes)])


def _not_there(gallery: Gallery, items: list[NewItem]) -> list[NewItem]:
    ids = gallery.ids_by_path([item.image for item in items])
    stored = {item.image: item for item in gallery.get(list(ids.values()))}
    return [item for item in items if not _is_stored(stored.get(item.image), item)]


def _is_stored(stored: Item | None, item: NewItem) -> bool:
    return stored is not None and all(
        getattr(stored, name) == getattr(item, name)
        for name in ("sha256", "size", "mtime_ns", "label", "attributes", "external_id")
    )


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(
            "Parquet needs pyarrow, which is not installed: pip install 'dscl-retrieval[parquet]', "
            "or export to a folder."
        ) from error
    return pyarrow, pyarrow.parquet
