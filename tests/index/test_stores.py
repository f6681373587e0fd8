from __future__ import annotations

import builtins
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec.config
import httpx
import pytest
from s3fs import S3FileSystem

from index import stores
from index.errors import DsclError, ImageError, InvalidArgumentError, StoreError
from index.stores import is_remote, is_there, open_store, place_named, read_photo, stamp_of
from tests.s3_server import KEY, SECRET, new_bucket, s3_server, talking_to


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "output.txt") as address, talking_to(address):
        yield address


def test_a_folder_is_a_path_and_is_not_made(tmp_path: Path) -> None:
    place = open_store(tmp_path / "photos")
    assert isinstance(place, Path) and place == tmp_path / "photos" and not place.exists()
    assert open_store(f"file://{tmp_path}/my%20photos") == tmp_path / "my photos"
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match="no folder"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("folder", ["", "/", "/cars", "/cars/2011/"])
def test_a_bucket_is_opened_without_writing_to_it(endpoint: str, folder: str) -> None:
    bucket = new_bucket(endpoint)
    place = open_store(f"s3://{bucket}{folder}")
    assert is_remote(place)
    listed = httpx.get(f"{endpoint}/{bucket}", trust_env=False).text
    assert "<Contents>" not in listed
    # What a catalog keeps of it leads to the same place.
    assert place_named(str(place), Path("/elsewhere")) == place


def test_a_photo_of_a_store_is_read_whole_or_refused(endpoint: str) -> None:
    place = open_store(f"s3://{new_bucket(endpoint)}/cars")
    photo, empty = place / "1.jpg", place / "empty.jpg"
    photo.write_bytes(b"0123456789")
    empty.write_bytes(b"")
    assert read_photo(photo, max_bytes=10) == b"0123456789"
    assert read_photo(empty) == b""
    assert stamp_of(photo)[0] == 10 and stamp_of(photo) == stamp_of(photo)
    with pytest.raises(ImageError) as refused:
        read_photo(photo, max_bytes=9)
    assert refused.value.code == "image_too_large"
    for missing in (place / "2.jpg", place):
        assert not is_there(missing)
        with pytest.raises(FileNotFoundError):
            read_photo(missing)


def test_what_others_put_is_seen_at_once_also_after_a_listing(endpoint: str) -> None:
    bucket = new_bucket(endpoint)
    place = open_store(f"s3://{bucket}/cars")
    (place / "ab" / "1.jpg").write_bytes(b"1")
    assert len(place.fs.find(place.path)) == 1
    other = S3FileSystem(skip_instance_cache=True)
    other.pipe_file(f"{bucket}/cars/ab/2.jpg", b"2")
    assert read_photo(place / "ab" / "2.jpg") == b"2"
    assert len(place.fs.find(place.path)) == 2
    other.rm_file(f"{bucket}/cars/ab/2.jpg")
    assert not is_there(place / "ab" / "2.jpg")


def test_the_endpoint_may_be_named_as_fsspec_does(endpoint: str) -> None:
    bucket = new_bucket(endpoint)
    with talking_to("http://127.0.0.1:9"), pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL")
        patch.setitem(fsspec.config.conf, "s3", {})
        # As fsspec does when it is imported.
        fsspec.config.set_conf_env(fsspec.config.conf, {"FSSPEC_S3_ENDPOINT_URL": endpoint})
        assert is_remote(open_store(f"s3://{bucket}/cars"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nope://cars", "no such scheme"),
        ("simplecache::s3://cars", "no such scheme"),
        ("s3://", "names no bucket"),
        (f"s3://{KEY}:{SECRET}@bucket/cars", "name or password"),
        (f"s3://{SECRET}@bucket/cars", "name or password"),
        ("gs://bucket", "not installed"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url: str, expected: str) -> None:
    with pytest.raises(InvalidArgumentError, match=expected) as refused:
        open_store(url)
    assert SECRET not in str(refused.value)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stores._remote.cache_clear()
    real = builtins.__import__

    def without_upath(name: str, *rest: Any) -> Any:
        if name == "upath":
            raise ModuleNotFoundError("No module named 'upath'", name="upath")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_upath)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'dscl-retrieval\[s3\]'"):
        open_store("s3://bucket/cars")


def test_a_bucket_that_is_not_there_is_named(endpoint: str) -> None:
    with pytest.raises(StoreError, match=r"no bucket not-there .*AWS_ENDPOINT_URL"):
        open_store("s3://not-there/cars")
    assert httpx.get(f"{endpoint}/not-there", trust_env=False).status_code == 404


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """The address of a server that refuses everything in the words of S3, quoting the key."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = f"<Error><Code>{code}</Code><Message>{KEY} {SECRET}</Message></Error>"
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as taken:  # bound, and listening to nobody
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (answering(403, "AccessDenied"), "denies access"),
        (answering(403, "InvalidAccessKeyId"), "denies access"),
        (answering(403, "SignatureDoesNotMatch"), "denies access"),
        (answering(501, "NotImplemented"), "cannot be used"),
        (closed_port(), "cannot be used"),
    ],
)
def test_a_store_that_refuses_or_is_not_there_is_named_without_the_keys(
    server: Any, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with server as address, talking_to(address):
        with pytest.raises(StoreError, match=expected) as refused:
            open_store("s3://garage/cars")
        assert isinstance(refused.value, DsclError) and refused.value.code == "store_unreachable"
        assert "s3://garage" in str(refused.value)
        for secret in (KEY, SECRET):
            assert secret not in str(refused.value) and secret not in caplog.text
