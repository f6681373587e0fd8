"""Writers to be killed: for each line ``PATH SEED`` this process forks one that never ends.

Starting Python and importing takes a second, forking takes milliseconds. A child that is forked
after FAISS or ONNX Runtime have run may hang, so this process only imports them.

Everything comes out of one pipe, a JSON list a line: ``["start", pid]`` from a writer, then
``["begin", change]`` for each of its changes and ``["done", ids]`` once it is acknowledged; and
from here, when the writer is dead, ``["end", status]``.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from index import Gallery
from tests.index.gallery_items import DIM, item, unit

#: Few and different directions, so that ties are common and only ties are close.
PALETTE = unit(12, seed=3)

NAMES = [f"{n}.jpg" for n in range(60)]
LABELS = [None, "audi", "bmw", "fiat"]
SKUS = [f"sku-{n}" for n in range(10)]


def say(*words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")  # short enough to be whole or absent


def new_items(change: dict[str, Any]) -> list[Any]:
    return [
        item(name, PALETTE[direction], label=label, attributes={"year": year}, sku=sku)
        for name, direction, label, year, sku in change["items"]
    ]


def next_change(gallery: Gallery, chance: random.Random) -> dict[str, Any]:
    held = gallery.items(limit=10**6)
    do = chance.choice(["add", "add", "upsert", "upsert", "update", "remove", "rebuild", "rebuild"])
    if do in ("update", "remove") and not held:
        do = "add"
    if do in ("add", "upsert"):
        names = chance.sample(NAMES, chance.randint(1, 8))
        skus = chance.sample(SKUS, 3) if do == "upsert" else []
        padded = [*skus, *[None] * len(names)]
        chance.shuffle(padded)
        what = [
            [name, chance.randrange(len(PALETTE)), chance.choice(LABELS), chance.randint(1, 9), sku]
            for name, sku in zip(names, padded, strict=False)
        ]
        return {"do": do, "items": what}
    if do == "update":
        return {
            "do": do,
            "id": chance.choice(held).id,
            "label": chance.choice(LABELS),
            "year": chance.choice([None, *range(10, 20)]),
        }
    if do == "remove":
        few = min(len(held), 1 if chance.random() < 0.7 else len(held) // 2 + 1)
        return {"do": do, "ids": [each.id for each in chance.sample(held, few)]}
    return {"do": do, "beside": chance.random() < 0.5}


def make(gallery: Gallery, change: dict[str, Any]) -> list[int]:
    match change["do"]:
        case "add":
            return gallery.add(new_items(change))
        case "upsert":
            return gallery.upsert(new_items(change))
        case "update":
            attributes = {"year": change["year"]}
            gallery.update(change["id"], label=change["label"], attributes=attributes)
        case "remove":
            gallery.remove(change["ids"])
        case "rebuild" if change["beside"]:
            threading.Thread(target=gallery.rebuild).start()
        case "rebuild":
            gallery.rebuild()
    return []


def write(path: Path, seed: int) -> None:
    threading.excepthook = lambda _: os._exit(70)  # a failure beside is one too
    say("start", os.getpid())
    chance = random.Random(seed)
    with Gallery.open(path, writable=True) as gallery:
        assert gallery.model.card.dim == DIM
        while True:
            change = next_change(gallery, chance)
            say("begin", change)
            say("done", make(gallery, change))


def main() -> None:
    for line in sys.stdin:
        path, seed = line.rsplit(maxsplit=1)
        child = os.fork()
        if child == 0:
            try:
                write(Path(path), int(seed))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        say("end", status)


if __name__ == "__main__":
    main()
