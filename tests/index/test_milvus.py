"""What is Milvus's own of a gallery there: addresses, failures, writers, notes, rebuilds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import Gallery, Model
from index.address import DEFAULT_PORT, TOKEN_VARIABLE, MilvusAddress, parse_address
from index.errors import (
    GalleryError,
    GalleryUnavailableError,
    InvalidArgumentError,
    ItemNotFoundError,
    ModelMismatchError,
    OutcomeUnknownError,
)
from index.gallery import is_there
from index.milvus_client import MilvusConnection
from index.milvus_gallery import keep_model
from index.milvus_ids import EPOCH_MS, IdMaker
from index.milvus_literals import literal
from index.milvus_notes import CHUNK, MAX_KEY, MAX_TEXT, Notes
from index.milvus_place import COLLECTION, Place
from index.milvus_rebuild import rebuild
from tests.index.gallery_items import DIM, item, items, unit
from tests.index.gallery_kinds import MILVUS_KINDS, OnMilvus, empty, place_of
from tests.tiny_model import make_model_folder

SECRET = "hunter2/#?"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model.load(make_model_folder(tmp_path_factory.mktemp("model") / "tiny", dim=DIM))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=MILVUS_KINDS)
def place(request, tmp_path_factory) -> Iterator[OnMilvus]:
    with place_of(request.param, tmp_path_factory.mktemp(request.param)) as place:
        yield place


@pytest.fixture(scope="module")
def shared(place, model) -> Iterator[Gallery]:
    with place.create(model) as gallery:
        yield gallery


@pytest.fixture
def gallery(shared) -> Gallery:
    empty(shared)
    return shared


@pytest.fixture
def fresh(place, model) -> Iterator[Gallery]:
    with place.create(model) as gallery:
        yield gallery


@pytest.fixture
def new_address(place) -> MilvusAddress:
    """Where nothing is yet."""
    return address_of(place.new_url())


@pytest.fixture
def connection(new_address) -> Iterator[MilvusConnection]:
    connection = MilvusConnection(new_address)
    yield connection
    connection.close()


def address_of(text: str) -> MilvusAddress:
    address = parse_address(text)
    assert isinstance(address, MilvusAddress)
    return address


def seen(gallery: Gallery) -> list[tuple[int, str]]:
    return [(each.id, each.path) for each in gallery.items(limit=10_000)]


class Interposed:
    """Does something before a call of the client, each time it is made."""

    def __init__(self, before: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._before = before
        self._call = MilvusConnection.call

    def __enter__(self) -> None:
        before, call = self._before, self._call

        def interposed(connection: MilvusConnection, method: str, *args: Any, **how: Any) -> Any:
            before(method, args)
            return call(connection, method, *args, **how)

        MilvusConnection.call = interposed  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        MilvusConnection.call = self._call  # type: ignore[method-assign]


def failing(method: str, number: int) -> Interposed:
    """The ``number``-th call of a method, from 0, is answered by no server."""
    calls = []

    def before(called: str, _: Any) -> None:
        if called == method:
            calls.append(called)
            if len(calls) == number + 1:
                raise GalleryUnavailableError("pulled the plug")

    return Interposed(before)


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("milvus://127.0.0.1:19530/cars", {"host": "127.0.0.1", "name": "cars"}),
        ("milvus://milvus/cars/", {"host": "milvus", "port": DEFAULT_PORT, "name": "cars"}),
        ("MILVUS://Milvus.Example:1/c_1", {"host": "milvus.example", "port": 1, "name": "c_1"}),
        ("milvuss://[::1]:443/cars", {"host": "::1", "port": 443, "tls": True, "name": "cars"}),
        ("milvus://u:p%40%3A%2F@h/cars", {"host": "h", "token": "u:p@:/", "name": "cars"}),
        ("milvus://u:@h/cars", {"host": "h", "token": "u:", "name": "cars"}),
        ("milvus://key@h/cars", {"host": "h", "token": "key", "name": "cars"}),
        ("milvus:///data/a b.db/cars", {"file": "/data/a b.db", "name": "cars"}),
        ("milvus:///data/a%23%3Fb.db/cars", {"file": "/data/a#?b.db", "name": "cars"}),
        (
            "milvus://h/cars?store=s3://photos/a%26b&database=two&consistency=strong&timeout=2.5",
            {"host": "h", "name": "cars", "store": "s3://photos/a&b", "database": "two",
             "consistency": "Strong", "timeout_s": 2.5},
        ),
    ],
)  # fmt: skip
def test_an_address_is_taken_apart_and_put_together_again(text, expected):
    address = parse_address(text)
    assert address == MilvusAddress(**expected)
    assert parse_address(address.url) == address
    assert parse_address(address) is address


@pytest.mark.parametrize("text", ["galleries/cars", "/cars", "a:b", ".", "C:\\cars"])
def test_what_is_no_url_is_a_folder(text):
    assert parse_address(text) == Path(text)
    assert parse_address(Path(text)) == Path(text)


@settings(max_examples=100, deadline=None)
@given(
    name=st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True),
    user=st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), min_size=1),
    password=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    folder=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"])),
    lite=st.booleans(),
)
def test_any_password_and_any_file_comes_back_from_an_address(name, user, password, folder, lite):
    token = user if password is None else f"{user}:{password}"
    where = {"file": f"/{folder}/x.db"} if lite else {"host": "h", "token": token, "tls": True}
    address = MilvusAddress(name=name, **where)
    if not lite:
        assert parse_address(address.url) == address
    assert parse_address(str(address)) == replace(address, token="")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://h/cars", "http:// is not known.*milvus://HOST:PORT/NAME"),
        ("milvus://h", "name is ''"),
        ("milvus://h/", "name is ''"),
        ("milvus://h/1cars", "name is '1cars'"),
        ("milvus://h/cars-new", "name is 'cars-new'"),
        ("milvus://h/" + "c" * 201, "name is 'ccc"),
        ("milvus:///cars", "no host and no file"),
        ("milvus:///data/x/cars", "no host and no file"),
        ("milvus://h/db/cars", r"before its name.*\?database="),
        ("milvus://h:port/cars", "port"),
        ("milvus://h:65536/cars", "port"),
        ("milvus://[::1/cars", "brackets"),
        ("milvus://h/cars?databse=x", "sets databse: expected of store, database"),
        ("milvus://h/cars?consistency=total", "consistency is 'total': expected one of Session"),
        ("milvus://h/cars?timeout=0", "timeout is '0'"),
        ("milvus://h/cars?timeout=nan", "timeout is 'nan'"),
        ("milvus://h/cars?timeout=soon", "timeout is 'soon'"),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_told_why(text, message):
    with pytest.raises(InvalidArgumentError, match=message):
        parse_address(text)
    with pytest.raises(InvalidArgumentError, match=message):
        Gallery.open(text)


@pytest.mark.parametrize(
    "text",
    [
        f"milvus://root:{SECRET}@h:1/cars",  # nothing is escaped
        "milvus://root:hunter2/@h/cars",
        "milvus://root:12345/hunter2@h/cars",
        "milvus://root:hunter2@h:port/cars",
        "milvus://root:hunter2@h/db/cars",
        "milvus://root:hunter2@h/cars?timeout=0",
        "milvus://root:hunter2@h/",
        "milvus://root:hunter2@[::1/cars",
    ],
)
def test_no_error_of_an_address_tells_the_password(text):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_address(text)
    assert "hunter2" not in str(caught.value)
    assert "12345" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_is_in_nothing_that_is_shown(monkeypatch):
    address = address_of("milvus://root:hunter2@h/cars")
    monkeypatch.setenv(TOKEN_VARIABLE, "root:hunter2")
    for each in (address, address_of("milvus://h/cars")):
        assert each.token == "root:hunter2"
        assert "hunter2" not in f"{each} {each!r} {[each]} {each.uri}"
        assert "hunter2" in each.url
    other = address_of("milvus://somebody@h/cars")
    assert other.token == "somebody"  # what the address says is what holds


# Servers that do not answer, or refuse


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def refused_soon(url: str, error: type[Exception], match: str, *, within_s: float = 5.0) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        Gallery.open(url)
    assert caught.type is error
    assert time.monotonic() - started < within_s
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_not_there_is_told_soon(model):
    port = free_port()
    url = f"milvus://root:hunter2@127.0.0.1:{port}/cars?timeout=1"
    told = f"milvus://127.0.0.1:{port}/cars does not answer: is Milvus running there"
    refused_soon(url, GalleryUnavailableError, told)
    with pytest.raises(GalleryUnavailableError, match=told):
        Gallery.create(url, model)
    with pytest.raises(GalleryUnavailableError, match=told):
        is_there(parse_address(url))


def test_a_server_that_never_answers_is_given_up_after_the_timeout():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        url = f"milvus://root:hunter2@127.0.0.1:{port}/cars?timeout=0.5"
        refused_soon(url, GalleryUnavailableError, "does not answer")


def test_a_file_in_a_folder_that_is_not_there_is_refused(tmp_path):
    refused_soon(f"milvus://{tmp_path}/none/x.db/cars", GalleryError, "refuses")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server(tmp_path) -> Iterator[Callable[[], Any]]:
    """Starts Milvus Lite at a port, again and again the same."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    port, running = free_port(), []

    def start() -> tuple[str, Callable[[], None]]:
        server, database, _ = start_server_in_thread(str(tmp_path / "x.db"), port=port)

        def stop() -> None:
            server.stop(grace=0).wait()
            database.close()
            running.clear()

        running.append(stop)
        return f"milvus://127.0.0.1:{port}/cars?timeout=1", stop

    yield start
    for stop in running:
        stop()


def test_a_gallery_outlives_its_server(server, model):
    url, stop = server()
    with Gallery.create(url, model) as gallery:
        [item_id] = gallery.add(items(unit(1)))
        stop()
        for ask in (
            lambda: gallery.get([item_id]),
            lambda: gallery.search(unit(1), 1),
            lambda: gallery.add(items(unit(1), prefix="lost-")),
            lambda: gallery.remove([item_id]),
            gallery.expect_server,
        ):
            with pytest.raises(GalleryUnavailableError, match="does not answer"):
                ask()
        started = time.monotonic()
        with pytest.raises(GalleryUnavailableError):
            gallery.count()
        assert time.monotonic() - started < 0.5  # nobody waits for what has just not answered
        server()
        deadline = time.monotonic() + 20
        while True:
            try:
                assert seen(gallery) == [(item_id, "0.jpg")]
                break
            except GalleryUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        [again] = gallery.add(items(unit(1)))
        assert seen(gallery) == [(again, "0.jpg")]


@pytest.mark.parametrize(
    ("code", "text", "error", "match"),
    [
        (1400, "auth check failure for root:hunter2", GalleryError, "refuses the name and passw"),
        (65535, "database not found[database=none]", GalleryError, "no database 'none'"),
        (100, "can't find collection hunter2", GalleryError, "can't find collection"),
        (1100, "invalid parameter root:hunter2", GalleryError, "refuses: invalid parameter"),
        (6, "unknown escape", GalleryError, "refuses: unknown escape"),
        (1, "service unavailable: root:hunter2", GalleryUnavailableError, "does not answer"),
        (8, "rate limit exceeded", GalleryUnavailableError, "does not answer"),
    ],
)
def test_what_a_server_refuses_is_told_without_the_password(tmp_path, code, text, error, match):
    from pymilvus import MilvusException

    class Refusing:
        def has_collection(self, *_: Any, **__: Any) -> None:
            raise MilvusException(code, text)

    with place_of("lite", tmp_path) as place:
        url = place.new_url()
        connection = MilvusConnection(replace(address_of(url), token="root:hunter2", database=""))
        connection.address = replace(connection.address, database="none")
        connection._client.close()
        connection._client = Refusing()
        with pytest.raises(GalleryError, match=match) as caught:
            connection.has("cars")
    assert caught.type is error
    assert "root:hunter2" not in str(caught.value)


# Making


def collections(connection: MilvusConnection) -> set[str]:
    name = connection.address.name
    return {each for each in connection.call("list_collections") if each.startswith(name)}


CREATION = {"create_collection": 2, "upsert": 3, "create_alias": 1}


@pytest.mark.parametrize(
    ("method", "number"), [(each, n) for each, count in CREATION.items() for n in range(count)]
)
def test_a_creation_that_fails_leaves_nothing(connection, model, method, number):
    with failing(method, number), pytest.raises(GalleryUnavailableError, match="pulled the plug"):
        Gallery.create(connection.address, model)
    assert collections(connection) == set()
    assert not connection.has(connection.address.name)


def test_a_creation_that_was_killed_is_no_obstacle(connection, model):
    killed = KeyboardInterrupt("and nothing after it is done")

    def before(method: str, _: Any) -> None:
        if method in ("create_alias", "drop_collection"):
            raise killed

    with Interposed(before), pytest.raises(KeyboardInterrupt):
        Gallery.create(connection.address, model)
    assert len(collections(connection)) == 2
    with pytest.raises(GalleryError, match="there is no gallery at"):
        Gallery.open(connection.address)
    with Gallery.create(connection.address, model) as gallery:
        gallery.add(items(unit(2)))
        assert len(gallery) == 2


def test_what_something_else_has_made_is_refused_and_left_alone(connection, model):
    name = connection.address.name
    connection.call("create_collection", name, dimension=4, timeout=60)
    connection.call("insert", name, [{"id": 7, "vector": [1.0, 0.0, 0.0, 0.0]}])
    assert is_there(connection.address)
    with pytest.raises(GalleryError, match="something else has made: choose another name"):
        Gallery.open(connection.address)
    with pytest.raises(GalleryError, match="exists already"):
        Gallery.create(connection.address, model)
    assert collections(connection) == {name}
    assert connection.count(name) == 1


def test_nothing_is_there_until_there_is_a_gallery(connection):
    assert not is_there(connection.address)
    with pytest.raises(GalleryError, match=r"no gallery at milvus://.*`dscl index build"):
        Gallery.open(connection.address)
    assert collections(connection) == set()


def test_a_gallery_of_another_format_or_damaged_is_refused(fresh):
    notes = fresh.notes
    [key] = notes.keys(COLLECTION)
    text = notes.get(key)
    notes.put(key, text.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(GalleryError, match="gallery format 2; this release reads 1"):
        Gallery.open(fresh.path)
    for damaged in (
        "{",
        "[]",
        "{}",
        '{"dscl_gallery": 3}',
        '{"dscl_gallery": {"format_version": 1}}',
    ):
        notes.put(key, damaged)
        with pytest.raises(GalleryError, match="something else has made"):
            Gallery.open(fresh.path)
    notes.put(key, text)
    Gallery.open(fresh.path).close()


def test_a_gallery_without_its_model_says_so(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("DSCL_CACHE", str(tmp_path))  # another machine, which has to fetch it
    Gallery.open(fresh.path).close()
    [listed] = [key for key in fresh.notes.keys("model/") if key.endswith(".files")]
    fresh.notes.delete(listed)
    with pytest.raises(GalleryError, match="does not keep the model"):
        Gallery.open(fresh.path)


# Ids


def test_ids_ascend_and_are_given_once_by_all_threads():
    maker = IdMaker()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda n: [i for _ in range(50) for i in maker.take(n)], range(1, 9)))
    for part in parts:
        assert part == sorted(part)
    ids = [item_id for part in parts for item_id in part]
    assert len(set(ids)) == len(ids) == 50 * 36
    assert 0 < min(ids) <= max(ids) < 2**53


def test_processes_give_different_ids_in_the_same_millisecond(monkeypatch):
    drawn = iter(range(2**10))
    monkeypatch.setattr("secrets.randbits", lambda bits: next(drawn))
    makers = [IdMaker(clock_ms=lambda: EPOCH_MS + 10**12) for _ in range(2**10)]
    ids = [item_id for maker in makers for item_id in maker.take(9)]
    assert len(set(ids)) == len(ids)


def test_ids_ascend_when_the_clock_stands_or_goes_back():
    now = [EPOCH_MS + 5000]
    maker = IdMaker(clock_ms=lambda: now[0])
    given = maker.take(3) + maker.take(10_000)
    now[0] -= 4000
    given += maker.take(3)
    now[0] += 10**9
    given += maker.take(3)
    assert given == sorted(set(given))


def test_ids_are_exact_in_javascript_for_decades():
    in_2090 = EPOCH_MS + 65 * 365 * 24 * 3600 * 1000
    assert max(IdMaker(clock_ms=lambda: in_2090).take(1000)) < 2**53


# Literals


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('a"b\\c\nd\re\tf', '"a\\"b\\\\c\\nd\\re\\tf"'),
        ("\x01'é😀", '"\x01\'é😀"'),
        (["a", "b\n"], '["a", "b\\n"]'),
        ([1, 2**53], "[1, 9007199254740992]"),
        (True, "true"),
        (0.1, "0.1"),
    ],
)
def test_literals_escape_what_must_be_and_nothing_else(value, expected):
    assert literal(value) == expected


# Notes


@pytest.fixture
def notes(shared) -> Iterator[Notes]:
    yield shared.notes
    shared.notes.delete(*shared.notes.keys("test/"))


def test_a_note_is_found_until_it_is_deleted(notes, place, shared):
    texts = {f"test/{key}": text for key, text in [
        ("a", ""), ("b", "x" * MAX_TEXT), ("it's \"c\" \\ \n é😀", "it's \"c\" \\ \n \x01 é😀"),
    ]}  # fmt: skip
    notes.put_all(texts)
    with place.open(shared) as other:
        assert other.notes.items("test/") == texts
        assert list(other.notes.items("test/")) == sorted(texts)
    for key, text in texts.items():
        assert notes.get(key) == text
    notes.put("test/a", "new")
    assert notes.get("test/a") == "new"
    notes.delete("test/a", "test/none")
    notes.delete()
    assert notes.get("test/a") is None
    assert notes.keys("test/") == sorted(set(texts) - {"test/a"})


def test_notes_are_listed_by_how_their_keys_start(notes):
    keys = ["test/", "test/a", "test/a/1", "test/ab", "test/b", "test/\U0010fffe", "test0"]
    notes.put_all(dict.fromkeys(keys, "x"))
    assert notes.keys("test/a") == ["test/a", "test/a/1", "test/ab"]
    assert notes.keys("test/") == keys[:-1]
    notes.delete("test0")


def test_a_note_that_is_too_long_is_refused_and_none_is_kept(notes):
    for key, text in [("test/x", "é" * MAX_TEXT), ("test/" + "x" * MAX_KEY, "")]:
        with pytest.raises(InvalidArgumentError, match=r"note 'test/x.* expected up to"):
            notes.put_all({"test/good": "", key: text})
    assert notes.keys("test/") == []


def test_files_come_back_whole_or_not_at_all(notes, tmp_path):
    rng = np.random.default_rng(0)
    contents = {
        "large": rng.bytes(2 * 2**20 + 1),
        "empty": b"",
        "one chunk": rng.bytes(CHUNK),
        "large.more": b"its name starts like another's",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    assert not notes.has_files("test/files")
    notes.put_files("test/files", [tmp_path / name for name in contents])
    assert notes.has_files("test/files")
    notes.get_files("test/files", tmp_path / "back")
    assert {each.name: each.read_bytes() for each in (tmp_path / "back").iterdir()} == contents

    chunk = notes.keys("test/files/large/")[3]
    text = notes.get(chunk)
    for damage in (lambda: notes.delete(chunk), lambda: notes.put(chunk, text[1:])):
        damage()
        with pytest.raises(GalleryError, match=r"large has .* bytes, expected 2097153"):
            notes.get_files("test/files", tmp_path / "damaged")
        assert not (tmp_path / "damaged").exists()
    notes.put(chunk, text)
    notes.get_files("test/files", tmp_path / "mended")
    with pytest.raises(GalleryError, match="has no test/none"):
        notes.get_files("test/none", tmp_path / "none")


# Several writers


@pytest.mark.parametrize("of", ["the same photo", "the same sku", "both", "neither"])
def test_of_items_stored_at_once_one_of_each_remains(place, gallery, of):
    count, rounds = 3, 6
    others = [place.open(gallery, writable=True) for _ in range(count)]
    together = threading.Barrier(count)
    try:
        with ThreadPoolExecutor(count) as pool:
            for number in range(rounds):

                def store(writer: int, number: int = number) -> list[int]:
                    same_photo, same_sku = (
                        of in ("the same photo", "both"),
                        of in ("the same sku", "both"),
                    )
                    new = item(
                        f"{number}-{0 if same_photo else writer}.jpg",
                        unit(1)[0],
                        sku=f"s{number}-{0 if same_sku else writer}",
                    )
                    together.wait()
                    return others[writer].upsert([new])

                given = [i for ids in pool.map(store, range(count)) for i in ids]
                assert len(set(given)) == count
                held = [each.id for each in gallery.items() if each.path.startswith(f"{number}-")]
                assert held == sorted(given) if of == "neither" else held == [max(given)]
    finally:
        for each in others:
            each.close()


def test_one_gallery_object_serves_several_threads_that_store(gallery):
    def store(writer: int) -> None:
        for number in range(8):
            ids = gallery.upsert([item(f"{writer}-{number % 3}.jpg", unit(1)[0], sku=f"{writer}")])
            gallery.update(ids[0], label=f"{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store, range(4)))
    assert sorted((each.path, each.external_id, each.label) for each in gallery.items()) == [
        (f"{writer}-1.jpg", f"{writer}", "7") for writer in range(4)
    ]


@pytest.mark.parametrize("method", ["insert", "query"])
def test_a_store_that_fails_leaves_the_old_items(gallery, method):
    gallery.add([item("a.jpg", unit(1)[0], sku="s"), item("b.jpg", unit(1)[0])])
    before = seen(gallery)
    inserted: list[str] = []

    def before_call(called: str, _: Any) -> None:
        if called == method and (method == "insert" or inserted):
            raise GalleryUnavailableError("pulled the plug")
        if called == "insert":
            inserted.append(called)

    new = [item("b.jpg", unit(2)[1], sku="s"), item("c.jpg", unit(2)[1])]
    with Interposed(before_call), pytest.raises(GalleryUnavailableError, match="pulled the plug"):
        gallery.upsert(new)
    assert seen(gallery) == before
    ids = gallery.upsert(new)
    assert seen(gallery) == [(ids[0], "b.jpg"), (ids[1], "c.jpg")]


def test_what_a_stopped_store_could_not_remove_goes_with_the_next(gallery):
    [old] = gallery.add([item("a.jpg", unit(1)[0], sku="s")])
    with failing("delete", 0), pytest.raises(OutcomeUnknownError, match="look before you store"):
        gallery.upsert([item("a.jpg", unit(1)[0], sku="s")])
    assert old in gallery.ids()  # and maybe the new one: never neither
    [last] = gallery.upsert([item("a.jpg", unit(1)[0], sku="s")])
    assert gallery.ids().tolist() == [last]


def test_many_items_are_stored_all_or_none(gallery, monkeypatch):
    monkeypatch.setattr("index.milvus_client.BLOCK_BYTES", 2**14)  # 15 rows at a time
    with failing("insert", 2), pytest.raises(GalleryUnavailableError):
        gallery.add(items(unit(50)))
    assert len(gallery) == 0
    ids = gallery.add(items(unit(50)))
    assert gallery.ids().tolist() == ids


def test_a_collection_that_somebody_released_is_loaded_again(gallery):
    [item_id] = gallery.add(items(unit(1)))
    connection = MilvusConnection(gallery.path)
    for each in collections(connection):
        connection.call("release_collection", each)
    connection.close()
    assert gallery.search(unit(1), 1).ids.tolist() == [[item_id]]
    assert seen(gallery) == [(item_id, "0.jpg")]
    assert gallery.notes.keys("model/") != []


# Rebuilds


def after_the_move(first: Callable[[], Any], then: Callable[[], Any]) -> Interposed:
    """``first`` just before a rebuild moves the alias, ``then`` just after."""
    done: list[str] = []

    def before(method: str, _: Any) -> None:
        if method == "alter_alias" and not done:
            done.append("busy")
            first()
            done[:] = ["first"]
        elif done == ["first"] and method == "query":
            done.append("then")
            then()

    return Interposed(before)


@pytest.fixture
def no_wait(monkeypatch) -> None:
    """Nobody here looks up a collection and changes it after it was replaced."""
    monkeypatch.setattr("index.milvus_rebuild.LATE_S", 0.0)


def test_what_changes_before_and_after_the_move_is_as_it_was_left(place, fresh, no_wait):
    vectors = unit(8)
    a, b, c, d = fresh.add([item(f"{name}.jpg", vectors[0]) for name in "abcd"])
    with place.open(fresh, writable=True) as other:
        kept: list[int] = []

        def first() -> None:
            other.update(a, label="early")
            other.update(b, label="early")
            other.update(c, label="early")
            other.remove([d])
            other.add([item("e.jpg", vectors[1]), item("f.jpg", vectors[1], sku="f")])
            kept.extend(other.add([item("g.jpg", vectors[1])]))

        def then() -> None:
            other.update(a, label="late")
            other.remove([b])
            kept.extend(
                other.upsert([item("e.jpg", vectors[2]), item("h.jpg", vectors[2], sku="f")])
            )

        with after_the_move(first, then):
            fresh.rebuild()
        g, e, h = kept
        expected = [
            (a, "a.jpg", "late"), (c, "c.jpg", "early"), (g, "g.jpg", None),
            (e, "e.jpg", None), (h, "h.jpg", None),
        ]  # fmt: skip
        for gallery in (fresh, other):
            assert [(each.id, each.path, each.label) for each in gallery.items()] == expected
            assert gallery.search(vectors[2], 5).ids[0].tolist()[:2] == [e, h]
    with place.open(fresh) as again:
        assert [(each.id, each.path, each.label) for each in again.items()] == expected


def test_nothing_is_lost_by_a_rebuild_under_changes(place, fresh):
    """With the real wait, which is there for those who change a collection that was replaced."""
    vectors = unit(400)
    fresh.add(items(vectors[:200]))
    held = {each.id: (each.path, each.label) for each in fresh.items(limit=1000)}
    stop = threading.Event()

    def change(gallery: Gallery, name: str) -> tuple[dict[int, Any], set[int]]:
        mine: dict[int, Any] = {}
        gone: set[int] = set()
        for number in range(10_000):
            if stop.is_set():
                break
            [item_id] = gallery.add([item(f"{name}{number}.jpg", vectors[number % 400])])
            mine[item_id] = (f"{name}{number}.jpg", None)
            if number % 3 == 1:
                last = max(mine)
                gallery.update(last, label=f"{number}")
                mine[last] = (mine[last][0], f"{number}")
            if number % 4 == 3:
                first = min(mine)
                gallery.remove([first])
                del mine[first]
                gone.add(first)
        return mine, gone

    with place.open(fresh, writable=True) as other, ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(change, fresh, "same-"), pool.submit(change, other, "other-")]
        try:
            fresh.rebuild()
        finally:
            stop.set()
        for future in futures:
            mine, gone = future.result()
            assert len(mine) > 5 and gone
            held |= mine
        other.refresh()
        for gallery in (fresh, other):
            found = gallery.items(limit=10_000)
            assert {each.id: (each.path, each.label) for each in found} == held
            assert len(found) == len(gallery) == len(held)


def test_a_gallery_opened_before_follows_the_alias(place, fresh, no_wait):
    ids = fresh.add(items(unit(20)))
    connection = MilvusConnection(fresh.path)
    with place.open(fresh) as reader:
        assert not reader.refresh()
        fresh.rebuild()
        assert reader.ids().tolist() == ids  # what it looked up is still there
        assert fresh.is_at(fresh.path)
        reader.refresh()  # where the rebuild took long, it has looked by itself
        assert not reader.refresh()
        assert reader.is_at(fresh.path)
        fresh.rebuild()
        reader.refresh()
        assert reader.ids().tolist() == ids
        assert reader.search(unit(20), 20).ids.tolist() == fresh.search(unit(20), 20).ids.tolist()
        named = {each.rpartition("__")[2] for each in collections(connection)}
        assert named == {"notes", "2", "3"}
    connection.close()


@pytest.mark.parametrize(
    ("method", "number"),
    [("create_collection", 0), ("upsert", 0), ("upsert", 1), ("alter_alias", 0)],
)
def test_a_rebuild_that_fails_changes_nothing(fresh, method, number):
    fresh.add(items(unit(5)))
    before = seen(fresh)
    connection = MilvusConnection(fresh.path)
    there = collections(connection)
    with failing(method, number), pytest.raises(GalleryUnavailableError, match="pulled the plug"):
        fresh.rebuild()
    assert collections(connection) == there
    assert seen(fresh) == before
    fresh.add(items(unit(1), prefix="after-"))
    assert len(fresh) == 6
    connection.close()


def test_a_gallery_of_another_model_is_left_alone_by_those_that_opened_it_before(
    place, fresh, tmp_path, no_wait
):
    vectors = unit(6)
    ids = fresh.add(items(vectors))
    other_model = Model.load(make_model_folder(tmp_path / "other", dim=DIM + 1, seed=1))
    with place.open(fresh) as reader:
        connection = MilvusConnection(fresh.path)
        at = Place(connection)
        keep_model(at.notes, other_model)

        def embed(some: Any) -> tuple[np.ndarray, np.ndarray]:
            made = np.eye(DIM + 1, dtype=np.float32)[[row["id"] % (DIM + 1) for row in some]]
            return made, np.array([row["id"] != ids[0] for row in some])

        described = replace(at.described, model_sha256=other_model.sha256, dim=other_model.card.dim)
        rebuild(at, described, embed=embed)
        connection.close()

        for change in (
            lambda: fresh.add(items(unit(1))),
            lambda: fresh.upsert(items(unit(1))),
            lambda: fresh.update(ids[1], label="x"),
            lambda: fresh.remove([ids[1]]),
            lambda: fresh.rebuild(),
        ):
            with pytest.raises(ModelMismatchError, match="migrated to another model"):
                change()
        for gallery in (fresh, reader):
            gallery.refresh()
            assert gallery.search(vectors, 1).ids[:, 0].tolist() == ids
            assert not gallery.is_at(fresh.path)
        with place.open(fresh, writable=True) as again:
            assert again.model.sha256 == other_model.sha256
            assert again.ids().tolist() == ids[1:]
            assert again.vectors(ids[1:]).shape == (5, DIM + 1)
            with pytest.raises(ItemNotFoundError):
                again.get(ids[:1])


# Searching


def test_the_recall_of_a_tuned_gallery_is_told_to_all(place, fresh):
    fresh.add(items(unit(50)))
    with place.open(fresh) as reader:
        assert fresh.info().index.recall is None
        told = fresh.tune(0.95)
        assert told.target_recall == 0.99 or told.recall >= 0.95
        assert told.target_recall == 0.95
        reader.refresh()
    with place.open(fresh) as again:
        assert again.info().index.recall == told.recall
        assert again.info().index.parameters == told.parameters


def test_more_results_than_milvus_gives_at_once_are_found_by_comparing(gallery, monkeypatch):
    vectors = unit(60)
    gallery.add(items(vectors))
    expected = gallery.search(vectors[:3], 50)
    monkeypatch.setattr("index.milvus_search.MAX_WINDOW", 20)
    monkeypatch.setattr("index.milvus_search.CALL_RESULTS", 20)
    found = gallery.search(vectors[:3], 50)
    assert found.ids.tolist() == expected.ids.tolist()
    assert np.allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    few = gallery.search(vectors[:3], 5)
    assert few.ids.tolist() == expected.ids[:, :5].tolist()
