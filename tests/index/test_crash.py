"""Whatever happens to the process, the disk or the files: what was acknowledged is there.

The writers are real processes, killed by SIGKILL at random moments; ``--kills`` says how often.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from index import Gallery, Model
from index.catalog import Catalog
from index.errors import GalleryError
from index.lock import LOCK_FILE
from tests.index.gallery_items import DIM, brute_force, item, items, unit
from tests.index.writer_process import PALETTE
from tests.tiny_model import make_model_folder

REPOSITORY = Path(__file__).parents[2]

#: One thread each, so that a process can be forked after its imports.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


# Killed writers


@dataclass(frozen=True)
class Held:
    """An item as a gallery holds it."""

    id: int
    direction: int
    label: str | None
    year: int | None
    sku: str | None


Contents = dict[str, Held]


def after(before: Contents, change: dict[str, Any], ids: list[int]) -> Contents:
    """The contents after a change that gave these ids."""
    held = dict(before)
    match change["do"]:
        case "add" | "upsert":
            skus = {sku for *_, sku in change["items"]} - {None}
            held = {name: each for name, each in held.items() if each.sku not in skus}
            for item_id, (name, *known) in zip(ids, change["items"], strict=True):
                held[name] = Held(item_id, *known)
        case "update":
            [name] = [name for name, each in held.items() if each.id == change["id"]]
            held[name] = replace(held[name], label=change["label"], year=change["year"])
        case "remove":
            held = {name: each for name, each in held.items() if each.id not in change["ids"]}
    return held


def contents(gallery: Gallery) -> Contents:
    held = gallery.items(limit=10**6)
    vectors = gallery.vectors([each.id for each in held])
    directions = [int(np.flatnonzero((vector == PALETTE).all(1))[0]) for vector in vectors]
    return {
        each.path: Held(
            each.id, direction, each.label, each.attributes.get("year"), each.external_id
        )
        for each, direction in zip(held, directions, strict=True)
    }


def assert_searched_as_if_built_anew(gallery: Gallery, held: Contents) -> None:
    assert len(gallery) == len(held)
    stored = {each.id: PALETTE[each.direction] for each in held.values()}
    young = {each.id for each in held.values() if each.year is not None and each.year >= 5}
    for query in PALETTE[::5]:
        assert gallery.search(query, 100).ids[0].tolist() == brute_force(stored, query, 100)
        found = gallery.search(query, 100, where={"year": {"gte": 5}}).ids[0].tolist()
        assert found == [i for i in brute_force(stored, query, 100) if i in young]


class Writers:
    """The process of ``writer_process``, and what the writers it forks tell."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.index.writer_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=ENVIRONMENT,
        )

    def run(self, path: Path, seed: int, chance: random.Random) -> list[list[Any]]:
        """All that a writer told before it was killed at a random moment."""
        stdin, stdout = self._pipes()
        stdin.write(f"{path} {seed}\n")
        stdin.flush()
        told = [json.loads(stdout.readline())]
        pid = told[0][1]
        if chance.random() < 0.2:  # while it opens the gallery
            time.sleep(chance.uniform(0, 0.03))
        else:
            told += [json.loads(stdout.readline()) for _ in range(chance.randint(1, 20))]
            time.sleep(chance.uniform(0, 0.006))  # anywhere within a change
        assert all(word != "end" for word, _ in told), "the writer failed by itself"
        os.kill(pid, signal.SIGKILL)
        while (line := json.loads(stdout.readline()))[0] != "end":
            told.append(line)
        assert line[1] == signal.SIGKILL
        return told

    def close(self) -> None:
        stdin, stdout = self._pipes()
        stdin.close()
        stdout.close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@pytest.fixture
def writers() -> Iterator[Writers]:
    writers = Writers()
    yield writers
    writers.close()


def test_what_was_acknowledged_survives_a_kill_at_any_moment(model, tmp_path, writers, request):
    kills = request.config.getoption("--kills")
    path = tmp_path / "gallery"
    with Gallery.create(path, model) as gallery:
        # From now on there is a field `year`.
        [first] = gallery.add([item("first.jpg", PALETTE[0], attributes={"year": 1})])
        gallery.remove([first])
    chance = random.Random(0)
    known: Contents = {}
    last_id = first
    acknowledged = survived = 0
    for seed in range(kills):
        told = writers.run(path, seed, chance)
        under_way: dict[str, Any] | None = None
        for word, what in told:
            if word == "begin":
                under_way = what
            elif word == "done":
                assert under_way is not None
                assert all(item_id > last_id for item_id in what)
                last_id = max([last_id, *what])
                known = after(known, under_way, what)
                under_way = None
                acknowledged += 1

        with Gallery.open(path, writable=seed % 2 == 0) as gallery:
            held = contents(gallery)
            assert_searched_as_if_built_anew(gallery, held)
        if held != known:
            # Then what was under way is there, and wholly.
            assert under_way is not None
            new = [held[name].id for name, *_ in under_way.get("items", []) if name in held]
            assert held == after(known, under_way, new)
            assert all(item_id > last_id for item_id in new)
            assert new == sorted(new)
            last_id = max([last_id, *new])
            survived += 1
        known = held
    catalog = Catalog(path)
    assert catalog.integrity() == []
    catalog.close()
    assert acknowledged > 3 * kills
    if kills >= 200:
        assert survived > 0  # some kills came between the commit and its acknowledgement
    # What the dead left behind is gone with the next base.
    with Gallery.open(path, writable=True) as gallery:
        gallery.rebuild()
    assert len(list((path / "vectors").iterdir())) == 2


def test_the_lock_of_a_killed_writer_is_free(model, tmp_path, writers):
    path = tmp_path / "gallery"
    Gallery.create(path, model).close()
    writers.run(path, 0, random.Random(1))
    assert (path / LOCK_FILE).read_text() != ""  # it still names the dead
    Gallery.open(path, writable=True).close()


# Disks


def on_a_disk_of_its_own(folder: Path, mount: str, call: str) -> None:
    """Run ``call`` of this module with ``folder`` in another process, after ``mount``.

    Mounts are seen by that process alone. Root can do that, and users where the kernel lets them.
    """
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        possible = subprocess.run([*unshare, f"{mount} && true", "sh", str(folder)],
                                  capture_output=True, text=True)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no `unshare` here: a disk cannot be mounted for the test")
    if possible.returncode:
        pytest.skip(f"a disk cannot be mounted for the test: {possible.stderr.strip()}")
    program = (
        f"import sys, pathlib; from {__name__} import {call}; {call}(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [
            *unshare,
            f'{mount} && exec "$2" -c "$3" "$1"',
            "sh",
            str(folder),
            sys.executable,
            program,
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_refuses_changes_and_loses_nothing(tmp_path):
    on_a_disk_of_its_own(tmp_path, 'mount -t tmpfs -o size=8m tmpfs "$1"', "fill_the_disk")


def fill_the_disk(disk: Path) -> None:
    make_model_folder(disk / "model", dim=DIM)
    (disk / "reserve").write_bytes(bytes(2 * 2**20))
    path = disk / "gallery"
    stored: dict[int, np.ndarray] = {}
    with Gallery.create(path, disk / "model") as gallery:
        for seed in range(100_000):
            vectors = unit(400, seed)
            try:
                ids = gallery.add(items(vectors, prefix=f"{seed}-"))
            except GalleryError as error:
                assert "Nothing was" in str(error)
                break
            stored |= dict(zip(ids, vectors, strict=True))
        assert len(stored) > 400
        fill(disk / "filler")
        assert_holds(gallery, stored)
        with pytest.raises(GalleryError, match="cannot be written"):
            gallery.rebuild()
        with pytest.raises(GalleryError):
            gallery.remove([min(stored)])
        assert_holds(gallery, stored)
        # Of what did not fit nothing is left lying about.
        assert {each.name[:4] for each in (path / "vectors").iterdir()} <= {"CURR", "base"}
    fill(disk / "filler")  # what closing has given back
    with Gallery.open(path) as reader:
        assert_holds(reader, stored)
    # Given room, all goes on.
    (disk / "reserve").unlink()
    with Gallery.open(path, writable=True) as again:
        assert_holds(again, stored)
        gone = sorted(stored)[:100]
        again.remove(gone)
        for item_id in gone:
            del stored[item_id]
        again.rebuild()
        assert_holds(again, stored)


def fill(file: Path) -> None:
    """Write until not a byte more fits."""
    size = 2**16
    with file.open("ab", buffering=0) as filler:
        while size:
            try:
                filler.write(bytes(size))
            except OSError:
                size //= 2


def assert_holds(gallery: Gallery, stored: dict[int, np.ndarray]) -> None:
    assert len(gallery) == gallery.count() == len(stored)
    for query in unit(2, seed=999_999):
        assert gallery.search(query, 10).ids[0].tolist() == brute_force(stored, query, 10)


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'


def test_a_read_only_gallery_is_searched_and_not_changed(model, tmp_path):
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        gallery.add(items(unit(50)))
        gallery.rebuild()
        gallery.add(items(unit(10, seed=1), prefix="more-"))
    on_a_disk_of_its_own(tmp_path, READ_ONLY, "use_a_read_only_gallery")


def test_so_is_one_whose_writer_was_killed(model, tmp_path, writers):
    path = tmp_path / "gallery"
    with Gallery.create(path, model) as gallery:
        gallery.add([item("first.jpg", PALETTE[0], attributes={"year": 1})])
    writers.run(path, 1, random.Random(3))
    on_a_disk_of_its_own(tmp_path, READ_ONLY, "use_a_read_only_gallery")


def use_a_read_only_gallery(disk: Path) -> None:
    path = disk / "gallery"
    with pytest.raises(OSError, match="Read-only"):
        (path / "file").write_text("")
    with Gallery.open(path) as reader:
        held = reader.items(limit=1000)
        ids = [each.id for each in held]
        stored = dict(zip(ids, reader.vectors(ids), strict=True))
        assert len(stored) > 0
        assert_holds(reader, stored)
        reader.settle()
        with pytest.raises(GalleryError, match=f"{LOCK_FILE} cannot be written to"):
            Gallery.open(path, writable=True)
