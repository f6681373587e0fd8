"""What every gallery does, wherever it is: a folder, a dict, Milvus Lite, a Milvus server.

``OracleGallery``, a dict searched by loops, is held against the same tests, so that it may stand
for what is right where what is right takes many lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from index import Gallery, Model, NewItem
from index.errors import (
    AttributeTypeError,
    DuplicateExternalIdError,
    FilterError,
    GalleryError,
    InvalidArgumentError,
    ItemNotFoundError,
    ModelMismatchError,
)
from index.gallery import MAX_K, expect_model, is_there
from index.items import KEEP
from tests.index.filter_language import (
    FIELDS,
    FILTERS,
    INJECTION,
    LADDER,
    ODD_NAME,
    ladder_filters,
    near_ids,
    rows,
)
from tests.index.gallery_items import DIM, ROOT, item, items, unit
from tests.index.gallery_kinds import KINDS, empty, place_of
from tests.index.oracle_gallery import Held, OracleGallery
from tests.tiny_model import make_model_folder

#: Texts that a quoting or an escaping too few or too many would change.
ODD_TEXTS = [
    "", " ", "a b", "it's", 'a "b"', "back\\slash", "\\", '\\"', "\\n", "a\nb", "\r\n", "\t",
    "\x01", "\x1f\x7f", "\b\f", "\u2028", "%", "_", "日本", "é", "e\u0301", "😀", "\uffff", "null",
    "true", "1", "{}", "[]", "$meta", "${a}", "{a}", INJECTION, "x" * 5000,
]  # fmt: skip

ODD_NUMBERS = [
    0, -1, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63) + 1, 0.1, -0.5, 1.0, 1e300,
    5e-324, 1e16, 1.7976931348623157e308,
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory) -> Iterator[Any]:
    with (
        pytest.MonkeyPatch.context() as patch,
        place_of(request.param, tmp_path_factory.mktemp(request.param)) as place,
    ):
        patch.setenv("DSCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Nobody here has looked up a collection that is replaced, and changes it later.
        patch.setattr("index.milvus_rebuild.LATE_S", 0.0)
        yield place


@pytest.fixture(scope="module")
def shared(place, model) -> Iterator[Any]:
    """One for all tests: a collection takes Milvus a second to make."""
    with place.create(model) as gallery:
        first = {"make": "", ODD_NAME: "", "year": 0, "sold": False}
        gallery.remove(gallery.add([item("first.jpg", unit(1)[0], attributes=first)]))
        yield gallery


@pytest.fixture
def gallery(shared) -> Any:
    """Empty, with the fields of ``FIELDS``."""
    empty(shared)
    return shared


@pytest.fixture
def fresh(place, model) -> Iterator[Any]:
    """Of its own, for tests that change more than items."""
    with place.create(model) as gallery:
        yield gallery


@pytest.fixture
def oracle(model) -> OracleGallery:
    return OracleGallery(model, Held(fields=dict(FIELDS)))


def content(gallery: Any) -> list[Any]:
    """All that is known of all items."""
    held = gallery.items(limit=10_000)
    vectors = gallery.vectors([each.id for each in held])
    assert vectors.dtype == np.float32
    return list(zip(held, vectors.tolist(), strict=True))


def assert_refused(
    gallery: Any, error: type[Exception], change: Callable[[], Any], match: str | None = None
) -> None:
    before, fields = content(gallery), gallery.fields()
    with pytest.raises(error, match=match) as caught:
        change()
    assert caught.type is error
    assert content(gallery) == before
    assert gallery.fields() == fields


def assert_found(gallery: Any, oracle: OracleGallery, query: np.ndarray, k: int, **how) -> None:
    found, expected = gallery.search(query, k, **how), oracle.search(query, k, **how)
    assert (found.ids.dtype, found.scores.dtype) == (np.int64, np.float32)
    assert found.ids.tolist() == expected.ids.tolist()
    assert np.allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert np.all(found.scores[:, 1:] <= found.scores[:, :-1])


def fill(new: Sequence[NewItem], *galleries: Any) -> list[int]:
    """Add to a gallery, and to oracles under the ids that it gives."""
    first, *others = galleries
    ids: list[int] = first.add(new)
    for each in others:
        each.add(new, ids=ids)
    return ids


# Changing


def test_items_come_back_as_they_were_added(gallery):
    vectors = unit(len(ODD_TEXTS))
    new = [
        item(
            f"{place}/{text.replace(chr(0), '')[:200].replace('/', '-') or 'empty'}.jpg",
            vectors[place],
            label=text,
            sku=text or None,
            attributes={"make": text, ODD_NAME: text, "sold": place % 2 == 0},
        )
        for place, text in enumerate(ODD_TEXTS)
    ]
    new = [
        replace(each, sha256=f"{place:064}", size=place, mtime_ns=2**62 + place)
        for place, each in enumerate(new)
    ]
    ids = gallery.add(new)
    assert ids == sorted(set(ids))
    for held, each in zip(gallery.get(ids), new, strict=True):
        for name in ("root", "path", "sha256", "size", "mtime_ns", "label", "attributes"):
            assert getattr(held, name) == getattr(each, name)
        assert held.external_id == each.external_id
    assert gallery.vectors(ids).tolist() == vectors.tolist()
    assert gallery.ids_by_path([each.image for each in new]) == {
        each.image: item_id for each, item_id in zip(new, ids, strict=True)
    }
    skus = {text: item_id for text, item_id in zip(ODD_TEXTS, ids, strict=True) if text}
    assert gallery.ids_by_external(ODD_TEXTS) == skus
    assert [each.id for each in gallery.get_external(list(skus))] == list(skus.values())
    for text, item_id in zip(ODD_TEXTS, ids, strict=True):
        for name in ("make", "label", ODD_NAME):
            assert gallery.ids({name: text}).tolist() == [item_id]
    assert gallery.values_of(ids, "make") == ODD_TEXTS
    assert sorted(gallery.values("label")) == [(text, 1) for text in sorted(ODD_TEXTS)]
    assert set(gallery.files(ROOT)) == {each.path for each in new}


def test_odd_texts_are_updated_and_replaced_alike(gallery):
    [item_id] = gallery.add([item("a.jpg", unit(1)[0])])
    for text in ODD_TEXTS:
        gallery.update(item_id, label=text, attributes={"make": text}, external_id=text or None)
        [held] = gallery.get([item_id])
        assert (held.label, held.attributes, held.external_id) == (
            text, {"make": text}, text or None,
        )  # fmt: skip
    for text in filter(None, ODD_TEXTS):
        [item_id] = gallery.upsert([item("b.jpg", unit(1)[0], sku=text)])
        assert gallery.ids_by_external([text]) == {text: item_id}


def test_numbers_come_back_as_they_were_added(gallery):
    ids = gallery.add(
        [
            item(f"{place}.jpg", unit(1)[0], attributes={"year": number})
            for place, number in enumerate(ODD_NUMBERS)
        ]
    )
    found = gallery.values_of(ids, "year")
    assert found == ODD_NUMBERS
    assert list(map(type, found)) == list(map(type, ODD_NUMBERS))
    assert dict(gallery.values("year")) == dict.fromkeys(ODD_NUMBERS, 1)
    assert [value for value, _ in gallery.values("year")] == sorted(ODD_NUMBERS)


def test_a_null_is_kept_and_taken_away_by_an_update(gallery):
    [item_id] = gallery.add([item("a.jpg", unit(1)[0], attributes={"make": None, "year": 1})])
    assert gallery.get([item_id])[0].attributes == {"make": None, "year": 1}
    gallery.update(item_id, attributes={"year": None})
    assert gallery.get([item_id])[0].attributes == {"make": None}
    gallery.update(item_id, attributes={"make": "BMW", "sold": None})
    assert gallery.get([item_id])[0].attributes == {"make": "BMW"}
    gallery.update(item_id, attributes={"make": None})
    assert gallery.get([item_id])[0].attributes == {}


def test_a_photo_added_again_replaces_the_item_and_has_a_new_id(gallery):
    [old] = gallery.add([item("a.jpg", unit(1)[0], label="x", sku="s", attributes={"year": 1})])
    [other] = gallery.add([item("b.jpg", unit(1)[0])])
    [new] = gallery.add([item("a.jpg", unit(2)[1])])
    assert new > other > old
    assert gallery.ids().tolist() == [other, new]
    [held] = gallery.get([new])
    assert (held.label, held.external_id, held.attributes) == (None, None, {})
    with pytest.raises(ItemNotFoundError, match=str(old)):
        gallery.get([old])
    assert gallery.ids_by_external(["s"]) == {}


def test_a_photo_is_one_item_whichever_folder_it_was_added_from(gallery):
    for root, path in [
        (ROOT, "audi/1.jpg"),
        (ROOT / "audi", "1.jpg"),
        (Path("/"), "photos/audi/1.jpg"),
    ]:
        [item_id] = gallery.add([item(path, unit(1)[0], root=root)])
        assert [(each.id, each.root, each.path) for each in gallery.items()] == [
            (item_id, root, path)
        ]
        assert gallery.ids_by_path([ROOT / "audi/1.jpg"]) == {ROOT / "audi/1.jpg": item_id}


def test_of_a_photo_given_twice_the_last_stands(gallery):
    vectors = unit(3)
    ids = gallery.add(
        [
            item("a.jpg", vectors[0], sku="first"),
            item("b.jpg", vectors[1]),
            item("photos/a.jpg", vectors[2], root=Path("/"), sku="last"),
        ]
    )
    assert ids == sorted(set(ids))
    assert gallery.ids().tolist() == ids[1:]
    assert gallery.ids_by_external(["first", "last"]) == {"last": ids[2]}
    same = item("d.jpg", vectors[0])
    ids = gallery.add([same, same])
    assert gallery.ids_by_path([same.image]) == {same.image: ids[1]}
    assert len(gallery) == 3


def test_upsert_replaces_by_sku_and_by_photo(gallery):
    vectors = unit(4)
    [by_sku, by_path, other] = gallery.add(
        [
            item("a.jpg", vectors[0], sku="s"),
            item("b.jpg", vectors[1], sku="t"),
            item("c.jpg", vectors[2], sku="u"),
        ]
    )
    [new] = gallery.upsert([item("b.jpg", vectors[3], sku="s")])
    assert new > other
    assert gallery.ids().tolist() == [other, new]
    assert gallery.ids_by_external(["s", "t", "u"]) == {"s": new, "u": other}
    for gone in (by_sku, by_path):
        with pytest.raises(ItemNotFoundError):
            gallery.vectors([gone])


def test_a_sku_of_another_photo_is_refused(gallery):
    vectors = unit(3)
    gallery.add([item("a.jpg", vectors[0], sku='it\'s "a" \\ sku')])
    assert_refused(
        gallery,
        DuplicateExternalIdError,
        lambda: gallery.add(
            [
                item("b.jpg", vectors[1], attributes={"of a refused item": 1}),
                item("c.jpg", vectors[2], sku='it\'s "a" \\ sku'),
            ]
        ),
    )


@pytest.mark.parametrize("store", ["add", "upsert"])
def test_a_sku_twice_in_one_call_is_refused(gallery, store):
    gallery.add([item("a.jpg", unit(1)[0], sku="s")])
    twice = [item(name, unit(1)[0], sku="s") for name in ("b.jpg", "c.jpg")]
    assert_refused(gallery, DuplicateExternalIdError, lambda: getattr(gallery, store)(twice))


def test_a_sku_moves_to_another_photo_when_its_own_is_replaced(gallery):
    vectors = unit(2)
    gallery.add([item("a.jpg", vectors[0], sku="s")])
    [_, new] = gallery.add([item("a.jpg", vectors[0]), item("b.jpg", vectors[1], sku="s")])
    assert gallery.ids_by_external(["s"]) == {"s": new}
    assert len(gallery) == 2


def test_adding_nothing_changes_nothing(gallery):
    assert gallery.add([]) == gallery.upsert([]) == []
    assert len(gallery) == 0
    gallery.remove([])


BAD_ATTRIBUTES: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "text for a number": ({"year": "2010"}, AttributeTypeError),
    "a number for text": ({"make": 1}, AttributeTypeError),
    "a boolean for a number": ({"year": True}, AttributeTypeError),
    "a number for a boolean": ({"sold": 1}, AttributeTypeError),
    "a list": ({"make": ["BMW"]}, AttributeTypeError),
    "an unknown thing of a new name": ({"unheard of": object()}, AttributeTypeError),
    "NaN": ({"year": math.nan}, InvalidArgumentError),
    "infinity": ({"year": -math.inf}, InvalidArgumentError),
    "beyond 64 bits": ({"year": 2**63}, InvalidArgumentError),
    "NUL": ({"make": "a\0b"}, InvalidArgumentError),
    "half a pair": ({"make": "\ud800"}, InvalidArgumentError),
    "no name": ({"": 1}, InvalidArgumentError),
    "a long name": ({"x" * 65: 1}, InvalidArgumentError),
    "a quote in the name": ({'a"b': 1}, InvalidArgumentError),
    "a backslash in the name": ({"a\\b": 1}, InvalidArgumentError),
    "a newline in the name": ({"a\nb": 1}, InvalidArgumentError),
    "a reserved name": ({"sku": "s"}, InvalidArgumentError),
    "a word of filters": ({"not": 1}, InvalidArgumentError),
    "a new one, then a bad one": ({"brand new": 1, "year": "x"}, AttributeTypeError),
}


@pytest.mark.parametrize("why", BAD_ATTRIBUTES)
def test_a_bad_attribute_is_refused_with_all_beside_it(gallery, why):
    attributes, error = BAD_ATTRIBUTES[why]
    good = items(unit(3))
    [there] = gallery.add([item("there.jpg", unit(1)[0], sku="s", attributes={"year": 1})])
    bad = item("there.jpg", unit(1)[0], attributes=attributes)
    for store in (gallery.add, gallery.upsert):
        assert_refused(gallery, error, lambda store=store: store([good[0], bad, good[1]]))
    assert_refused(
        gallery, error, lambda: gallery.update(there, label="changed", attributes=attributes)
    )


def test_one_call_cannot_give_a_new_attribute_two_types(gallery):
    two = [
        item(f"{value}.jpg", unit(1)[0], attributes={"of two types": value}) for value in (1, "1")
    ]
    assert_refused(gallery, AttributeTypeError, lambda: gallery.add(two))
    assert "of two types" not in gallery.fields()


BAD_TEXTS = ["a\0b", "\ud800", 1]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_text_that_cannot_be_stored_is_refused(gallery, text):
    [there] = gallery.add([item("there.jpg", unit(1)[0])])
    good = item("good.jpg", unit(1)[0])
    bad = [replace(good, label=text), replace(good, external_id=text)]
    if isinstance(text, str):
        bad += [replace(good, path=text), replace(good, root=ROOT / text)]
    for each in bad:
        assert_refused(gallery, InvalidArgumentError, lambda each=each: gallery.add([good, each]))
    for change in ({"label": text}, {"external_id": text}):
        assert_refused(
            gallery, InvalidArgumentError, lambda change=change: gallery.update(there, **change)
        )
    if isinstance(text, str):
        assert gallery.ids_by_external([text]) == {}
        assert gallery.ids_by_path([ROOT / text]) == {}


def test_an_empty_sku_is_refused(gallery):
    [there] = gallery.add([item("there.jpg", unit(1)[0], sku="s")])
    empty_sku = item("b.jpg", unit(1)[0], sku="")
    assert_refused(gallery, InvalidArgumentError, lambda: gallery.upsert([empty_sku]))
    assert_refused(gallery, InvalidArgumentError, lambda: gallery.update(there, external_id=""))


BAD_VECTORS = {
    "NaN": np.full(DIM, np.nan, np.float32),
    "one NaN": np.r_[np.nan, unit(1)[0][1:]].astype(np.float32),
    "infinite": np.r_[np.inf, np.zeros(DIM - 1)].astype(np.float32),
    "zero": np.zeros(DIM, np.float32),
    "too long": 1.01 * unit(1)[0],
    "too short": 0.99 * unit(1)[0],
    "of another d": unit(1)[0][:-1],
}


@pytest.mark.parametrize("why", BAD_VECTORS)
def test_a_bad_vector_is_neither_stored_nor_looked_up(gallery, why):
    good = items(unit(2))
    gallery.add(good)
    bad = item("0.jpg", BAD_VECTORS[why])
    assert_refused(gallery, InvalidArgumentError, lambda: gallery.add([good[1], bad]))
    with pytest.raises(InvalidArgumentError):
        gallery.search(BAD_VECTORS[why], 1)
    assert_refused(gallery, InvalidArgumentError, lambda: gallery.add([item("2.jpg", unit(2))]))


def test_a_float64_vector_is_stored_like_its_float32(gallery):
    vector = unit(1)[0]
    [wide, narrow] = gallery.add([item("a.jpg", vector.astype(np.float64)), item("b.jpg", vector)])
    assert gallery.vectors([wide]).tolist() == gallery.vectors([narrow]).tolist()
    hits = gallery.search(vector, 2)
    assert hits.ids.tolist() == [[wide, narrow]]
    assert hits.scores[0][0] == hits.scores[0][1]


def test_an_update_changes_what_it_names_and_nothing_else(gallery):
    [first, second] = gallery.add(
        [
            item("a.jpg", unit(1)[0], label="audi", sku="s", attributes={"year": 1, "make": "A"}),
            item("b.jpg", unit(1)[0], sku="t"),
        ]
    )
    [before, other] = content(gallery)
    gallery.update(first)
    assert content(gallery) == [before, other]
    for change, expected in [
        ({"label": "bmw"}, {"label": "bmw"}),
        ({"label": None}, {"label": None}),
        ({"label": ""}, {"label": ""}),
        ({"attributes": {"year": 2.5}}, {"attributes": {"year": 2.5, "make": "A"}}),
        ({"attributes": {"sold": True}},
         {"attributes": {"year": 2.5, "make": "A", "sold": True}}),
        ({"external_id": None}, {"external_id": None}),
        ({"external_id": "u"}, {"external_id": "u"}),
        ({"external_id": "u"}, {"external_id": "u"}),
        ({"label": KEEP, "external_id": KEEP}, {}),
    ]:  # fmt: skip
        gallery.update(np.int64(first), **change)
        before = (replace(before[0], **expected), before[1])
        assert content(gallery) == [before, other]
    assert_refused(
        gallery,
        DuplicateExternalIdError,
        lambda: gallery.update(
            first, label="changed", attributes={"of a refused update": 1}, external_id="t"
        ),
    )
    gallery.update(second, external_id=None)
    gallery.update(first, external_id="t")
    assert gallery.ids_by_external(["s", "t", "u"]) == {"t": first}


UNKNOWN_IDS = [0, -1, 2**53, 2**63 - 1, 2**63, 2**70, -(2**70)]


@pytest.mark.parametrize("unknown", UNKNOWN_IDS)
def test_an_unknown_id_is_named_and_nothing_changes(gallery, unknown):
    ids = gallery.add(items(unit(3)))
    for change in (
        lambda: gallery.remove([*ids, unknown]),
        lambda: gallery.update(unknown, label="x"),
        lambda: gallery.get([ids[0], unknown]),
        lambda: gallery.vectors([ids[0], unknown]),
    ):
        assert_refused(gallery, ItemNotFoundError, change, match=str(unknown))
    assert gallery.values_of([unknown, ids[0]], "id") == [None, ids[0]]


def test_a_removed_id_is_unknown_and_never_given_again(gallery):
    first = gallery.add(items(unit(3)))
    gallery.remove([first[2], first[0], first[2]])
    assert_refused(gallery, ItemNotFoundError, lambda: gallery.remove(first[:1]))
    assert gallery.ids().tolist() == first[1:2]
    assert min(gallery.add(items(unit(3)))) > max(first)


def test_ids_as_a_search_gives_them_can_be_used_everywhere(gallery):
    ids = gallery.add(items(unit(3)))
    found = gallery.search(unit(3)[1], 2).ids[0]
    assert found[0] == ids[1]
    assert [each.id for each in gallery.get(found)] == found.tolist()
    assert gallery.vectors(found)[0].tolist() == unit(3)[1].tolist()
    assert gallery.values_of(found, "id") == found.tolist()
    gallery.remove(found)
    assert len(gallery) == 1


# Reading


@pytest.fixture
def filled(gallery, oracle) -> list[int]:
    """30 items, some alike, in both."""
    vectors = unit(30, seed=2)
    vectors[20:] = vectors[:10]
    new = [
        replace(
            item(
                f"{i}.jpg",
                vectors[i],
                root=ROOT if i % 5 else ROOT / "other",
                label=[None, "audi", "bmw", "fiat"][i % 4],
                sku=f"sku-{i}" if i % 3 else None,
                attributes={"year": 2000 + i % 6} | ({"sold": i % 2 == 0} if i % 7 else {}),
            ),
            sha256=f"{i % 12:064}",
            size=i,
        )
        for i in range(30)
    ]
    return fill(new, gallery, oracle)


def test_items_come_by_ids_in_the_order_that_is_asked_for(gallery, oracle, filled):
    for wanted in ([], filled[::-1], filled[3:5] * 2, np.array(filled[:4])):
        assert gallery.get(wanted) == oracle.get(wanted)
        assert gallery.vectors(wanted).tolist() == oracle.vectors(wanted).tolist()
    assert gallery.vectors([]).shape == (0, DIM)
    assert gallery.get_external(["sku-5", "sku-1"]) == oracle.get_external(["sku-5", "sku-1"])
    assert gallery.get_external([]) == []
    with pytest.raises(ItemNotFoundError, match="no item with sku 'none'"):
        gallery.get_external(["sku-1", "none"])


WHERES: list[dict[str, Any] | None] = [
    None,
    {},
    {"year": {"gte": 2003}},
    {"label": ["audi", None]},
    {"not": {"any": [{"sold": True}, {"sku": None}]}},
    {"year": 1},
]


@pytest.mark.parametrize("where", WHERES)
def test_pages_and_counts_are_those_of_a_dict(gallery, oracle, filled, where):
    for offset, limit in [(0, 50), (0, 0), (0, 7), (3, 7), (25, 10), (30, 5), (99, 1), (5, 0)]:
        how = {"offset": offset, "limit": limit, "where": where}
        assert gallery.items(**how) == oracle.items(**how)
    assert gallery.count(where) == oracle.count(where)
    ids = gallery.ids(where)
    assert ids.dtype == np.int64
    assert ids.tolist() == oracle.ids(where).tolist()
    for name in ("year", "sold", "make", "label", "sku", "id"):
        for limit in (50, 2):
            assert gallery.values(name, where=where, limit=limit) == oracle.values(
                name, where=where, limit=limit
            )


def test_a_field_of_items_is_told_in_order_none_where_there_is_none(gallery, oracle, filled):
    wanted = [*filled[::-1], 2**62, filled[0]]
    for name in ("year", "sold", "make", "label", "sku", "id"):
        assert gallery.values_of(wanted, name) == oracle.values_of(wanted, name)
    assert gallery.values_of([], "year") == []


def test_items_are_found_by_path_hash_and_sku(gallery, oracle, filled):
    for root in (ROOT, ROOT / "other", ROOT / "oth", Path("/")):
        assert gallery.files(root) == oracle.files(root)
    paths = [each.image for each in oracle.items()] + [ROOT / "none.jpg", Path("0.jpg"), ROOT]
    assert gallery.ids_by_path(paths) == oracle.ids_by_path(paths)
    hashes = [f"{i:064}" for i in range(20)]
    assert gallery.ids_by_sha256(hashes) == oracle.ids_by_sha256(hashes)
    skus = [f"sku-{i}" for i in range(40)]
    assert gallery.ids_by_external(skus) == oracle.ids_by_external(skus)
    for nothing in (gallery.ids_by_path, gallery.ids_by_sha256, gallery.ids_by_external):
        assert nothing([]) == {}


def test_more_ids_than_one_expression_holds(gallery, oracle):
    vectors = unit(1200)
    new = [item(f"{i}.jpg", vectors[i], sku=f"s{i}") for i in range(1200)]
    ids = fill(new, gallery, oracle)
    assert len(gallery) == 1200
    assert gallery.vectors(ids[::-1]).tolist() == vectors[::-1].tolist()
    assert gallery.ids_by_external([f"s{i}" for i in range(1200)]) == {
        f"s{i}": item_id for i, item_id in enumerate(ids)
    }
    assert [each.id for each in gallery.items(offset=1190)] == ids[1190:]
    again = gallery.upsert(new[:1100])
    assert gallery.ids().tolist() == ids[1100:] + again
    gallery.remove(ids[1100:])
    assert gallery.ids().tolist() == again


@pytest.mark.parametrize("ask", ["values", "values_of", "where", "group_by", "items", "count"])
def test_an_unknown_field_is_refused_even_in_an_empty_gallery(gallery, ask):
    question = {
        "values": lambda: gallery.values("maek"),
        "values_of": lambda: gallery.values_of([], "maek"),
        "where": lambda: gallery.search(unit(1), 1, where={"maek": 1}),
        "group_by": lambda: gallery.search(unit(1), 1, group_by="maek"),
        "items": lambda: gallery.items(where={"not": {"maek": 1}}),
        "count": lambda: gallery.count({"any": [{}, {"maek": None}]}),
    }[ask]
    with pytest.raises(FilterError, match='no field "maek"'):
        question()


def test_an_attribute_is_a_field_as_soon_as_an_item_has_it(place, fresh):
    with place.open(fresh) as reader:
        assert fresh.fields() == reader.fields() == {}
        [item_id] = fresh.add([item("a.jpg", unit(1)[0], attributes={"make": None})])
        assert fresh.fields() == {}  # a null has no type
        fresh.update(item_id, attributes={"make": "BMW"})
        fresh.add([item("b.jpg", unit(1)[0], attributes={"year": 1.5, "sold": False})])
        assert fresh.fields() == {"make": "string", "year": "number", "sold": "boolean"}
        assert reader.ids({"make": "BMW"}).tolist() == [item_id]
        assert reader.values("make") == [("BMW", 1)]
        fresh.remove([item_id])
        assert fresh.values("make") == []
        assert_refused(
            fresh,
            AttributeTypeError,
            lambda: fresh.add([item("c.jpg", unit(1)[0], attributes={"make": 1})]),
        )


# Searching


def test_an_empty_gallery_finds_nothing(gallery):
    for how in ({}, {"where": {"year": 1}}, {"group_by": "label"}, {"threshold": 0.5}):
        ids, scores = gallery.search(unit(3), 5, **how)
        assert ids.shape == scores.shape == (3, 0)
    assert (len(gallery), gallery.count(), gallery.items(), gallery.ids().tolist()) == (
        0,
        0,
        [],
        [],
    )
    assert gallery.ids().dtype == np.int64


def test_no_query_has_no_result(gallery):
    gallery.add(items(unit(4)))
    ids, scores = gallery.search(unit(0), 3)
    assert len(ids) == len(scores) == 0


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1, True, 1.5, None, "3"])
def test_a_k_out_of_range_is_refused(gallery, k):
    with pytest.raises(InvalidArgumentError):
        gallery.search(unit(1), k)


@pytest.mark.parametrize("offset", [-1, 1.5, True, None, MAX_K])
def test_an_offset_out_of_range_is_refused(gallery, offset):
    with pytest.raises(InvalidArgumentError):
        gallery.search(unit(1), 3, offset=offset)


@pytest.mark.parametrize("threshold", [1.01, -2, math.nan, math.inf, True, "0.5"])
def test_a_threshold_that_is_no_cosine_is_refused(gallery, threshold):
    with pytest.raises(InvalidArgumentError):
        gallery.search(unit(1), 3, threshold=threshold)


@pytest.mark.parametrize("queries", [unit(2)[:, :-1], unit(4).reshape(2, 2, DIM), np.float32(1)])
def test_queries_of_another_shape_are_refused(gallery, queries):
    gallery.add(items(unit(2)))
    with pytest.raises(InvalidArgumentError):
        gallery.search(queries, 1)


@pytest.mark.parametrize("k", [1, np.int64(3), 29, 30, 31, 1000, MAX_K])
def test_the_nearest_are_those_of_brute_force(gallery, oracle, filled, k):
    queries = np.concatenate([unit(5, seed=3), gallery.vectors(filled[:3])])
    assert_found(gallery, oracle, queries, k)
    assert_found(gallery, oracle, queries[0], k)


@pytest.mark.parametrize("where", WHERES[::2])
@pytest.mark.parametrize("group_by", [None, "label", "year", "sold", "sku", "id", "make"])
def test_filters_groups_thresholds_and_offsets_are_those_of_brute_force(
    gallery, oracle, filled, where, group_by
):
    queries = np.concatenate([unit(2, seed=3), gallery.vectors(filled[:1])])
    for k, offset, threshold in [(5, 0, None), (30, 2, 0.1), (2, 0, 0.999), (4, 40, -1)]:
        assert_found(
            gallery, oracle, queries, k,
            where=where, group_by=group_by, threshold=threshold, offset=offset,
        )  # fmt: skip


@pytest.mark.parametrize("alike", [2, 5, 9, 40, 400])
def test_of_equal_vectors_the_least_ids_come_first(gallery, oracle, alike):
    """Also where a tie crosses the last place, and where those that are alike came last."""
    far, near = unit(2, seed=4)
    fill(items(np.array([far] * 3), prefix="far-"), gallery, oracle)
    some = np.array([near] * alike)
    fill(items(some[: alike // 2], prefix="a-"), gallery, oracle)
    fill(items(some[alike // 2 :], prefix="b-"), gallery, oracle)
    for k in {1, 2, alike // 2, alike - 1, alike, alike + 1, alike + 3, alike + 9} - {0}:
        assert_found(gallery, oracle, near, k)
        assert_found(gallery, oracle, far, k)
    assert_found(gallery, oracle, near, 2, offset=alike // 2)
    assert_found(gallery, oracle, near, 2, where={"id": {"gt": int(oracle.ids()[alike // 2])}})
    [first, *_] = oracle.search(near, 1).ids[0]
    gallery.remove([first])
    oracle.remove([first])
    assert_found(gallery, oracle, np.array([near, far]), 3)


def test_scores_are_cosines_and_stay_within_one(gallery):
    vectors = unit(60, seed=5)
    gallery.add(items(np.concatenate([vectors, -vectors])))
    for hits in (gallery.search(vectors, 1), gallery.search(vectors, 120)):
        assert hits.scores.max() <= 1
        assert hits.scores.min() >= -1
        assert hits.scores[:, 0] == pytest.approx(1, abs=1e-6)


def test_there_are_k_groups_however_many_items_of_others_are_nearer(gallery, oracle):
    rng = np.random.default_rng(0)
    query = unit(1)[0]
    near = query + 0.05 * rng.normal(size=(100, DIM))
    vectors = np.concatenate([near, unit(20, seed=1)]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = ["audi"] * 100 + [f"car-{i % 5}" for i in range(19)] + [None]
    new = [item(f"{i}.jpg", v, label=labels[i]) for i, v in enumerate(vectors)]
    fill(new, gallery, oracle)
    for k in (2, 6, 9):
        assert_found(gallery, oracle, query, k, group_by="label")
        assert gallery.search(query, k, group_by="label").ids.shape == (1, min(k, 6))


# Filters


def refill(gallery: Any, oracle: OracleGallery, some: Sequence[dict[str, Any]]) -> list[int]:
    """Make both hold these rows alone."""
    empty(gallery)
    empty(oracle)
    new = [
        item(
            f"{number}.jpg",
            unit(1)[0],
            label=row.get("label"),
            sku=row.get("sku"),
            attributes={name: value for name, value in row.items() if name in FIELDS},
        )
        for number, row in enumerate(some)
    ]
    return fill(new, gallery, oracle)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(some=rows(), wheres=st.lists(FILTERS, min_size=1, max_size=6))
def test_a_filter_selects_what_plain_python_selects(gallery, oracle, some, wheres):
    ids = refill(gallery, oracle, some)
    for each in wheres:
        where = near_ids(each, ids)
        expected = oracle.ids(where).tolist()
        assert gallery.ids(where).tolist() == expected, where
        assert gallery.count(where) == len(expected)


@pytest.mark.parametrize("field", LADDER)
def test_each_operator_compares_each_value_with_each(gallery, oracle, field):
    missing: list[dict[str, Any]] = [{}] + [{field: None}] * (field in FIELDS)
    refill(gallery, oracle, [{field: value} for value in LADDER[field]] + missing)
    for where in ladder_filters(field):
        assert gallery.ids(where).tolist() == oracle.ids(where).tolist(), where


def test_ids_are_compared_with_integers_and_fractions(gallery, oracle):
    ids = refill(gallery, oracle, [{}] * 4)
    middle = ids[1]
    for bound in (
        middle,
        float(middle),
        middle + 0.5,
        middle - 0.5,
        -1,
        0,
        2**63 - 1,
        -1e300,
        1e300,
    ):
        for name in ("eq", "ne", "gt", "gte", "lt", "lte"):
            for where in ({"id": {name: bound}}, {"not": {"id": {name: bound}}}):
                assert gallery.ids(where).tolist() == oracle.ids(where).tolist(), where
        for where in ({"id": [bound, None]}, {"id": {"not_in": [bound]}}):
            assert gallery.ids(where).tolist() == oracle.ids(where).tolist(), where


@pytest.mark.parametrize("size", [1, 300])
def test_filters_as_large_as_allowed(gallery, oracle, size):
    refill(gallery, oracle, [{"year": n, "make": f"{n}"} for n in range(8)])
    deep: dict[str, Any] = {"make": "3"}
    for _ in range(7):
        deep = {"not": deep}
    for where in (
        deep,
        {"year": list(range(5, 5 + size))},
        {"make": {"not_in": [str(n) for n in range(5, 5 + size)]}},
        {"any": [{"year": n} for n in range(5, 5 + size)]},
    ):
        assert gallery.ids(where).tolist() == oracle.ids(where).tolist()


# Judging


@pytest.fixture(scope="module")
def judged(place, shared, model) -> tuple[Any, OracleGallery]:
    """90 items: labels of different sizes, some alone, some without; some vectors equal."""
    empty(shared)
    oracle = OracleGallery(model, Held(fields=dict(FIELDS)))
    rng = np.random.default_rng(3)
    vectors = unit(90, seed=4)
    vectors[70:] = vectors[30:50]
    labels: list[str | None] = [f"car-{int(rng.exponential(4))}" for _ in vectors]
    labels[5:9] = [None] * 4
    labels[9] = "alone"
    new = [
        item(f"{i}.jpg", v, label=labels[i], attributes={"year": 2000 + i % 6})
        for i, v in enumerate(vectors)
    ]
    ids = fill(new, shared, oracle)
    for each in (shared, oracle):
        each.remove(ids[20:24])
    return shared, oracle


def assert_judged_alike(found: Any, expected: Any) -> None:
    close = {"abs": 1e-9}
    for name in ("r_precision", "map_at_r", "nmi"):
        assert getattr(found.metrics, name) == pytest.approx(
            getattr(expected.metrics, name), **close
        )
    assert found.metrics.recall == pytest.approx(expected.metrics.recall, **close)
    for name in ("queries", "skipped"):
        assert getattr(found.metrics, name) == getattr(expected.metrics, name)
    assert (found.unlabelled, found.gallery) == (expected.unlabelled, expected.gallery)
    for name in ("per_class", "hardest", "confusion"):
        assert (getattr(found, name) is None) == (getattr(expected, name) is None)
    for one, other in zip(found.per_class or [], expected.per_class or [], strict=True):
        assert (one.label, one.queries) == (other.label, other.queries)
        assert one.recall == pytest.approx(other.recall, **close)
        assert (one.r_precision, one.map_at_r) == pytest.approx(
            (other.r_precision, other.map_at_r), **close
        )
    for one, other in zip(found.hardest or [], expected.hardest or [], strict=True):
        assert (one.id, one.label, one.answers, one.first) == (
            other.id, other.label, other.answers, other.first,
        )  # fmt: skip
        assert one.average_precision == pytest.approx(other.average_precision, **close)
        assert_neighbours_alike(one.neighbours, other.neighbours)
    for one, other in zip(found.confusion or [], expected.confusion or [], strict=True):
        # The query is one of the nearest: rounding chooses among those that are equally near.
        assert (one.label, one.found, one.count) == (other.label, other.found, other.count)
        assert one.nearest.label == one.found
        assert one.share == pytest.approx(other.share, **close)
        assert one.nearest.score == pytest.approx(other.nearest.score, abs=1e-6)


def assert_neighbours_alike(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert [(each.id, each.label) for each in found] == [(each.id, each.label) for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)


JUDGED: list[dict[str, Any]] = [
    {},
    {"where": {"year": {"lt": 2003}}},
    {"query_where": {"year": {"lt": 2003}}},
    {"gallery_where": {"year": [2001, 2003, 2005]}},
    {"query_where": {"year": {"lt": 2003}}, "gallery_where": {"year": {"gte": 2002}}},
    {"per_class": True, "hardest": 12, "confusion": 1000},
    {"gallery_where": {"year": {"lt": 2004}}, "per_class": True, "hardest": 100, "confusion": 3},
]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("how", JUDGED)
def test_an_evaluation_is_that_of_a_double_loop(judged, how, exact):
    gallery, oracle = judged
    ks = (1, 3, 200)
    assert_judged_alike(
        gallery.evaluate(ks, exact=exact, **how), oracle.evaluate(ks, exact=exact, **how)
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("where", [None, {"year": {"lt": 2003}}])
def test_an_evaluation_of_photos_is_that_of_a_double_loop(judged, where, exact):
    gallery, oracle = judged
    vectors = np.concatenate([unit(10, seed=9), gallery.vectors(gallery.ids()[:2])])
    labels = [f"car-{i % 5}" for i in range(11)] + ["unknown here"]
    how = {
        "gallery_where": where, "exact": exact,
        "per_class": True, "hardest": 100, "confusion": 1000,
    }  # fmt: skip
    assert_judged_alike(
        gallery.evaluate_photos(vectors, labels, (1, 4, 200), **how),
        oracle.evaluate_photos(vectors, labels, (1, 4, 200), **how),
    )


def test_clustering_is_of_the_labelled_vectors(judged):
    gallery, oracle = judged
    where = {"year": {"lt": 2003}}
    assert_judged_alike(
        gallery.evaluate((1,), where=where, clustering=True),
        oracle.evaluate((1,), where=where, clustering=True),
    )


BAD_EVALUATIONS: list[dict[str, Any]] = [
    {"ks": (0,)},
    {"ks": (1, MAX_K + 1)},
    {"hardest": 101},
    {"hardest": -1},
    {"confusion": 1001},
    {"exact": False, "clustering": True},
    {"where": {"year": 2001}, "query_where": {}},
    {"where": {"label": "alone"}},
    {"where": {"label": None}},
    {"gallery_where": {"year": 1}},
    {"where": {"maek": 1}},
]


@pytest.mark.parametrize("how", BAD_EVALUATIONS)
def test_an_evaluation_that_cannot_be_is_refused(judged, how):
    gallery, _ = judged
    with pytest.raises(InvalidArgumentError):
        gallery.evaluate(how.get("ks", (1,)), **{k: v for k, v in how.items() if k != "ks"})


# Several galleries at one place


def test_a_gallery_opened_before_sees_each_change(place, gallery):
    vectors = unit(3)
    with place.open(gallery) as reader:
        [first] = gallery.add([item("a.jpg", vectors[0], sku="s")])
        assert reader.search(vectors[0], 5).ids.tolist() == [[first]]
        assert content(reader) == content(gallery)
        [second] = gallery.add([item("a.jpg", vectors[1])])
        assert reader.search(vectors[1], 5).ids.tolist() == [[second]]
        gallery.update(second, label="x", attributes={"year": 7})
        assert reader.ids({"year": 7, "label": "x"}).tolist() == [second]
        gallery.remove([second])
        assert reader.search(vectors[1], 5).ids.tolist() == [[]]
        assert len(reader) == reader.count() == 0


def test_a_gallery_open_for_reading_cannot_be_changed(place, gallery):
    [first] = gallery.add(items(unit(1)))
    with place.open(gallery) as reader:
        for change in (
            lambda: reader.add(items(unit(2))),
            lambda: reader.upsert(items(unit(2))),
            lambda: reader.update(first, label="audi"),
            lambda: reader.remove([first]),
            lambda: reader.rebuild(),
            lambda: reader.tune(0.9),
        ):
            assert_refused(gallery, GalleryError, change, match="open it writable")


def test_a_gallery_opens_as_it_was_closed(place, model):
    vectors = unit(20)
    with place.create(model) as gallery:
        ids = gallery.add(items(vectors))
        gallery.remove(ids[3:5])
        gallery.update(ids[0], label="x", attributes={"year": 1})
        before, found, fields = content(gallery), gallery.search(vectors, 20), gallery.fields()
    with place.open(gallery) as again:
        assert content(again) == before
        assert again.fields() == fields
        for old, new in zip(found, again.search(vectors, 20), strict=True):
            assert np.array_equal(old, new)
    gallery.close()  # twice is harmless


# The index


def test_a_rebuild_changes_nothing_that_is_seen(place, fresh, oracle):
    vectors = unit(40, seed=8)
    vectors[30:] = vectors[:10]
    new = [item(f"{i}.jpg", v, label="x", attributes={"year": i}) for i, v in enumerate(vectors)]
    ids = fill(new, fresh, oracle)
    with place.open(fresh) as reader:
        for each in (fresh, oracle):
            each.remove(ids[35:])
        before = content(fresh)
        fresh.rebuild()
        fresh.settle()
        for gallery in (fresh, reader):
            gallery.refresh()
            assert content(gallery) == before
            assert gallery.fields() == {"year": "number"}
            assert_found(gallery, oracle, vectors[:5], 12, where={"year": {"lt": 33}})
        [new_id] = fill(items(unit(1), prefix="after-"), fresh, oracle)
        assert new_id > ids[-1]
        fresh.remove(ids[:1])
        oracle.remove(ids[:1])
        for gallery in (fresh, reader):
            assert_found(gallery, oracle, vectors[:5], 50)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_tuned_gallery_finds_what_it_found(fresh, oracle, kind):
    fill(items(unit(60, seed=8)), fresh, oracle)
    before = content(fresh)
    fresh.tune(0.9, kind=kind)
    fresh.settle()
    assert content(fresh) == before
    assert fresh.measure_recall() >= 0.9
    assert_found(fresh, oracle, unit(3, seed=8), 60)


@pytest.mark.parametrize(
    "wanted", [{"target_recall": 0}, {"target_recall": 1.5}, {"target_recall": 0.9, "kind": "lsh"}]
)
def test_a_target_that_cannot_be_is_refused(gallery, wanted):
    gallery.add(items(unit(3)))
    assert_refused(gallery, InvalidArgumentError, lambda: gallery.tune(**wanted))


def test_info_counts(place, gallery, filled):
    if place.name == "oracle":
        pytest.skip("a dict has no index to tell of")
    info = gallery.info()
    assert (info.items, info.labelled, info.labels, info.dim) == (30, 22, 3, DIM)
    assert (info.model, info.model_sha256) == (gallery.model.card.name, gallery.model.sha256)
    assert info.path == str(gallery.path)
    assert (info.index.target_recall, info.index.error) == (0.99, None)
    assert gallery.index_info().requested == info.index.requested == "auto"
    assert gallery.is_at(gallery.path)
    assert not gallery.is_at(Path("/elsewhere"))


# Copies


def test_items_that_are_put_keep_the_ids_they_are_given(real, gallery):
    [before] = gallery.add(items(unit(1), prefix="before-"))
    vectors = unit(4)
    pairs = [(before + 2**20 + 3 * n, each) for n, each in enumerate(items(vectors))]
    gallery.put(pairs)
    ids = [item_id for item_id, _ in pairs]
    assert gallery.ids().tolist() == [before, *ids]
    assert gallery.vectors(ids).tolist() == vectors.tolist()
    assert [each.path for each in gallery.get(ids)] == [each.path for _, each in pairs]
    assert_refused(
        gallery,
        InvalidArgumentError,
        lambda: gallery.put([(ids[-1] + 1, item("x.jpg", unit(2)[0] * 2))]),
    )
    assert [each for page in gallery.scan() for each in page] == gallery.items()
    assert [each.id for page in gallery.scan(after=ids[1]) for each in page] == ids[2:]


# Making


@pytest.fixture
def real(place) -> Any:
    if place.name == "oracle":
        pytest.skip("a dict is at no place")
    return place


def test_what_is_there_already_is_refused_and_left_alone(real, gallery, model):
    gallery.add(items(unit(2)))
    before = content(gallery)
    with pytest.raises(GalleryError, match="exists already"):
        Gallery.create(gallery.path, model)
    assert is_there(gallery.path)
    assert content(gallery) == before
    with real.open(gallery) as again:
        assert content(again) == before


def test_a_gallery_remembers_its_model_and_refuses_another(real, gallery, tmp_path):
    with real.open(gallery) as again:
        assert again.model.sha256 == gallery.model.sha256
        assert again.model.card == gallery.model.card
        expect_model(gallery.path, gallery.model.sha256, again.model)
    other = Model.load(make_model_folder(tmp_path / "other", dim=DIM, seed=1))
    with pytest.raises(ModelMismatchError, match="was built with model"):
        expect_model(gallery.path, gallery.model.sha256, other)


@pytest.mark.parametrize(
    "wanted", [{"index_kind": "lsh"}, {"target_recall": 0}, {"target_recall": 1.5}]
)
def test_an_index_that_cannot_be_is_refused_before_anything_is_made(real, model, wanted):
    with pytest.raises(InvalidArgumentError):
        real.create(model, **wanted)


# The law: a gallery is a dict


class ContractMachine(RuleBasedStateMachine):
    """Any series of changes gives what it gives the oracle, errors included."""

    #: Few and different directions, so that ties are common and only ties are close.
    palette = unit(5, seed=1)
    directions = st.integers(0, len(palette) - 1)
    names = st.sampled_from([f"{letter} '\"\\.jpg" for letter in "abcdefg"])
    labels = st.sampled_from([None, "", "audi", "b\\m\"w'"])
    years = st.sampled_from([None, 1999, 2010, 2010.5, 2**53 + 1])
    skus = st.sampled_from([None, "s1", "s'2", 's"3\n'])
    batches = st.lists(st.tuples(names, directions, labels, years, skus), max_size=5)

    def __init__(self, gallery: Any, reader: Any, *, rebuilds: bool) -> None:
        super().__init__()
        empty(gallery)
        self.gallery, self.reader, self.rebuilds = gallery, reader, rebuilds
        self.oracle = OracleGallery(gallery.model, Held(fields=dict(FIELDS)))

    def _both(self, change: Callable[[Any], Any]) -> None:
        outcomes = []
        for each in (self.gallery, self.oracle):
            try:
                outcomes.append(change(each))
            except Exception as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]

    def _store(self, how: str, batch: Any) -> None:
        new = [
            item(
                name,
                self.palette[direction],
                label=label,
                attributes={} if year is None else {"year": year},
                sku=sku,
            )
            for name, direction, label, year, sku in batch
        ]
        given: list[int] = []

        def change(gallery: Any) -> list[int]:
            if gallery is self.oracle:
                return gallery_method(self.oracle)(new, ids=given or None)
            given[:] = gallery_method(gallery)(new)
            return given

        def gallery_method(gallery: Any) -> Callable[..., list[int]]:
            return getattr(gallery, how)

        last = self.oracle.held.last_id
        self._both(change)
        assert all(item_id > last for item_id in given)
        assert given == sorted(set(given))

    @rule(batch=batches)
    def add(self, batch):
        self._store("add", batch)

    @rule(batch=batches)
    def upsert(self, batch):
        self._store("upsert", batch)

    @rule(batch=batches)
    def add_with_one_bad_vector(self, batch):
        with pytest.raises(InvalidArgumentError):
            self.gallery.add(
                [item(name, self.palette[0]) for name, *_ in batch]
                + [item("a.jpg", 2 * self.palette[0])]
            )

    @precondition(lambda self: len(self.oracle))
    @rule(data=st.data(), label=st.just(KEEP) | labels, year=years, sku=st.just(KEEP) | skus)
    def update(self, data, label, year, sku):
        item_id = data.draw(st.sampled_from(self.oracle.ids().tolist()))
        self._both(
            lambda each: each.update(
                item_id, label=label, attributes={"year": year}, external_id=sku
            )
        )

    @precondition(lambda self: len(self.oracle))
    @rule(data=st.data(), unknown=st.sampled_from([[], [], [], [2**60]]))
    def remove(self, data, unknown):
        ids = data.draw(st.sets(st.sampled_from(self.oracle.ids().tolist()), min_size=1))
        self._both(lambda each: each.remove([*sorted(ids), *unknown]))

    @rule(
        query=directions,
        k=st.integers(1, 12),
        offset=st.integers(0, 3),
        threshold=st.sampled_from([None, -1, 0, 0.3, 0.99]),
        group_by=st.sampled_from([None, "label", "year", "sku"]),
        where=st.sampled_from(
            [
                None,
                {"year": {"gte": 2010}},
                {"year": [1999, None]},
                {"not": {"label": "b\\m\"w'"}},
                {"any": [{"sku": 's"3\n'}, {"label": None}]},
            ]
        ),
    )
    def search(self, query, k, **how):
        for gallery in (self.gallery, self.reader):
            assert_found(gallery, self.oracle, self.palette[query], k, **how)
            assert gallery.count(how["where"]) == self.oracle.count(how["where"])

    @precondition(lambda self: self.rebuilds)
    @rule()
    def rebuild(self):
        self.gallery.rebuild()

    @invariant()
    def both_hold_what_the_oracle_holds(self):
        expected = content(self.oracle)
        for gallery in (self.gallery, self.reader):
            assert content(gallery) == expected
            assert len(gallery) == len(self.oracle)


def test_any_series_of_changes_is_that_of_a_dict(place, shared):
    quick = place.name in ("folder", "oracle")
    with place.open(shared) as reader:
        run_state_machine_as_test(
            lambda: ContractMachine(shared, reader, rebuilds=quick),
            settings=settings(
                max_examples=15 if quick else 8, stateful_step_count=15, deadline=None
            ),
        )
