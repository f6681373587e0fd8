"""``UrlFetcher``: a photo from an address on the public internet, and from nowhere else.

Whoever may search could otherwise have the service look at what only it can reach: itself, its
neighbours, the metadata of its cloud. So:

- only http and https, on ports 80 and 443, without user names;
- a host name is resolved once for a connection, all its addresses must be public, and the
  connection goes to an address that was checked; every redirect starts all over;
- no proxy and no other setting of the environment, no cookies, no compression;
- the bytes and the time of the whole are bounded, and so is the number of fetches at a time.

What came is not trusted either: it goes the way of an upload.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from index.errors import DsclError
from service.batching import WorkerPool
from service.errors import OverloadedError

__all__ = ["UrlError", "UrlFetcher", "is_public"]

#: Of http and https; anything else on a public address is no web server for pictures.
PORTS = {"http": 80, "https": 443}

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)

#: Fetches at a time: each holds up to ``max_bytes``.
MAX_FETCHES = 16

#: The global unicast addresses of IPv6; mapped, translated and local ones are all outside.
GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")

#: Global by their form, but they lead to other addresses or are nobody's.
DENIED = [
    ipaddress.ip_network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID and other special purposes
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",  # documentation
        "192.0.0.0/24",  # special purposes, one cloud's metadata among them
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # the host of virtual machines on Azure
    )
]

#: What servers call pictures, and files of which they know no more.
MEDIA_TYPES = re.compile(r"image/.*|(application|binary)/octet-stream")

#: Addresses (as text) of a host name and port.
Resolve = Callable[[str, int], Sequence[str]]


class UrlError(DsclError):
    """A photo that cannot be fetched.

    ``code``: ``url_invalid``, ``url_forbidden`` (not public, or not found), ``url_unreachable``,
    ``url_timeout``, ``url_status``, ``url_too_large`` or ``url_media_type``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet can reach."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 6 and parsed not in GLOBAL_IPV6:
        return False
    special = any(parsed in network for network in DENIED if network.version == parsed.version)
    return parsed.is_global and not parsed.is_multicast and not special


def resolve(host: str, port: int) -> list[str]:
    """The addresses that the system gives for a host. Raises OSError if there is none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class UrlFetcher:
    """Fetches photos. Of one event loop."""

    def __init__(
        self,
        *,
        timeout_s: float,
        max_bytes: int,
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Make a fetcher.

        Args:
            timeout_s: seconds for the whole fetch, redirects included.
            max_bytes: the largest photo.
            resolve: tells the addresses of a host; called on a thread.
            network: connects to addresses.
            ssl_context: whose certificates are trusted; default: the usual authorities.
        """
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._resolver = WorkerPool("resolve", workers=4, queue_limit=MAX_FETCHES)
        self._network = _PublicNetwork(network or httpcore.AnyIOBackend(), resolve, self._resolver)
        self._ssl_context = ssl_context or httpcore.default_ssl_context()
        self._places = MAX_FETCHES

    def close(self) -> None:
        """Stop the threads that resolve names."""
        self._resolver.close()

    async def fetch(self, url: str) -> bytes:
        """The bytes at ``url``.

        Raises:
            UrlError: see there.
            OverloadedError: too many fetches are going on.
        """
        if self._places == 0:
            raise OverloadedError("the service fetches too much already: try again in a second.")
        self._places -= 1
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url)
        except TimeoutError as error:
            raise UrlError(
                "url_timeout",
                f"{_shown(url)} took longer than {self._timeout_s:g} seconds: send the photo "
                "itself.",
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise UrlError(
                "url_unreachable",
                f"{_shown(url)} cannot be fetched ({str(error) or type(error).__name__}): send the "
                "photo itself.",
            ) from error
        finally:
            self._places += 1

    async def _follow(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            target = _Target.of(url)
            # A pool for each step, so that no connection outlives the check of its address.
            async with (
                httpcore.AsyncConnectionPool(
                    ssl_context=self._ssl_context, network_backend=self._network
                ) as pool,
                pool.stream("GET", target.url, headers=target.headers) as response,
            ):
                headers = {name.lower(): value for name, value in response.headers}
                if response.status not in REDIRECTS or b"location" not in headers:
                    return await self._read(url, response, headers)
                url = urljoin(url, headers[b"location"].decode("latin-1"))
        raise UrlError(
            "url_status", f"{_shown(url)} is behind more than {MAX_REDIRECTS} redirects."
        )

    async def _read(
        self, url: str, response: httpcore.Response, headers: dict[bytes, bytes]
    ) -> bytes:
        if response.status != 200:
            raise UrlError(
                "url_status",
                f"{_shown(url)} answered with status {response.status}: expected 200 and a photo.",
            )
        media_type = headers.get(b"content-type", b"application/octet-stream").decode("latin-1")
        if not MEDIA_TYPES.fullmatch(media_type.partition(";")[0].strip().lower()):
            raise UrlError(
                "url_media_type",
                f"{_shown(url)} is {media_type[:100]!r}, not a picture: give the address of the "
                "photo itself, not of a page that shows it.",
            )
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise UrlError(
                "url_media_type",
                f"{_shown(url)} is compressed for transport, though it was asked not to be: send "
                "the photo itself.",
            )
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > self._max_bytes:
            raise self._too_large(url)
        parts, size = [], 0
        async for part in response.aiter_stream():
            size += len(part)
            if size > self._max_bytes:
                raise self._too_large(url)
            parts.append(part)
        return b"".join(parts)

    def _too_large(self, url: str) -> UrlError:
        return UrlError(
            "url_too_large",
            f"{_shown(url)} has more than {self._max_bytes:,} bytes: send a smaller photo.",
        )


@dataclass(frozen=True)
class _Target:
    """A URL taken apart, and what is asked of the server, made of the parts that were checked."""

    url: httpcore.URL
    headers: list[tuple[bytes, bytes]]

    @classmethod
    def of(cls, url: str) -> _Target:
        """Check the form of a URL. Raises UrlError ``url_invalid``."""
        # urlsplit drops some of these silently, and other parsers take \ for /.
        if bad := re.search(r"[\x00-\x20\x7f\\]", url):
            raise _invalid(url, f"it holds the character {bad[0]!r}: percent-encode it")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _invalid(url, str(error)) from error
        if parts.scheme not in PORTS:
            raise _invalid(url, "expected http:// or https://")
        if not host:
            raise _invalid(url, "it has no host")
        if "@" in parts.netloc:
            raise _invalid(url, "user names and passwords are not sent")
        if port is None:
            port = PORTS[parts.scheme]
        if port not in PORTS.values():
            raise _invalid(url, f"port {port} is not fetched from, only 80 and 443")
        try:
            name = host.encode("ascii") if host.isascii() else host.encode("idna")
        except UnicodeError as error:
            raise _invalid(url, "its host is no name of a computer") from error
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        target = f"{path}?{query}" if query else path
        literal = b"[" + name + b"]" if b":" in name else name
        usual = port == PORTS[parts.scheme]
        return cls(
            httpcore.URL(
                scheme=parts.scheme.encode(), host=name, port=port, target=target.encode()
            ),
            [
                (b"Host", literal if usual else literal + b":%d" % port),
                (b"User-Agent", b"dscl"),
                (b"Accept", b"image/*"),
                (b"Accept-Encoding", b"identity"),
            ],
        )


class _PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only: the one place through which every connection goes."""

    def __init__(
        self, network: httpcore.AsyncNetworkBackend, resolve: Resolve, resolver: WorkerPool
    ) -> None:
        self._network = network
        self._resolve = resolve
        self._resolver = resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check all addresses, connect to the first of them that answers."""
        addresses = await self._addresses(host, port)
        # One public address beside a private one is how a check is slipped past: all or none.
        if not addresses or not all(map(is_public, addresses)):
            # The same words for both, so that nobody learns which names there are inside.
            raise UrlError(
                "url_forbidden",
                f"{host[:200]} is not found on the public internet: send the photo itself.",
            )
        error: httpcore.NetworkError | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as refused:
                error = refused
        assert error is not None
        raise error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise UrlError("url_forbidden", "sockets of this machine are not fetched from.")

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            return list(dict.fromkeys(await self._resolver.run(self._resolve, host, port)))
        except (OSError, UnicodeError):  # no such name, or none that a name can be
            return []


def _invalid(url: str, reason: str) -> UrlError:
    return UrlError(
        "url_invalid",
        f"{_shown(url)} cannot be fetched: {reason}. Give an address such as "
        "https://example.com/photo.jpg.",
    )


def _shown(url: str) -> str:
    """A URL in a message: without what may be secret in it, and without what could forge a line."""
    text = url.partition("?")[0].partition("#")[0]
    text = re.sub(r"//[^/]*@", "//", text)
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
