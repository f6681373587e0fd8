from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import Gallery, Item, Model
from index import transfer as transfer_module
from index.errors import (
    AttributeTypeError,
    DataError,
    DsclError,
    GalleryError,
    InvalidArgumentError,
    ModelMismatchError,
)
from index.photos import AttributeValue
from index.transfer import ImportReport, export_header, export_items, import_items
from tests.index.gallery_items import DIM, item, items, unit
from tests.tiny_model import make_model_folder

FORMS = ["all.parquet", "all"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture
def path(tmp_path, model) -> Path:
    """A gallery with an item of every kind, and ids with gaps."""
    vectors = unit(8, seed=3)
    described: list[tuple[str | None, str | None, dict[str, AttributeValue]]] = [
        ("audi", "A-1", {"year": 2010, "price": 1.5, "sold": True, "colour": "red"}),
        (None, None, {}),
        ("ä/ß 車", "sku ü\n", {"note": 'line\nbreak, "quoted" \'; DROP', "year": None}),
        ("", "A-2", {"year": -(2**53) - 1, "price": 1e-300, "sold": False, "colour": ""}),
    ]
    new = [
        item(f"folder {number}/ü.jpg", vectors[number], label=label, sku=sku, attributes=attributes)
        for number, (label, sku, attributes) in enumerate(described)
    ]
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        gallery.remove(gallery.add(items(vectors[4:], prefix="gone-")))
        gallery.add([*new, item("other.jpg", vectors[4], root=Path("/elsewhere"))])
    return tmp_path / "gallery"


@pytest.fixture
def target(tmp_path, model):
    with Gallery.create(tmp_path / "target", model) as gallery:
        yield gallery


def without_id(each: Item) -> dict[str, Any]:
    return {name: value for name, value in vars(each).items() if name != "id"}


def contents(gallery: Gallery) -> list[tuple[dict[str, Any], bytes]]:
    """All but the ids, in their order."""
    held = gallery.items(limit=10**6)
    vectors = gallery.vectors([each.id for each in held])
    return [
        (without_id(each), vector.tobytes()) for each, vector in zip(held, vectors, strict=True)
    ]


# Round trips


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [2, 8192])
def test_what_is_exported_and_imported_is_the_same(path, target, tmp_path, monkeypatch, form, rows):
    monkeypatch.setattr(transfer_module, "ROWS", rows)  # several pages and row groups
    told: list[tuple[int, int]] = []

    def tell(count: int, total: int) -> None:
        told.append((count, total))

    assert export_items(path, tmp_path / form, progress=tell) == 5
    assert (sum(count for count, _ in told), {total for _, total in told}) == (5, {5})
    told.clear()
    assert import_items(target, tmp_path / form, progress=tell) == ImportReport(added=5)
    assert (sum(count for count, _ in told), {total for _, total in told}) == (10, {10})
    with Gallery.open(path) as source:
        assert contents(target) == contents(source)
        assert target.fields() == source.fields()
        types = [{k: type(v) for k, v in each.attributes.items()} for each in target.items()]
        assert types == [
            {k: type(v) for k, v in each.attributes.items()} for each in source.items()
        ]
        query = unit(1, seed=9)
        assert np.array_equal(target.search(query, 5).scores, source.search(query, 5).scores)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([form, "gallery", "target"])


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_gallery_makes_an_export_of_nothing(target, tmp_path, model, form):
    Gallery.create(tmp_path / "empty", model).close()
    assert export_items(tmp_path / "empty", tmp_path / form) == 0
    assert import_items(target, tmp_path / form) == ImportReport()


def test_both_forms_are_read_by_other_programs(path, tmp_path):
    for form in FORMS:
        export_items(path, tmp_path / form)
    with Gallery.open(path) as gallery:
        held = gallery.items()
        vectors = gallery.vectors([each.id for each in held])
    expected = [
        {
            "id": each.id,
            "sku": each.external_id,
            "root": str(each.root),
            "path": each.path,
            "sha256": each.sha256,
            "size": each.size,
            "mtime_ns": each.mtime_ns,
            "label": each.label,
            "attributes": each.attributes,
        }
        for each in held
    ]
    lines = (tmp_path / "all" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == expected
    assert np.array_equal(np.load(tmp_path / "all" / "vectors.npy"), vectors)
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert np.array_equal(np.array([row.pop("vector") for row in rows], np.float32), vectors)
    assert [{**row, "attributes": json.loads(row["attributes"])} for row in rows] == expected


def test_an_export_is_of_one_moment_while_others_change_the_gallery(
    path, tmp_path, target, monkeypatch
):
    """Between its pages, all items go and others come."""
    monkeypatch.setattr(transfer_module, "ROWS", 2)
    vectors = unit(3, seed=8)
    with Gallery.open(path, writable=True) as gallery:
        before = contents(gallery)

        def change(count: int, total: int) -> None:
            gallery.remove([each.id for each in gallery.items()])
            gallery.add(items(vectors, prefix=f"{len(gallery)}-"))

        export_items(path, tmp_path / "all", progress=change)
        assert contents(gallery) != before
    import_items(target, tmp_path / "all")
    assert contents(target) == before


@pytest.mark.parametrize("form", FORMS)
def test_importing_again_changes_nothing_and_goes_on_where_it_was_stopped(
    path, target, tmp_path, monkeypatch, form
):
    monkeypatch.setattr(transfer_module, "ROWS", 2)
    export_items(path, tmp_path / form)
    done = 0

    def stop(count: int, total: int) -> None:
        nonlocal done
        done += count
        if done >= 5 + 2:  # all were checked, and the first two are stored
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_items(target, tmp_path / form, progress=stop)
    first = target.items()
    assert len(first) == 2
    assert import_items(target, tmp_path / form) == ImportReport(added=3, unchanged=2)
    assert target.items()[:2] == first
    held = target.items()
    assert import_items(target, tmp_path / form) == ImportReport(unchanged=5)
    assert target.items() == held


@pytest.mark.parametrize("form", FORMS)
def test_a_row_replaces_the_item_of_its_path_or_its_sku(path, target, tmp_path, form):
    vectors = unit(3, seed=8)
    target.add(
        [
            item("folder 1/ü.jpg", vectors[0], label="of the same path"),
            item("a.jpg", vectors[1], sku="A-1", label="of the same sku"),
            item("kept.jpg", vectors[2]),
        ]
    )
    kept = contents(target)[2]
    export_items(path, tmp_path / form)
    assert import_items(target, tmp_path / form) == ImportReport(added=5)
    with Gallery.open(path) as source:
        assert contents(target) == [kept, *contents(source)]


# What cannot be imported


def exported(path: Path, target: Path) -> tuple[list[dict[str, Any]], np.ndarray, dict[str, Any]]:
    """Export to a folder and read it back: rows, vectors, header."""
    export_items(path, target)
    rows = [json.loads(line) for line in (target / "items.jsonl").read_text().splitlines()]
    header = json.loads((target / "export.json").read_text())
    return rows, np.load(target / "vectors.npy"), header


def write_folder(target: Path, rows: list[Any], vectors: np.ndarray, header: Any) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    (target / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(target / "vectors.npy", vectors)
    (target / "export.json").write_text(json.dumps(header))
    return target


def write_parquet(target: Path, rows: list[Any], vectors: np.ndarray, header: Any) -> Path:
    types = {"size": pa.int64(), "mtime_ns": pa.int64()}
    columns = {
        name: pa.array([row[name] for row in rows], types.get(name, pa.string()))
        for name in ("sku", "root", "path", "sha256", "size", "mtime_ns", "label")
    }
    columns["attributes"] = pa.array([json.dumps(row["attributes"]) for row in rows])
    lists = [None if vector is None else list(map(float, vector)) for vector in vectors]
    columns["vector"] = pa.array(lists, pa.list_(pa.float32(), len(vectors[0])))
    metadata = {b"dscl": json.dumps(header).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), target)
    return target


#: Rows that cannot be used: what is done to the fourth, the error and what it says.
BAD_ROWS: list[tuple[dict[str, Any], type[DsclError], str]] = [
    ({"path": "../x.jpg"}, DataError, "does not lie below root"),
    ({"path": "/x.jpg"}, DataError, "does not lie below root"),
    ({"path": ""}, DataError, "does not lie below root"),
    ({"root": "photos"}, DataError, "no absolute path"),
    ({"path": None}, InvalidArgumentError, "path is None: expected text"),
    ({"sha256": None}, InvalidArgumentError, "sha256 is None"),
    ({"size": None}, DataError, "size is None"),
    ({"sku": ""}, DataError, "sku is empty"),
    ({"sku": "A-1"}, DataError, "sku A-1 is in it twice"),
    ({"root": "/elsewhere", "path": "other.jpg"}, DataError, "other.jpg is in it twice"),
    ({"attributes": [1]}, DataError, "expected an object"),
    ({"attributes": {"year": "old"}}, AttributeTypeError, "'year'"),
    ({"attributes": {"tags": ["a"]}}, AttributeTypeError, "list"),
]

#: Those that only JSON can say.
BAD_LINES: list[tuple[Any, type[DsclError], str]] = [
    ({"label": 7}, InvalidArgumentError, "label is 7"),
    ({"sku": ["A"]}, InvalidArgumentError, "sku is"),
    ({"size": "7"}, DataError, "size is '7'"),
    ({"size": True}, DataError, "size is True"),
    ({"mtime_ns": 2**63}, DataError, "64 bits"),
    ({"label": "half \ud800"}, InvalidArgumentError, "surrogate"),
    ({"sha256": "nul \0"}, InvalidArgumentError, "NUL"),
    ({"attributes": {"a": "nul \0"}}, InvalidArgumentError, "NUL"),
    ({"attributes": {"a": float("inf")}}, InvalidArgumentError, "finite"),
]

NAN = np.full(DIM, np.nan, np.float32)
BAD_VECTORS = [NAN, np.zeros(DIM, np.float32), 2 * unit(1)[0], np.full(DIM, np.inf, np.float32)]


def expect_refused(
    target: Gallery, source: Path, error: type[DsclError] | tuple[type[DsclError], ...], text: str
) -> None:
    """And that nothing was stored, though the rows before the bad one could be."""
    target.add([item("kept.jpg", unit(1, seed=8)[0], attributes={"year": 1})])
    before = contents(target)
    with pytest.raises(error, match=text):
        import_items(target, source)
    assert contents(target) == before


@pytest.mark.parametrize("write", [write_folder, write_parquet])
@pytest.mark.parametrize(("change", "error", "text"), BAD_ROWS)
def test_a_row_that_cannot_be_used_is_named_and_none_is_stored(
    path, target, tmp_path, monkeypatch, write, change, error, text
):
    monkeypatch.setattr(transfer_module, "ROWS", 2)
    rows, vectors, header = exported(path, tmp_path / "all")
    rows[3].update(change)
    source = write(tmp_path / "changed", rows, vectors, header)
    expect_refused(target, source, error, f"(?s)(line|row) [45].*{text}")


def test_an_attribute_that_cannot_be_called_so_is_refused(path, target, tmp_path):
    rows, vectors, header = exported(path, tmp_path / "all")
    rows[3]["attributes"]["id"] = 1
    source = write_folder(tmp_path / "changed", rows, vectors, header)
    expect_refused(target, source, InvalidArgumentError, "can be called 'id'")


@pytest.mark.parametrize(("change", "error", "text"), BAD_LINES)
def test_a_line_that_cannot_be_used_is_named_and_none_is_stored(
    path, target, tmp_path, change, error, text
):
    rows, vectors, header = exported(path, tmp_path / "all")
    rows[3].update(change)
    source = write_folder(tmp_path / "changed", rows, vectors, header)
    expect_refused(target, source, error, f"(?s)(line|row) 4.*{text}")


@pytest.mark.parametrize("write", [write_folder, write_parquet])
@pytest.mark.parametrize("vector", BAD_VECTORS)
def test_a_vector_that_cannot_be_used_is_named_and_none_is_stored(
    path, target, tmp_path, write, vector
):
    rows, vectors, header = exported(path, tmp_path / "all")
    vectors[3] = vector
    source = write(tmp_path / "changed", rows, vectors, header)
    expect_refused(target, source, DataError, "row 4: the vector has length .*, expected 1")


@pytest.mark.parametrize("missing", ["vector", "value"])
def test_a_missing_vector_or_value_in_parquet_is_named(
    path, target, tmp_path, monkeypatch, missing
):
    monkeypatch.setattr(transfer_module, "ROWS", 3)
    rows, vectors, header = exported(path, tmp_path / "all")
    lists: list[Any] = list(vectors)
    lists[3] = None
    source = tmp_path / "changed.parquet"
    write_parquet(source, rows, lists, header)
    if missing == "value":
        table = pq.read_table(source)
        values = [list(map(float, vector)) for vector in vectors]
        column = pa.array(
            [*values[:3], [None, *values[3][1:]], *values[4:]], pa.list_(pa.float32(), DIM)
        )
        pq.write_table(
            table.set_column(table.schema.get_field_index("vector"), "vector", column), source
        )
    expect_refused(target, source, DataError, "row 4")


@pytest.mark.parametrize("write", [write_folder, write_parquet])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model_sha256": "0" * 64}, ModelMismatchError, "vectors of model 000000000000…"),
        ({"precision": "int8"}, ModelMismatchError, "in int8"),
        ({"dim": DIM + 1}, DataError, "expected|says that its vectors have"),
        ({"items": 9}, DataError, "expected|its header says 9"),
        ({"items": 4}, DataError, "expected|its header says 4"),
        ({"format_version": 2, "more": 1}, DataError, "export format 2; this release reads 1"),
        ({"more": 1}, DataError, "no header"),
    ],
)
def test_an_export_of_something_else_is_refused(path, target, tmp_path, write, change, error, text):
    rows, vectors, header = exported(path, tmp_path / "all")
    source = write(tmp_path / "changed", rows, vectors, header | change)
    expect_refused(target, source, error, text)


@pytest.mark.parametrize("write", [write_folder, write_parquet])
def test_vectors_of_another_length_are_refused(path, target, tmp_path, write):
    rows, vectors, header = exported(path, tmp_path / "all")
    source = write(tmp_path / "changed", rows, vectors[:, :5], header)
    expect_refused(target, source, DataError, "expected")
    source = write(tmp_path / "changed2", rows, vectors[:, :5], header | {"dim": 5})
    expect_refused(target, source, DataError, "says that its vectors have 5 values")


def test_parquet_without_a_header_or_a_column_is_refused(path, target, tmp_path):
    export_items(path, tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "bare.parquet")
    expect_refused(target, tmp_path / "bare.parquet", DataError, "header")
    pq.write_table(table.drop_columns(["size", "vector"]), tmp_path / "less.parquet")
    expect_refused(target, tmp_path / "less.parquet", DataError, "no column size, vector")
    # What need not be there: the gallery's own ids, and what is known of the items.
    few = table.drop_columns(["id", "sku", "label", "attributes"])
    pq.write_table(few, tmp_path / "few.parquet")
    import_items(target, tmp_path / "few.parquet")
    assert [each.external_id for each in target.items()[-5:]] == [None] * 5


def test_what_is_damaged_or_no_export_is_refused(path, target, tmp_path):
    export_items(path, tmp_path / "all.parquet")
    data = bytearray((tmp_path / "all.parquet").read_bytes())
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    data[4 : len(data) // 3] = bytes(len(data) // 3 - 4)
    (tmp_path / "garbage.parquet").write_bytes(data)
    (tmp_path / "text").write_text("text")
    (tmp_path / "bare").mkdir()
    rows, vectors, header = exported(path, tmp_path / "all")
    write_folder(tmp_path / "short", rows[:-1], vectors, header)
    write_folder(tmp_path / "long", [*rows, rows[0]], vectors, header)
    write_folder(tmp_path / "list", [*rows[:-1], [1]], vectors, header)
    write_folder(tmp_path / "wide", rows, vectors.astype(np.float64), header)
    files = ["cut.parquet", "garbage.parquet", "text", "nowhere"]
    for name in [*files, "bare", "short", "long", "list", "wide"]:
        with pytest.raises(DataError, match=name):
            import_items(target, tmp_path / name)
    assert len(target) == 0


def test_a_reader_cannot_import(path, target, tmp_path):
    export_items(path, tmp_path / "all")
    with (
        Gallery.open(target.path) as reader,
        pytest.raises(GalleryError, match="open it writable"),
    ):
        import_items(reader, tmp_path / "all")


# What cannot be exported


@pytest.mark.parametrize("form", FORMS)
def test_an_export_overwrites_nothing_and_leaves_nothing_when_it_fails(path, tmp_path, form):
    def fail(count: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_items(path, tmp_path / form, progress=fail)
    assert [each.name for each in tmp_path.iterdir()] == ["gallery"]
    (tmp_path / form).write_text("the only copy")
    with pytest.raises(InvalidArgumentError, match=f"{form} exists already"):
        export_items(path, tmp_path / form)
    assert (tmp_path / form).read_text() == "the only copy"
    with pytest.raises(GalleryError, match="is not a gallery"):
        export_items(tmp_path / "nowhere", tmp_path / "new" / form)


def test_without_pyarrow_parquet_names_the_extra_and_folders_work(
    path, target, tmp_path, monkeypatch
):
    export_items(path, tmp_path / "all.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # importing it fails
    for parquet in (
        lambda: export_items(path, tmp_path / "new.parquet"),
        lambda: import_items(target, tmp_path / "all.parquet"),
        lambda: export_header(tmp_path / "all.parquet"),
    ):
        with pytest.raises(InvalidArgumentError, match=r"dscl-retrieval\[parquet\]"):
            parquet()
    assert not (tmp_path / "new.parquet").exists()
    export_items(path, tmp_path / "all")
    assert import_items(target, tmp_path / "all").added == 5
