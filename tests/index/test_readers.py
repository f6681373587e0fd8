"""Several processes read while one writes: each sees whole states, soon, and never an older one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from index import Gallery, NewItem
from tests.index.gallery_items import DIM, item, unit
from tests.tiny_model import make_model_folder

REPOSITORY = Path(__file__).parents[2]

#: Items of a generation. One change replaces all of one by all of the next.
SIZE = 12

#: At least so many generations, and for as long.
GENERATIONS = 150
SECONDS = 4.0

PALETTE = unit(5, seed=4)


def generation(number: int) -> list[NewItem]:
    return [
        item(
            f"{number}-{i}.jpg",
            PALETTE[(i + number) % len(PALETTE)],
            label=f"half-{i % 2}",
            attributes={"generation": number},
            sku=f"sku-{i}",
        )
        for i in range(SIZE)
    ]


def start(call: str, path: Path) -> subprocess.Popen[str]:
    """``call`` of this module, with ``path``, in a process of its own."""
    program = (
        f"import sys, pathlib; from {__name__} import {call}; {call}(pathlib.Path(sys.argv[1]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# In the writer's process


def write(path: Path) -> None:
    """A generation after the other, some with a new base built beside; tells each when it is in."""
    with Gallery.open(path, writable=True) as gallery:
        number, until = 0, time.monotonic() + SECONDS
        while number < GENERATIONS or time.monotonic() < until:
            number += 1
            ids = gallery.upsert(generation(number))
            print(json.dumps([number, ids]), flush=True)
            if number % 7 == 0:
                building = threading.Thread(target=gallery.rebuild)
                building.start()
                ids = gallery.upsert(generation(number := number + 1))
                print(json.dumps([number, ids]), flush=True)
                building.join()


# In the readers' processes


def read(path: Path) -> None:
    """Search in two threads until the input ends, then tell how many states were seen."""
    done = threading.Event()
    seen: list[set[int]] = []
    failures: list[BaseException] = []

    def search(gallery: Gallery) -> None:
        firsts = [0]
        try:
            while not done.is_set():
                firsts.append(see_a_whole_state(gallery))
                assert firsts[-1] >= firsts[-2], "an older state after a newer one"
        except BaseException as error:
            failures.append(error)
        seen.append(set(firsts[1:]))

    with Gallery.open(path) as gallery:
        threads = [threading.Thread(target=search, args=(gallery,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        print("reading", flush=True)
        sys.stdin.read()
        done.set()
        for thread in threads:
            thread.join()
        bases = gallery.info().index.base_seq
    if failures:
        raise failures[0]
    print(json.dumps([len(each) for each in seen] + [bases]))


def see_a_whole_state(gallery: Gallery) -> int:
    """The first id of the generation that searches find now."""
    found = sorted(gallery.search(PALETTE[0], 100).ids[0].tolist())
    assert found == list(range(found[0], found[0] + SIZE)), found
    half = sorted(gallery.search(PALETTE[1], 100, where={"label": "half-0"}).ids[0].tolist())
    assert half == list(range(half[0], half[0] + SIZE, 2)), half
    assert half[0] >= found[0]
    groups = gallery.search(PALETTE[2], 100, group_by="label").ids[0].tolist()
    assert len(groups) == 2, groups
    assert abs(groups[0] - groups[1]) < SIZE
    held = gallery.items(limit=100)
    assert len(held) == SIZE
    assert len({each.attributes["generation"] for each in held}) == 1
    assert held[0].id >= half[0]
    return found[0]


# Here


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "gallery"
    with Gallery.create(path, make_model_folder(tmp_path / "model", dim=DIM)) as gallery:
        gallery.add(generation(0))
    return path


def test_readers_in_other_processes_see_whole_states_in_their_order(path):
    readers = [start("read", path) for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
    writer = start("write", path)
    assert writer.stdout is not None
    with Gallery.open(path) as own:
        for line in writer.stdout:
            number, ids = json.loads(line)
            # Without reopening, and not only within a second: at the next search.
            assert own.search(PALETTE[0], SIZE).ids.min() >= ids[0]
            [first] = own.items(limit=1)
            assert first.attributes["generation"] >= number
    assert writer.wait() == 0
    for reader in readers:
        told, _ = reader.communicate("")
        assert reader.returncode == 0
        *states, base_seq = json.loads(told)
        assert all(each > 5 for each in states), states
        assert base_seq > 1  # it went on to newer files meanwhile
