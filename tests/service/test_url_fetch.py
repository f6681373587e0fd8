"""Fetching by URL, against real servers on loopback that stand for the internet.

Public addresses cannot be reached from a test, so ``Internet`` connects each (address, port) that
is asked for to a server here, and keeps what was asked for: only the last step is not the real one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore
import pytest

from service.errors import STATUS, OverloadedError
from service.url_fetch import MAX_FETCHES, UrlError, UrlFetcher, is_public

PUBLIC = "93.184.215.14"
OTHER = "151.101.1.69"
PHOTO = bytes(range(256)) * 40
MAX_BYTES = 20_000

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def answer(
    body: bytes = PHOTO, *, status: str = "200 OK", kind: str | None = "image/jpeg", **headers: str
) -> Handler:
    """Answers everything with these."""

    async def handle(_: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
        lines += [f"Content-Type: {kind}"] if kind is not None else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return handle


def redirect(location: str, status: str = "302 Found") -> Handler:
    return answer(b"", status=status, Location=location)


class Internet(httpcore.AsyncNetworkBackend):
    """Addresses and ports that have a server; a connection to any other is refused."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.requests: list[bytes] = []
        self._ports: dict[tuple[str, int], int] = {}
        self._servers: list[asyncio.Server] = []
        self._real = httpcore.AnyIOBackend()

    async def serve(
        self, address: str, port: int, handle: Handler, tls: ssl.SSLContext | None = None
    ) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(request)
                await handle(request, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
        self._servers.append(server)
        self._ports[address, port] = server.sockets[0].getsockname()[1]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.asked.append((host, port))
        if (host, port) not in self._ports:
            raise httpcore.ConnectError("connection refused")
        return await self._real.connect_tcp("127.0.0.1", self._ports[host, port], timeout)

    def close(self) -> None:
        for server in self._servers:
            server.close()


class Names:
    """Answers to questions for a name, one after another; the last one for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        given = self._answers[host]
        return given.pop(0) if len(given) > 1 else given[0]


@asynccontextmanager
async def fetching(
    names: Callable[[str, int], Sequence[str]] | None = None,
    *,
    timeout_s: float = 20,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[UrlFetcher, Internet]]:
    internet = Internet()
    fetcher = UrlFetcher(
        timeout_s=timeout_s,
        max_bytes=MAX_BYTES,
        resolve=names or Names(cars_test=[[PUBLIC]], other_test=[[OTHER]]),
        network=internet,
        ssl_context=ssl_context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # quick; trusts nobody
    )
    try:
        yield fetcher, internet
    finally:
        fetcher.close()
        internet.close()


async def refusal(fetcher: UrlFetcher, url: str, code: str) -> str:
    with pytest.raises(UrlError) as caught:
        await fetcher.fetch(url)
    assert caught.value.code == code, caught.value
    assert code in STATUS
    return str(caught.value)


def with_server(*urls: str, handle: Handler, code: str | None = None) -> str:
    """Fetch URLs from the server at cars.test; the last message if refused."""

    async def run() -> str:
        message = ""
        async with fetching() as (fetcher, internet):
            await internet.serve(PUBLIC, 80, handle)
            for url in urls:
                if code is None:
                    assert await fetcher.fetch(url) == PHOTO
                else:
                    message = await refusal(fetcher, url, code)
        return message

    return asyncio.run(run())


# What may be fetched


@pytest.mark.parametrize(
    "url",
    [
        "http://cars.test/photo.jpg",
        "HTTP://CARS.TEST/photo.jpg",
        "http://cars.test:80/photo.jpg?a=1&b=%20#part",
        "http://cars.test",
        "http://cars.test/зебра.jpg?ключ=é",
    ],
)
def test_a_photo_at_a_public_address_comes_as_it_is(url: str) -> None:
    with_server(url, handle=answer())


@pytest.mark.parametrize("kind", ["image/png; charset=x", "application/octet-stream", None])
def test_types_that_a_picture_may_have_are_taken(kind: str | None) -> None:
    with_server("http://cars.test/", handle=answer(kind=kind))


def test_a_body_in_chunks_is_put_together() -> None:
    async def chunked(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(PHOTO), 1000):
            part = PHOTO[start : start + 1000]
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        writer.write(b"0\r\n\r\n")

    with_server("http://cars.test/", handle=chunked)


def test_the_request_names_the_host_and_tells_nothing_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def run() -> None:
        async with fetching() as (fetcher, internet):
            await internet.serve(PUBLIC, 80, answer(Set_Cookie="a=b"))
            await fetcher.fetch("http://cars.test/a?b=c#d")
            await fetcher.fetch("http://cars.test/a?b=c#d")
            assert internet.asked == [(PUBLIC, 80)] * 2
            first, second = internet.requests
            assert first == second  # so no cookie was kept
            lines = first.decode().splitlines()
            assert lines[:2] == ["GET /a?b=c HTTP/1.1", "Host: cars.test"]
            assert {line.partition(":")[0] for line in lines[1:-1]} == {
                "Host",
                "User-Agent",
                "Accept",
                "Accept-Encoding",
            }

    asyncio.run(run())


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async def run() -> None:
        async with fetching(Names(cars_test=[[OTHER, PUBLIC]])) as (fetcher, internet):
            await internet.serve(PUBLIC, 80, answer())
            assert await fetcher.fetch("http://cars.test/") == PHOTO
            assert internet.asked == [(OTHER, 80), (PUBLIC, 80)]

    asyncio.run(run())


# Addresses

PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:93.184.215.14",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_not_connected_to(address: str) -> None:
    assert not is_public(address)

    async def run() -> None:
        async with fetching(Names(inside_test=[[address]])) as (fetcher, internet):
            await refusal(fetcher, "http://inside.test/", "url_forbidden")
            assert internet.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("address", [PUBLIC, OTHER, "8.8.8.8", "2606:4700::1111", "2a00:1450::1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "017700000001",
        "0177.0.0.1",
        "0",
        "localhost",
        "LOCALHOST.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:169.254.169.254]",
        "[64:ff9b::127.0.0.1]",
        "169.254.169.254",
        "①②⑦.0.0.1",
        "127。0。0。1",
    ],
)
def test_no_way_of_writing_loopback_gets_there_by_the_real_resolver(host: str) -> None:
    async def run() -> None:
        reached = asyncio.Event()

        async def reach(_: bytes, writer: asyncio.StreamWriter) -> None:
            reached.set()

        internet = Internet()
        for address in ("127.0.0.1", "::1", "0.0.0.0", "169.254.169.254"):
            await internet.serve(address, 80, reach)
        fetcher = UrlFetcher(
            timeout_s=20,
            max_bytes=MAX_BYTES,
            network=internet,
            ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )
        try:
            await refusal(fetcher, f"http://{host}/", "url_forbidden")
            assert internet.asked == []
            assert not reached.is_set()
        finally:
            fetcher.close()
            internet.close()

    asyncio.run(run())


def test_a_private_address_beside_a_public_one_spoils_both() -> None:
    async def run() -> None:
        names = Names(both_test=[[PUBLIC, "10.0.0.1"]])
        async with fetching(names) as (fetcher, internet):
            await internet.serve(PUBLIC, 80, answer())
            await refusal(fetcher, "http://both.test/", "url_forbidden")
            assert internet.asked == []

    asyncio.run(run())


def test_a_name_whose_answer_changes_is_asked_once_and_the_checked_address_connected_to() -> None:
    async def run() -> None:
        names = Names(rebind_test=[[PUBLIC], ["127.0.0.1"]])
        async with fetching(names) as (fetcher, internet):
            await internet.serve(PUBLIC, 80, answer())
            await internet.serve("127.0.0.1", 80, answer(b"secret"))
            assert await fetcher.fetch("http://rebind.test/") == PHOTO
            assert (names.asked, internet.asked) == (["rebind.test"], [(PUBLIC, 80)])
            # A second fetch asks again, and is checked again.
            await refusal(fetcher, "http://rebind.test/", "url_forbidden")
            assert internet.asked == [(PUBLIC, 80)]

    asyncio.run(run())


def test_an_unknown_name_and_a_private_one_are_told_in_the_same_words() -> None:
    async def run() -> None:
        async with fetching(Names(inside_test=[["10.0.0.1"]])) as (fetcher, _):
            private = await refusal(fetcher, "http://inside.test/", "url_forbidden")
            unknown = await refusal(fetcher, "http://absent.test/", "url_forbidden")
            assert private.replace("inside", "absent") == unknown
            assert "10.0.0.1" not in private

    asyncio.run(run())


# Redirects


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm"])
def test_a_redirect_to_another_public_address_is_followed(status: str) -> None:
    async def run() -> None:
        async with fetching() as (fetcher, internet):
            await internet.serve(PUBLIC, 80, redirect("//other.test/b.jpg", status))
            await internet.serve(OTHER, 80, answer())
            assert await fetcher.fetch("http://cars.test/a.jpg") == PHOTO
            assert internet.requests[1].startswith(b"GET /b.jpg HTTP/1.1\r\nHost: other.test\r\n")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://127.0.0.1/", "url_forbidden"),
        ("http://[::ffff:127.0.0.1]/", "url_forbidden"),
        ("http://169.254.169.254/latest/meta-data/", "url_forbidden"),
        ("http://inside.test/", "url_forbidden"),
        ("http://cars.test:22/", "url_invalid"),
        ("http://user:secret@cars.test/", "url_invalid"),
        ("file:///etc/passwd", "url_invalid"),
        ("gopher://cars.test/", "url_invalid"),
        ("ftp://cars.test/photo.jpg", "url_invalid"),
        ("data:image/png;base64,AAAA", "url_invalid"),
        ("http://cars.test/\\..\\x", "url_invalid"),
    ],
)
def test_a_redirect_is_checked_like_what_was_asked_for(location: str, code: str) -> None:
    def names(host: str, port: int) -> Sequence[str]:
        known = {"cars.test": [PUBLIC], "inside.test": ["192.168.0.1"]}
        return known.get(host) or [host]

    async def run() -> None:
        async with fetching(names) as (fetcher, internet):
            await internet.serve(PUBLIC, 80, redirect(location))
            await refusal(fetcher, "http://cars.test/", code)
            assert internet.asked == [(PUBLIC, 80)]

    asyncio.run(run())


def test_a_redirect_to_a_name_whose_answer_has_changed_is_refused() -> None:
    async def run() -> None:
        names = Names(rebind_test=[[PUBLIC], ["127.0.0.1"]])
        async with fetching(names) as (fetcher, internet):
            await internet.serve(PUBLIC, 80, redirect("/again"))
            await refusal(fetcher, "http://rebind.test/", "url_forbidden")
            assert internet.asked == [(PUBLIC, 80)]

    asyncio.run(run())


def test_redirects_without_end_are_given_up() -> None:
    message = with_server("http://cars.test/", handle=redirect("/on"), code="url_status")
    assert "redirects" in message


# Forms


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://cars.test/",
        "gopher://cars.test:80/",
        "unix:///run/docker.sock",
        "//cars.test/",
        "cars.test/photo.jpg",
        "http:cars.test",
        "http://",
        "http:///x",
        "http://:80/",
        "http://cars.test:22/",
        "http://cars.test:8080/",
        "http://cars.test:0/",
        "http://cars.test:99999/",
        "http://cars.test:eighty/",
        "http://user@cars.test/",
        "http://user:secret@cars.test/",
        "http://@cars.test/",
        "http://cars.test\\@10.0.0.1/",
        "http://cars.test/a b",
        "http://cars.test/\r\nX-Injected: 1",
        "http://ca\trs.test/",
        " http://cars.test/",
        "http://cars.test/\0",
        "http://[::1/",
        "http://[cars.test]/",
        f"http://{'a' * 70}é.test/",
    ],
)
def test_what_is_no_plain_web_address_is_refused_before_any_question(url: str) -> None:
    async def run() -> None:
        names = Names(cars_test=[[PUBLIC]])
        async with fetching(names) as (fetcher, internet):
            message = await refusal(fetcher, url, "url_invalid")
            assert "secret" not in message
            assert "\n" not in message
            assert (names.asked, internet.asked) == ([], [])

    asyncio.run(run())


# Answers


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "206 Partial", "204 None"])
def test_other_statuses_than_200_are_told(status: str) -> None:
    message = with_server(
        "http://cars.test/", handle=answer(status=status, kind="image/jpeg"), code="url_status"
    )
    assert status[:3] in message


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json", "video/mp4", ""])
def test_other_types_than_pictures_are_refused(kind: str) -> None:
    with_server("http://cars.test/", handle=answer(kind=kind), code="url_media_type")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip"])
def test_a_body_that_would_have_to_be_unpacked_is_refused(coding: str) -> None:
    handle = answer(Content_Encoding=coding)
    with_server("http://cars.test/", handle=handle, code="url_media_type")


def test_a_length_beyond_the_limit_is_refused_before_the_body() -> None:
    async def boast(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1))
        await asyncio.sleep(3600)  # the body never comes

    with_server("http://cars.test/", handle=boast, code="url_too_large")


def test_an_endless_body_is_cut_at_the_limit() -> None:
    sent = 0

    async def endless(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(10_000))
            await writer.drain()
            sent += 10_000

    with_server("http://cars.test/", handle=endless, code="url_too_large")
    assert sent < 50_000_000  # what sockets hold, no more


async def _drip(writer: asyncio.StreamWriter, start: bytes, drop: bytes) -> None:
    writer.write(start)
    while True:
        writer.write(drop)
        await writer.drain()
        await asyncio.sleep(0.05)


SLOW = {
    "silent": (b"", b""),
    "slow headers": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "endless interim answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "slow body": (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", b"x"),
}


@pytest.mark.parametrize("name", SLOW)
def test_one_that_never_ends_is_given_up_in_time(name: str) -> None:
    async def drip(_: bytes, writer: asyncio.StreamWriter) -> None:
        await _drip(writer, *SLOW[name])

    async def run() -> None:
        async with fetching(timeout_s=0.4) as (fetcher, internet):
            await internet.serve(PUBLIC, 80, drip)
            loop = asyncio.get_running_loop()
            start = loop.time()
            await refusal(fetcher, "http://cars.test/", "url_timeout")
            assert loop.time() - start < 10

    asyncio.run(run())


def test_slow_redirects_share_one_deadline() -> None:
    async def slow(_: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await redirect("/on")(b"", writer)

    async def run() -> None:
        async with fetching(timeout_s=0.8) as (fetcher, internet):
            await internet.serve(PUBLIC, 80, slow)
            await refusal(fetcher, "http://cars.test/", "url_timeout")
            assert len(internet.asked) < 4

    asyncio.run(run())


BROKEN = {
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "nothing": b"",
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "huge header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 500_000 + b"\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_proper_http_is_unreachable(name: str) -> None:
    async def broken(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(BROKEN[name])
        await writer.drain()

    with_server("http://cars.test/", handle=broken, code="url_unreachable")


def test_a_server_that_is_not_there_is_unreachable() -> None:
    async def run() -> None:
        async with fetching() as (fetcher, _):
            await refusal(fetcher, "http://cars.test/", "url_unreachable")

    asyncio.run(run())


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of cars.test, signed by nobody but itself, with its key."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
            *("-subj", "/CN=cars.test", "-addext", "subjectAltName=DNS:cars.test"),
            *("-keyout", "-", "-out", "-"),
        ],
        capture_output=True,
        check=True,
    )
    file.write_bytes(made.stdout)
    return file


def over_tls(certificate: Path, host: str, *, trusted: bool) -> bytes:
    async def run() -> bytes:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        context = ssl.create_default_context(cafile=str(certificate)) if trusted else None
        async with fetching(ssl_context=context) as (fetcher, internet):
            for address in (PUBLIC, OTHER):
                await internet.serve(address, 443, answer(), tls)
            return await fetcher.fetch(f"https://{host}/")

    return asyncio.run(run())


def test_https_is_checked_against_the_name_though_the_address_is_connected_to(
    certificate: Path,
) -> None:
    assert over_tls(certificate, "cars.test", trusted=True) == PHOTO
    for host, trusted in [("other.test", True), ("cars.test", False)]:
        with pytest.raises(UrlError, match="certificate") as caught:
            over_tls(certificate, host, trusted=trusted)
        assert caught.value.code == "url_unreachable"


# Load


def test_fetches_beyond_the_limit_are_refused_and_places_come_back() -> None:
    async def run() -> None:
        go = asyncio.Event()
        waiting = asyncio.Semaphore(0)

        async def wait(request: bytes, writer: asyncio.StreamWriter) -> None:
            waiting.release()
            await go.wait()
            await answer()(request, writer)

        async with fetching() as (fetcher, internet):
            await internet.serve(PUBLIC, 80, wait)
            tasks = [
                asyncio.ensure_future(fetcher.fetch("http://cars.test/"))
                for _ in range(MAX_FETCHES)
            ]
            for _ in tasks:
                await waiting.acquire()
            with pytest.raises(OverloadedError):
                await fetcher.fetch("http://cars.test/")
            tasks[0].cancel()  # as when a client goes away
            go.set()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert done[1:] == [PHOTO] * (MAX_FETCHES - 1)
            for _ in range(MAX_FETCHES + 1):
                assert await fetcher.fetch("http://cars.test/") == PHOTO

    asyncio.run(run())
