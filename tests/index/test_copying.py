from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from click.testing import CliRunner

from index import Gallery, Model
from index.address import parse_address
from index.copying import copy_gallery
from index.errors import GalleryError, ModelMismatchError
from index.gallery_commands import gallery as gallery_command
from index.items import Item
from index.scan import PAGE
from service.photo_store import PhotoStore
from tests.index.gallery_items import DIM, brute_force, item, items, unit
from tests.index.gallery_kinds import MILVUS_KINDS, SERVER, drop, lite
from tests.tiny_model import make_model_folder

#: As ``python -c``: a copy in a process of its own, which says so after each step.
COPY = """
import sys
from index.address import parse_address
from index.copying import copy_gallery
copy_gallery(parse_address(sys.argv[1]), parse_address(sys.argv[2]),
             progress=lambda count, total: print(count, flush=True))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture(params=MILVUS_KINDS)
def milvus(request, tmp_path) -> Iterator[str]:
    """An address where nothing is yet."""
    if request.param == "server":
        url = f"milvus://{SERVER}/copy_{secrets.token_hex(6)}"
        yield url
        drop(url)
    else:
        with lite(tmp_path) as file:
            yield f"milvus://{file}/cars"


def described(gallery: Gallery) -> list[Item]:
    return [each for page in gallery.scan() for each in page]


def contents(gallery: Gallery) -> tuple[list[Item], np.ndarray]:
    held = described(gallery)
    return held, gallery.vectors([each.id for each in held])


def test_a_copy_there_and_back_is_the_same_gallery(tmp_path, model, milvus):
    vectors = unit(PAGE + 50)
    vectors[7] = vectors[3]
    with Gallery.create(tmp_path / "from", model, target_recall=0.9) as origin:
        origin.add(
            [
                item(
                    f"é {number}'.jpg",
                    vector,
                    label=None if number % 7 == 0 else f"label {number % 5}",
                    attributes={
                        "year": None if number % 3 == 0 else 1990 + number % 30,
                        "price": number + 0.25,
                        "sold": number % 2 == 0,
                    },
                    sku=f'sku "{number}"' if number % 4 else None,
                )
                for number, vector in enumerate(vectors)
            ]
        )
        origin.remove([1, 5, PAGE])
        held, kept = contents(origin)
        ids = [each.id for each in held]
        there = copy_gallery(origin.path, parse_address(milvus))
        back = copy_gallery(parse_address(milvus), tmp_path / "back")
        assert (there.items, there.copied, back.copied) == (len(held), len(held), len(held))
        for place in (milvus, tmp_path / "back"):
            with Gallery.open(place) as copy:
                assert described(copy) == held
                assert (copy.vectors(ids) == kept).all()
                assert copy.fields() == origin.fields()
                assert copy.info().index.target_recall == 0.9
                expected = brute_force(dict(zip(ids, kept, strict=True)), vectors[3], 10)
                assert copy.search(vectors[3], 10).ids[0].tolist() == expected
    with Gallery.open(tmp_path / "back", writable=True) as back_again:
        [new] = back_again.add(items(unit(1, seed=9), prefix="new"))
        assert new > max(ids)


def test_a_copy_that_was_killed_goes_on_where_it_was(tmp_path, model, milvus):
    with Gallery.create(tmp_path / "from", model) as origin:
        for start in range(4):
            origin.add(items(unit(PAGE, seed=start), prefix=f"{start}-"))
        held, vectors = contents(origin)
    command = [sys.executable, "-c", COPY, str(tmp_path / "from"), milvus]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(3)]  # 0, then two pages
        process.send_signal(signal.SIGKILL)
    assert told[1:] == [PAGE, PAGE]
    counts: list[int] = []
    report = copy_gallery(
        tmp_path / "from", parse_address(milvus), progress=lambda count, total: counts.append(count)
    )
    assert 2 * PAGE <= counts[0] < len(held)
    assert (report.items, report.copied) == (len(held), len(held) - counts[0])
    with Gallery.open(milvus) as copy:
        found, copied = contents(copy)
    assert found == held
    assert (copied == vectors).all()
    assert copy_gallery(tmp_path / "from", parse_address(milvus)).copied == 0


def test_photos_that_a_gallery_keeps_go_with_it(tmp_path, model, milvus):
    with Gallery.create(tmp_path / "from", model) as origin:
        store = PhotoStore.of(origin)
        stored = [store.put(b"one photo"), store.put(b"another")]
        vectors = unit(3)
        for photo, vector in zip(stored, vectors, strict=False):
            origin.add([item(photo.path, vector, root=store.folder)])
        outside = tmp_path / "outside.jpg"
        outside.write_bytes(b"a third")
        origin.add([item(outside.name, vectors[2], root=tmp_path)])
        (store.folder / stored[1].path).unlink()

    with pytest.raises(GalleryError, match=r"no store for them: name one .*\?store=FOLDER"):
        copy_gallery(tmp_path / "from", parse_address(f"{milvus}_without"))

    there = copy_gallery(tmp_path / "from", parse_address(f"{milvus}?store={tmp_path / 'store'}"))
    assert (there.items, there.photos, there.missing_photos) == (3, 1, 1)
    # The store is remembered.
    back = copy_gallery(parse_address(milvus), tmp_path / "back")
    assert (back.items, back.photos, back.missing_photos) == (3, 1, 1)
    for place, folder in ((milvus, tmp_path / "store"), (tmp_path / "back", tmp_path / "back")):
        with Gallery.open(place) as copy:
            own, lost, elsewhere = described(copy)
            assert own.image.read_bytes() == b"one photo"
            assert own.root == lost.root == folder / "photos"
            assert elsewhere.image == outside
            assert copy.ids_by_path([own.image]) == {own.image: own.id}


def test_what_is_no_unfinished_copy_is_left_alone(tmp_path, model):
    with Gallery.create(tmp_path / "from", model) as origin:
        origin.add(items(unit(3)))
    with Gallery.create(tmp_path / "other", model) as other:
        other.add(items(unit(5, seed=2)))
        before = described(other)
    with pytest.raises(GalleryError, match=r"holds 2 items that .* does not \(ids 4, 5\)"):
        copy_gallery(tmp_path / "from", tmp_path / "other")
    with Gallery.open(tmp_path / "other") as other:
        assert described(other) == before
    stranger = Model.load(make_model_folder(tmp_path / "stranger", dim=DIM, seed=5))
    with Gallery.create(tmp_path / "of another model", stranger):
        pass
    with pytest.raises(ModelMismatchError):
        copy_gallery(tmp_path / "from", tmp_path / "of another model")


def test_items_removed_while_their_page_is_copied_are_left_out(tmp_path, model, monkeypatch):
    with Gallery.create(tmp_path / "from", model) as origin:
        ids = origin.add(items(unit(20)))
        vectors = Gallery.vectors

        def removing(self: Gallery, wanted):
            if not self._writable and len(origin) == len(ids):
                origin.remove(ids[3:6])
            return vectors(self, wanted)

        monkeypatch.setattr(Gallery, "vectors", removing)
        report = copy_gallery(tmp_path / "from", tmp_path / "to")
        assert report.copied == len(ids) - 3
        with Gallery.open(tmp_path / "to") as copy:
            assert copy.ids().tolist() == [each for each in ids if each not in ids[3:6]]


def test_the_command_says_what_it_did_and_goes_on(tmp_path, model):
    with Gallery.create(tmp_path / "from", model) as origin:
        origin.add(items(unit(30)))
    arguments = ["copy", str(tmp_path / "from"), str(tmp_path / "to")]
    first = CliRunner().invoke(gallery_command, arguments)
    assert first.exit_code == 0, first.output
    assert f"Copied 30 items and 0 photos: 30 items in {tmp_path / 'to'}" in first.output
    again = CliRunner().invoke(gallery_command, [*arguments, "--json"])
    assert '"copied": 0' in again.output


def test_ids_are_given_to_a_folder_only_above_those_it_had(tmp_path, model):
    [first, second] = items(unit(2))
    with Gallery.create(tmp_path / "gallery", model) as gallery:
        gallery.put([(2**52, first)])
        for ids in ([1], [2**52], [2**53, 2**53], [2**60, 2**55]):
            with pytest.raises(ValueError, match=r"ascend and be above"):
                gallery.put([(each, second) for each in ids])
        assert gallery.ids().tolist() == [2**52]
        assert gallery.add([second]) == [2**52 + 1]
