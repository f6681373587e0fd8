from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
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
        """All that lasts of every folder; the lock file names its last owner."""
        return {
            path: path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name != "writer.lock"
        }


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("template")
    photos = write_class_folders(root / "photos")
    with Gallery.create(root / "gallery", make_model_folder(root / "model")) as gallery:
        build(gallery, list_photos(photos), workers=1)
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
    make_model_folder(tmp_path / "other-model", seed=1)
    return World(tmp_path, tmp_path / "model", template.resolve() / "photos", tmp_path / "gallery")


# index


def test_build_makes_a_gallery_and_run_again_continues_it(dscl, world):
    arguments = ("index", "build", "--model", world.model, "--images", world.photos)
    new = world.root / "new"
    first = dscl(*arguments, "--gallery", new)
    assert (first.status, first.err) == (0, "")
    assert first.out == f"Added 12, unchanged 0, skipped 0: 12 items in {new}\n"
    again = dscl(*arguments, "--gallery", new, "--json").json
    assert again == {"added": 0, "unchanged": 12, "skipped": [], "items": 12}


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
    assert {**facts, "bytes": 0} == {
        "path": str(world.gallery),
        "items": 12,
        "labelled": 12,
        "labels": 3,
        "dim": card.dim,
        "model": card.name,
        "model_sha256": card.sha256,
        "bytes": 0,
    }
    text = dscl("index", "info", "--gallery", world.gallery).out
    assert "12 (12 with one of 3 labels)" in text
    assert card.name in text


# search


def test_search_finds_a_photo_by_itself_first(dscl, world):
    for each in world.items()[::5]:
        result = dscl("search", "--gallery", world.gallery, "-k", 3, "--json", each.image).json
        assert result["query"] == str(each.image)
        best, *others = result["results"]
        assert best == {
            "id": each.id,
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


# What goes wrong

BAD = [
    ("search --gallery nowhere query.jpg", "nowhere is not a gallery"),
    ("search --gallery gallery -k 0 query.jpg", "k is 0: expected a whole number from 1 to"),
    ("search --gallery gallery -k 1000000000 query.jpg", "k is 1000000000: expected"),
    ("search --gallery gallery broken.jpg", "broken.jpg is no picture"),
    ("search --gallery gallery nowhere.jpg", "nowhere.jpg cannot be read"),
    ("search --gallery gallery empty", "empty cannot be read"),
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
    ]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
