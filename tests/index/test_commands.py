from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from index import Gallery, Item, Model, build, list_photos
from index.metrics import evaluate
from service.cli import main
from tests.photos import write_class_folders, write_photo
from tests.tiny_model import make_model_folder


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        assert self.status == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def dscl(monkeypatch, capsys) -> Run:
    """The command, run by its entry point in this process."""

    def run(*arguments: str | Path | int) -> Result:
        monkeypatch.setattr(sys, "argv", ["dscl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return Result(int(end.value.code or 0), out, err)

    return run


@dataclass
class World:
    """Photos, a model, and the gallery made of them."""

    root: Path
    model: Path
    photos: Path
    gallery: Path

    def items(self) -> list[Item]:
        with Gallery.open(self.gallery) as gallery:
            return gallery.items(limit=1000)

    def stored(self) -> dict[Path, bytes]:
        """All that lasts of every folder.

        Not the lock, which names its last owner, nor what SQLite leaves of one that only read: its
        shared memory and an empty log.
        """
        return {
            path: content
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
            and path.name not in ("writer.lock", "catalog.sqlite-shm")
            and ((content := path.read_bytes()) or path.name != "catalog.sqlite-wal")
        }


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("template")
    photos = write_class_folders(root / "photos")
    with Gallery.create(root / "gallery", make_model_folder(root / "model")) as gallery:
        build(gallery, list_photos(photos), workers=1)
    other = make_model_folder(root / "other-model", seed=1)
    Gallery.create(root / "other-gallery", other).close()
    shutil.copytree(root / "other-gallery", root / "newer")
    with closing(sqlite3.connect(root / "newer" / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE meta SET value = '99' WHERE key = 'format_version'")
    return root


@pytest.fixture
def world(tmp_path, template) -> World:
    """A copy to change; the gallery's photos are those of the template."""
    shutil.copytree(template / "gallery", tmp_path / "gallery")
    shutil.copytree(template / "model", tmp_path / "model")
    write_photo(tmp_path / "query.jpg", seed=7)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"this is no image, whatever its name says")
    (tmp_path / "no-path.csv").write_text("file,label\n1.jpg,audi\n")
    (tmp_path / "twice.csv").write_text("path,sku\nquery.jpg,A\nsecond.jpg,A\n")
    write_photo(tmp_path / "second.jpg", seed=8)
    make_model_folder(tmp_path / "other-model", seed=1)
    shutil.copytree(template / "other-gallery", tmp_path / "other-gallery")
    shutil.copytree(template / "newer", tmp_path / "newer")
    return World(tmp_path, tmp_path / "model", template.resolve() / "photos", tmp_path / "gallery")


# index


def test_build_makes_a_gallery_and_run_again_continues_it(dscl, world):
    arguments = ("index", "build", "--model", world.model, "--images", world.photos)
    new = world.root / "new"
    first = dscl(*arguments, "--gallery", new)
    assert (first.status, first.err) == (0, "")
    assert first.out == f"Added 12, unchanged 0, skipped 0: 12 items in {new}\n"
    again = dscl(*arguments, "--gallery", new, "--json").json
    assert again == {
        "added": 0,
        "updated": 0,
        "unchanged": 12,
        "removed": 0,
        "duplicates": [],
        "skipped": [],
        "items": 12,
    }


def test_build_fills_an_empty_folder(dscl, world):
    gallery = world.root / "empty"
    arguments = ("--model", world.model, "--images", world.photos, "--gallery", gallery)
    assert dscl("index", "build", *arguments, "--workers", 1, "--json").json["items"] == 12


def test_add_takes_photos_folders_and_tables(dscl, world):
    write_photo(world.root / "more" / "vw" / "1.jpg", seed=901)
    write_photo(world.root / "table" / "2.jpg", seed=902)
    (world.root / "table" / "list.csv").write_text("path,label,year\n2.jpg,seat,1999\n")
    sources = [world.root / "query.jpg", world.root / "more", world.root / "table" / "list.csv"]
    result = dscl("index", "add", "--gallery", world.gallery, *sources, "--json").json
    assert (result["added"], result["items"]) == (3, 15)
    added = world.items()[-3:]
    assert [each.label for each in added] == [None, "vw", "seat"]
    assert [each.attributes for each in added] == [{}, {}, {"year": 1999}]


def test_add_gives_all_photos_the_label_asked_for(dscl, world):
    write_photo(world.root / "more" / "vw" / "1.jpg", seed=901)
    sources = [world.root / "query.jpg", world.root / "more"]
    assert dscl("index", "add", "--gallery", world.gallery, "--label", "golf", *sources).status == 0
    assert [each.label for each in world.items()[-2:]] == ["golf", "golf"]


def test_broken_photos_are_told_and_the_rest_is_added(dscl, world):
    folder = world.root / "mixed"
    write_photo(folder / "good.jpg", seed=901)
    for number in range(12):
        (folder / f"bad-{number:02}.jpg").write_bytes(b"")
    told = dscl("index", "add", "--gallery", world.gallery, folder)
    assert told.status == 0
    assert told.out.startswith("Added 1, unchanged 0, skipped 12: 13 items")
    lines = told.err.splitlines()
    assert len(lines) == 11
    assert "bad-00.jpg: " in lines[0] and "empty" in lines[0]
    assert "2 more" in lines[-1]
    listed = dscl("index", "add", "--gallery", world.gallery, folder, "--json").json
    assert [Path(each["path"]).name for each in listed["skipped"]] == [
        f"bad-{number:02}.jpg" for number in range(12)
    ]
    assert {each["code"] for each in listed["skipped"]} == {"image_empty"}
    assert all(each["reason"] for each in listed["skipped"])


def test_remove_takes_ids_and_paths_and_leaves_the_files(dscl, world, monkeypatch):
    first, second, third, *rest = world.items()
    monkeypatch.chdir(second.image.parent)
    result = dscl(
        "index", "remove", "--gallery", world.gallery, first.id, second.image.name, third.image
    )
    assert (result.status, result.out) == (0, "Removed 3; 9 items are left.\n")
    assert world.items() == rest
    assert all(each.image.is_file() for each in (first, second, third))


def test_info_tells_what_a_gallery_holds(dscl, world):
    card = Model.load(world.model).card
    facts = dscl("index", "info", "--gallery", world.gallery, "--json").json
    assert facts["bytes"] > 0
    assert facts.pop("index")["kind"] == "flat"
    assert {**facts, "bytes": 0} == {
        "path": str(world.gallery),
        "items": 12,
        "labelled": 12,
        "labels": 3,
        "dim": card.dim,
        "model": card.name,
        "model_sha256": card.sha256,
        "precision": "fp32",
        "bytes": 0,
    }
    text = dscl("index", "info", "--gallery", world.gallery).out
    assert "12 (12 with one of 3 labels)" in text
    assert card.name in text


def test_duplicates_are_told_and_left_out_when_asked(dscl, world):
    for number in range(2):
        shutil.copyfile(world.root / "query.jpg", world.root / f"copy-{number}.jpg")
    sources = [world.root / "query.jpg", *sorted(world.root.glob("copy-*.jpg"))]
    told = dscl("index", "add", "--gallery", world.gallery, "--skip-duplicates", *sources)
    assert told.out.startswith("Added 1, unchanged 0, duplicates 2, skipped 0: 13 items")
    assert f"copy-0.jpg is {world.root.resolve() / 'query.jpg'}" in told.err
    added = dscl("index", "add", "--gallery", world.gallery, *sources, "--json").json
    assert (added["added"], added["unchanged"], added["items"]) == (2, 1, 15)


def test_a_table_that_was_corrected_corrects_the_gallery(dscl, world):
    shutil.copytree(world.photos, world.root / "photos")
    table = world.root / "photos" / "list.csv"
    new = world.root / "new"
    arguments = ("index", "build", "--model", world.model, "--images", table, "--gallery", new)
    table.write_text("path,label,sku\ncar-0/0.jpg,audi,A\ncar-0/1.jpg,bmw,B\n")
    assert dscl(*arguments, "--json").json["added"] == 2
    table.write_text("path,label,sku\ncar-0/0.jpg,audi,A\ncar-0/1.jpg,seat,B\n")
    assert dscl(*arguments).out.startswith("Added 0, unchanged 1, updated 1, skipped 0: 2 items")
    with Gallery.open(new) as gallery:
        assert [each.label for each in gallery.items()] == ["audi", "seat"]


def test_build_prunes_only_when_asked(dscl, world):
    shutil.copytree(world.photos, world.root / "photos")
    new = world.root / "new"
    photos = ("--images", world.root / "photos", "--gallery", new, "--json")
    arguments = ("index", "build", "--model", world.model, *photos)
    dscl(*arguments)
    (world.root / "photos" / "car-0" / "0.jpg").unlink()
    assert dscl(*arguments).json["items"] == 12
    pruned = dscl(*arguments, "--prune").json
    assert (pruned["removed"], pruned["items"]) == (1, 11)


def test_build_sets_how_the_gallery_is_searched(dscl, world):
    new = world.root / "new"
    arguments = ("index", "build", "--model", world.model, "--images", world.photos)
    info = ("index", "info", "--gallery", new, "--json")
    for options, expected in (
        (("--recall", "0.9"), ("auto", 0.9)),
        (("--index", "hnsw"), ("hnsw", 0.9)),
        ((), ("hnsw", 0.9)),
        (("--recall", "0.95", "--index", "flat"), ("flat", 0.95)),
    ):
        assert dscl(*arguments, "--gallery", new, *options).status == 0
        index = dscl(*info).json["index"]
        assert (index["requested"], index["target_recall"]) == expected


def test_tune_changes_the_kind_and_tells_the_recall_measured(dscl, world):
    tune = ("index", "tune", "--gallery", world.gallery, "--recall", "0.95")
    tuned = dscl(*tune, "--kind", "hnsw", "--json").json
    assert (tuned["requested"], tuned["target_recall"]) == ("hnsw", 0.95)
    assert "every search is exact" in dscl(*tune, "--kind", "flat").out
    assert dscl("search", "--gallery", world.gallery, world.root / "query.jpg").status == 0


# Items by their own name


def test_an_item_is_added_replaced_updated_and_removed_by_its_sku(dscl, world):
    add = ("index", "add", "--gallery", world.gallery)
    update = ("index", "update", "--gallery", world.gallery, "sku:A-1")
    assert dscl(*add, "--sku", "A-1", world.root / "query.jpg").status == 0
    [first] = [each for each in world.items() if each.external_id == "A-1"]
    other = write_photo(world.root / "other.jpg", seed=901).resolve()
    assert dscl(*add, "--sku", "A-1", other).status == 0
    [second] = [each for each in world.items() if each.external_id == "A-1"]
    assert second.image == other and first.id not in {each.id for each in world.items()}

    changes = '{"year": 2010, "colour": "red"}'
    assert dscl(*update, "--label", "golf", "--attributes", changes).status == 0
    changed = dscl(*update, "--attributes", '{"colour": null}', "--json").json
    assert changed == {
        "id": second.id,
        "sku": "A-1",
        "label": "golf",
        "attributes": {"year": 2010},
        "image": str(other),
    }
    assert dscl(*update, "--label", "", "--sku", "A-2").status == 0
    renamed = world.items()[-1]
    assert (renamed.id, renamed.label, renamed.external_id) == (second.id, None, "A-2")
    assert dscl("index", "remove", "--gallery", world.gallery, "sku:A-2").status == 0
    assert len(world.items()) == 12


# search


def test_search_keeps_to_its_filter_threshold_groups_and_offset(dscl, world):
    items = world.items()
    year = {each.id: 2000 + number for number, each in enumerate(items)}
    for item_id, value in year.items():
        attributes = json.dumps({"year": value})
        dscl("index", "update", "--gallery", world.gallery, item_id, "--attributes", attributes)
    query = world.root / "query.jpg"

    def found(*options: object) -> list[dict]:
        arguments = ("search", "--gallery", world.gallery, "--json", "-k", 100, *options, query)
        return dscl(*arguments).json["results"]

    everything = found()
    assert len(everything) == 12
    assert found("--where", '{"year": {"gte": 2003}, "label": ["car-0", "car-1"]}') == [
        hit
        for hit in everything
        if hit["attributes"]["year"] >= 2003 and hit["label"] in ("car-0", "car-1")
    ]
    middle = everything[5]["score"]
    assert found("--threshold", middle - 1e-6) == everything[:6]
    assert found("--offset", 9) == everything[9:]
    best: dict[str, dict] = {}
    for hit in everything:
        best.setdefault(hit["label"], hit)
    assert found("--group-by", "label") == list(best.values())
    assert found("--threshold", 1) == []
    text = dscl("search", "--gallery", world.gallery, "--threshold", 1, query).out
    assert text.startswith("No item is like that")


def test_search_finds_a_photo_by_itself_first(dscl, world):
    for each in world.items()[::5]:
        result = dscl("search", "--gallery", world.gallery, "-k", 3, "--json", each.image).json
        assert result["query"] == str(each.image)
        best, *others = result["results"]
        assert best == {
            "id": each.id,
            "sku": None,
            "score": pytest.approx(1, abs=1e-5),
            "label": each.label,
            "attributes": {},
            "image": str(each.image),
        }
        scores = [hit["score"] for hit in result["results"]]
        assert len(others) == 2 and scores == sorted(scores, reverse=True)


def test_search_prints_a_line_for_each_neighbour(dscl, world):
    each = world.items()[4]
    lines = dscl("search", "--gallery", world.gallery, each.image).out.splitlines()
    assert len(lines) == 10
    assert lines[0].split() == ["1", "+1.000", each.label, str(each.image)]


def test_search_in_an_empty_gallery_says_how_to_fill_it(dscl, world):
    Gallery.create(world.root / "bare", world.model).close()
    query = ("search", "--gallery", world.root / "bare", world.root / "query.jpg")
    assert "dscl index add" in dscl(*query).out
    assert dscl(*query, "--json").json["results"] == []


# evaluate


def test_evaluate_gives_the_figures_of_the_gallery(dscl, world):
    model = Model.load(world.model)
    items = world.items()
    vectors = [model.embed(model.prepare(each.image)[None])[0] for each in items]
    expected = evaluate(vectors, [each.label for each in items], ks=(1, 3), clustering=True)

    options = ("--gallery", world.gallery, "--k", "3,1", "--clustering")
    figures = dscl("evaluate", *options, "--json").json
    assert figures["recall"] == {str(k): value for k, value in expected.recall.items()}
    for name in ("r_precision", "map_at_r", "nmi", "queries", "skipped"):
        assert figures[name] == getattr(expected, name)
    assert figures["unlabelled"] == 0
    assert "leave-one-out" in figures["protocol"]

    text = dscl("evaluate", *options).out
    for name, value in (("recall@3", expected.recall[3]), ("NMI", expected.nmi)):
        assert re.search(rf"^{name} +{100 * value:.1f} %$", text, re.MULTILINE)
    assert "12 queries" in text


def test_evaluate_tells_what_it_left_out(dscl, world):
    add = ("index", "add", "--gallery", world.gallery)
    write_photo(world.root / "alone" / "lada" / "1.jpg", seed=901)
    dscl(*add, world.root / "query.jpg", world.root / "alone")
    text = dscl("evaluate", "--gallery", world.gallery).out
    assert "12 queries, 1 alone in their class, 1 without a label" in text


# Care


def test_check_tells_what_is_wrong_and_its_status_says_so(dscl, world):
    check = ("index", "check", "--gallery", world.gallery)
    assert dscl(*check, "--photos").out == "12 items: 0 problems, 0 notes\n"
    first, second = world.items()[:2]
    with closing(sqlite3.connect(world.gallery / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE items SET path = 'gone.jpg', sha256 = 'f' WHERE id = 1")
        catalog.execute("UPDATE items SET sha256 = (SELECT sha256 FROM items WHERE id = 3)"
                        " WHERE id = 2")  # fmt: skip
    told = dscl(*check)
    assert (told.status, told.err) == (1, "")
    problem, note, counts = told.out.splitlines()
    assert problem.startswith(f"problem  {first.root / 'gone.jpg'} (item 1) cannot be read")
    assert note == "note     items 2, 3 are the same photo, byte for byte."
    assert counts == "12 items: 1 problems, 1 notes"
    listed = dscl(*check, "--photos", "--workers", 1, "--json")
    assert listed.status == 1
    report = json.loads(listed.out)
    assert report["items"] == 12
    assert [(each["code"], each["items"]) for each in report["problems"]] == [
        ("photo_changed", [second.id]),
        ("photo_missing", [first.id]),
    ]
    assert [each["code"] for each in report["notes"]] == ["duplicate_content"]


def test_only_some_of_many_findings_are_printed(dscl, world):
    with closing(sqlite3.connect(world.gallery / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE items SET path = 'gone-' || id || '.jpg'")
    for number in range(12):
        write_photo(world.root / "more" / f"{number}.jpg", seed=900 + number)
    dscl("index", "add", "--gallery", world.gallery, world.root / "more")
    shutil.rmtree(world.root / "more")
    check = ("index", "check", "--gallery", world.gallery)
    lines = dscl(*check).out.splitlines()
    assert len(lines) == 22
    assert lines[-2:] == ["… and 4 more (--json lists all)", "24 items: 24 problems, 0 notes"]
    assert len(json.loads(dscl(*check, "--json").out)["problems"]) == 24


def test_compact_tells_the_space_it_gave_back(dscl, world):
    before = world.items()
    sizes = dscl("index", "compact", "--gallery", world.gallery, "--json").json
    assert sizes["bytes_after"] == dscl("index", "info", "--gallery", world.gallery, "--json").json[
        "bytes"
    ]  # fmt: skip
    assert "MB now" in dscl("index", "compact", "--gallery", world.gallery).out
    assert world.items() == before


def test_a_snapshot_brings_the_gallery_back(dscl, world):
    before = world.items()
    copy, new = world.root / "copy", world.root / "new"
    assert dscl("index", "snapshot", "--gallery", world.gallery, copy).status == 0
    dscl("index", "remove", "--gallery", world.gallery, 1, 2, 3)
    assert dscl("index", "restore", "--gallery", world.gallery, copy).status == 0
    assert world.items() == before
    assert dscl("index", "restore", "--gallery", new, copy).status == 0
    with Gallery.open(new) as gallery:
        assert gallery.items() == before


def test_migrate_changes_the_model_and_tells_where_the_old_gallery_is(dscl, world):
    shutil.copytree(world.gallery, world.root / "second")
    migrate = ("index", "migrate", "--model", world.root / "other-model", "--gallery")
    report = dscl(*migrate, world.gallery, "--json").json
    assert (report["items"], report["embedded"], report["removed"]) == (12, 12, [])
    other = Model.load(world.root / "other-model")
    info = ("index", "info", "--json", "--gallery")
    assert dscl(*info, world.gallery).json["model_sha256"] == other.sha256
    assert dscl(*info, report["former"]).json["model_sha256"] == Model.load(world.model).sha256
    text = dscl(*migrate, world.root / "second").out
    assert text.startswith(f"12 items are of model {other.card.name} now, 0 are gone.")


def test_migrate_goes_without_lost_photos_only_when_asked(dscl, world):
    with closing(sqlite3.connect(world.gallery / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE items SET path = 'gone.jpg', sha256 = 'f' WHERE id = 1")
    migrate = ("index", "migrate", "--model", world.root / "other-model", "--workers", 1)
    refused = dscl(*migrate, "--gallery", world.gallery)
    assert refused.status == 1
    assert "1 photos are gone" in refused.err and "gone.jpg (item 1)" in refused.err
    report = dscl(*migrate, "--gallery", world.gallery, "--skip-missing", "--json").json
    assert report["items"] == 11
    assert [Path(each).name for each in report["removed"]] == ["gone.jpg"]


def test_duplicates_are_listed_as_groups(dscl, world):
    shutil.copyfile(world.items()[0].image, world.root / "copy.jpg")
    dscl("index", "add", "--gallery", world.gallery, world.root / "copy.jpg")
    duplicates = ("index", "duplicates", "--gallery", world.gallery, "--threshold", "0.9999")
    first, *_, last = world.items()
    [group] = dscl(*duplicates, "--json").json
    assert group["ids"] == [first.id, last.id]
    assert group["images"] == [str(first.image), str(last.image)]
    assert group["least"] == pytest.approx(1, abs=1e-5)
    assert dscl(*duplicates).out.splitlines() == [
        "2 photos, similarity from 1.000",
        f"  {first.id:>8}  {first.image}",
        f"  {last.id:>8}  {last.image}",
        "1 groups, 2 photos",
    ]


@pytest.mark.parametrize("form", ["all.parquet", "all"])
def test_what_was_exported_is_imported_into_a_gallery_or_makes_one(dscl, world, form):
    before = world.items()
    target, new = world.root / form, world.root / "new"
    told = dscl("index", "export", "--gallery", world.gallery, target)
    assert told.out == f"12 items in {target}\n"
    dscl("index", "remove", "--gallery", world.gallery, 1, 2)
    again = dscl("index", "import", "--gallery", world.gallery, target)
    assert again.out == "Added 2, unchanged 10\n"
    arguments = ("index", "import", "--gallery", new, target)
    assert dscl(*arguments, "--model", world.model, "--json").json == {"added": 12, "unchanged": 0}
    with Gallery.open(new) as gallery:
        assert gallery.items() == before
    assert sorted(each.image for each in world.items()) == [each.image for each in before]


def test_a_new_gallery_is_not_made_for_vectors_of_another_model(dscl, world):
    dscl("index", "export", "--gallery", world.gallery, world.root / "all")
    arguments = ("index", "import", "--gallery", world.root / "new", world.root / "all")
    refused = dscl(*arguments, "--model", world.root / "other-model")
    assert refused.status == 1
    assert "vectors of model" in refused.err
    assert not (world.root / "new").exists()


# What goes wrong

BAD = [
    ("search --gallery nowhere query.jpg", "nowhere is not a gallery"),
    ("search --gallery gallery -k 0 query.jpg", "k is 0: expected a whole number from 1 to"),
    ("search --gallery gallery -k 1000000000 query.jpg", "k is 1000000000: expected"),
    ("search --gallery gallery broken.jpg", "broken.jpg is no picture"),
    ("search --gallery gallery nowhere.jpg", "nowhere.jpg cannot be read"),
    ("search --gallery gallery empty", "empty cannot be read"),
    ("search --gallery gallery --where '{' query.jpg", "--where is '{', which is not JSON"),
    ("search --gallery gallery --where '[1]' query.jpg", "expected a JSON object"),
    ('search --gallery gallery --where \'{"lable": "a"}\' query.jpg', "do you mean label"),
    ('search --gallery gallery --where \'{"label": {"like": "a"}}\' query.jpg', "no operator"),
    ("search --gallery gallery --threshold 2 query.jpg", "threshold is 2.0: expected a cosine"),
    ("search --gallery gallery --group-by colour query.jpg", "there is no field"),
    ("search --gallery gallery --offset -1 query.jpg", "offset is -1: expected a whole number"),
    ("evaluate --gallery gallery --k 1,0", "k is 0: expected a whole number from 1 to"),
    ("evaluate --gallery gallery --k 1,x", "'1,x': expected whole numbers by commas"),
    ("evaluate --gallery gallery --k ''", "'': expected whole numbers by commas"),
    ("evaluate --gallery empty", "empty is not a gallery"),
    ("index info --gallery nowhere", "nowhere is not a gallery"),
    ("index build --model model --gallery gallery --images nowhere", "nowhere does not exist"),
    ("index build --model model --gallery new --images empty", "empty holds no image"),
    ("index build --model empty --gallery new --images query.jpg", "is not a model folder"),
    (
        "index build --model other-model --gallery gallery --images query.jpg",
        "was built with model",
    ),
    ("index build --model model --gallery other-model --images query.jpg", "is not a gallery"),
    ("index add --gallery gallery query.jpg nowhere", "nowhere does not exist"),
    ("index add --gallery gallery no-path.csv", "no column `path`"),
    ("index add --gallery nowhere query.jpg", "nowhere is not a gallery"),
    ("index add --gallery gallery --sku A query.jpg second.jpg", "these are 2 photos"),
    ("index add --gallery gallery twice.csv", "line 3: sku A is on line 2 already"),
    ("index build --model model --gallery new --images query.jpg --recall 2", "recall"),
    ("index build --model model --gallery new --images query.jpg --precision int8", "no int8"),
    (
        "index build --model model --gallery gallery --images query.jpg --precision bf16",
        "holds vectors in fp32, not in bf16",
    ),
    ("index tune --gallery gallery --recall 0", "recall"),
    ("index update --gallery gallery 1", "nothing to update"),
    ("index update --gallery gallery 99 --label a", "no item with id 99"),
    ("index update --gallery gallery sku:A --label a", "not in the gallery: sku:A"),
    ("index update --gallery gallery 1 --attributes '[]'", "expected a JSON object"),
    ("index update --gallery gallery 1 --attributes '{\"a\": [1]}'", "of type list"),
    ("index update --gallery gallery 1 --attributes '{\"id\": 1}'", "be called 'id'"),
    ("index remove --gallery gallery sku:A", "not in the gallery: sku:A"),
    ("index check --gallery nowhere", "nowhere is not a gallery"),
    ("index compact --gallery nowhere", "nowhere is not a gallery"),
    ("index snapshot --gallery gallery model", "model exists already"),
    ("index snapshot --gallery nowhere copy", "nowhere is not a gallery"),
    ("index restore --gallery gallery model", "is not a gallery"),
    ("index restore --gallery gallery other-gallery", "vectors of model"),
    ("index migrate --gallery gallery --model model", "already: there is nothing to migrate"),
    ("index migrate --gallery gallery --model empty", "is not a model folder"),
    ("index duplicates --gallery gallery --threshold 2", "threshold is 2.0"),
    ("index export --gallery gallery model", "model exists already"),
    ("index export --gallery nowhere out", "nowhere is not a gallery"),
    ("index import --gallery gallery nowhere", "nowhere does not exist"),
    ("index import --gallery gallery query.jpg", "cannot be read as Parquet"),
    ("index import --gallery gallery model", "is no export that can be read"),
    ("index import --gallery new query.jpg", "new does not exist: name its --model"),
    ("index import --gallery new --model model query.jpg", "cannot be read as Parquet"),
    ("index migrate --gallery nowhere --model other-model", "nowhere is not a gallery"),
    ("index duplicates --gallery nowhere", "nowhere is not a gallery"),
    ("index info --gallery newer", "newer has gallery format 99; this release reads 2"),
    ("index remove --gallery gallery 1 99", "no item with id 99"),
    (f"index remove --gallery gallery 1 {2**63}", f"no item with id {2**63}"),
    (f"index remove --gallery gallery 1 {'9' * 5000}", "not in the gallery: 9999"),
    ("index remove --gallery gallery 1 ²", "not in the gallery: ²"),
    ("index remove --gallery gallery 1 query.jpg", "not in the gallery: query.jpg"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_that_names_it_and_changes_nothing(
    dscl, world, monkeypatch, command, message
):
    monkeypatch.chdir(world.root)
    before = world.stored()
    result = dscl(*shlex.split(command))
    assert result.status == 1
    assert result.out == ""
    assert result.err.startswith("Error: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert world.stored() == before


def test_a_gallery_with_its_model_swapped_is_refused_by_every_command(dscl, world):
    shutil.rmtree(world.gallery / "model")
    shutil.copytree(world.root / "other-model", world.gallery / "model")
    before = world.stored()
    query = world.root / "query.jpg"
    for arguments in (
        ["search", query],
        ["evaluate"],
        ["index", "info"],
        ["index", "add", query],
        ["index", "remove", 1],
        ["index", "build", "--model", world.model, "--images", query],
    ):
        result = dscl(*arguments, "--gallery", world.gallery)
        assert (result.status, result.out) == (1, "")
        assert "was built with model" in result.err
    assert world.stored() == before


def test_while_a_gallery_is_written_it_is_searched_but_not_changed(dscl, world):
    query = world.root / "query.jpg"
    with Gallery.open(world.gallery, writable=True):
        assert dscl("search", "--gallery", world.gallery, query).status == 0
        refused = dscl("index", "add", "--gallery", world.gallery, query)
    assert refused.status == 1
    assert "is being changed by process" in refused.err
    assert len(world.items()) == 12


def test_the_process_exits_with_1_and_one_line(world):
    dscl = [sys.executable, "-c", "from service.cli import main; main()"]
    result = subprocess.run(
        [*dscl, "search", "--gallery", world.gallery, world.root / "broken.jpg"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


SLOWLY = """
import signal, sys
# Tests that run in the background hand on that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from index.model import Model
embed = Model.embed
def told(self, pixels):
    print("embedding", flush=True)
    sys.stdin.readline()  # until it may
    return embed(self, pixels)
Model.embed = told
from service.cli import main
main()
"""


def allow_one(process):
    with contextlib.suppress(BrokenPipeError):  # it has ended
        process.stdin.write("\n")
        process.stdin.flush()


def test_ctrl_c_is_one_line_that_says_how_to_go_on(world):
    photos = write_class_folders(world.root / "many", classes=10, per_class=60)
    arguments = ["--model", world.model, "--images", photos, "--gallery", world.root / "new"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "index", "build", *arguments, "--workers", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(70):  # more than one batch
        assert process.stdout.readline() == "embedding\n"
        allow_one(process)
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        allow_one(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "Stopped. What was embedded is stored; the same command goes on.\n"
    with Gallery.open(world.root / "new") as gallery:
        stored = len(gallery)
    assert 64 <= stored < 600 and stored % 64 == 0


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # importing it fails
from service.cli import dscl
for arguments in json.loads(sys.argv[1]):
    dscl.main(arguments, standalone_mode=False)
assert not any(name.split(".")[0] == "training" for name in sys.modules)
"""


def test_no_command_of_the_index_needs_torch_or_training(world):
    query, gallery = str(world.root / "query.jpg"), ["--gallery", str(world.root / "new")]
    commands = [
        ["index", "build", "--model", str(world.model), "--images", str(world.photos), *gallery],
        ["index", "add", query, *gallery],
        ["index", "remove", query, *gallery],
        ["index", "info", *gallery],
        ["search", query, *gallery],
        ["evaluate", "--clustering", *gallery],
        ["index", "update", "--label", "a", "1", *gallery],
        ["index", "tune", "--recall", "0.9", *gallery],
        ["index", "check", *gallery],
        ["index", "duplicates", *gallery],
        ["index", "export", str(world.root / "all.parquet"), *gallery],
        ["index", "import", str(world.root / "all.parquet"), *gallery],
        ["index", "snapshot", str(world.root / "copy"), *gallery],
        ["index", "restore", str(world.root / "copy"), *gallery],
        ["index", "compact", *gallery],
        ["index", "migrate", "--model", str(world.root / "other-model"), *gallery],
    ]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_map_is_drawn_and_kept_with_the_gallery(dscl, world):
    drawn = dscl("index", "map", "--gallery", world.gallery, "--json").json
    with Gallery.open(world.gallery) as gallery:
        kept = gallery.map()
        assert kept is not None
        assert kept.ids.tolist() == gallery.ids().tolist()
    assert drawn["points"] == drawn["items"] == len(kept.ids)
    told = dscl("index", "map", "--gallery", world.gallery, "--anew").out
    assert f"{drawn['items']} of {drawn['items']} items are on the map" in told
