"""The gate in front of all routes: who asks, whether they may, and how often.

It stands before any of a body is read, so that a stranger cannot make the service take one in.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.errors import DsclError
from service.errors import error_response
from service.keys import AccessKey, KeyRing
from service.rate_limit import Allowance, RateLimiter
from service.security import check_route
from service.settings import is_loopback

__all__ = [
    "Access",
    "KeyMissingError",
    "KeyUnknownError",
    "OriginRefusedError",
    "RateLimitedError",
    "is_open",
]

#: Answered without a key and without counting: what monitors ask, the page and the interface.
OPEN_PATHS = frozenset({"/", "/health/live", "/health/ready", "/docs", "/openapi.json"})
OPEN_FOLDER = "/web/"

#: An owner of IPv6 addresses has this many bits of them in common.
IPV6_PREFIX = 64


class KeyMissingError(DsclError):
    """A request without a key, where one is needed."""

    code = "key_missing"


class KeyUnknownError(DsclError):
    """A request with a key that the service does not know, or no longer knows."""

    code = "key_unknown"


class OriginRefusedError(DsclError):
    """A web page from elsewhere that reaches for a service which asks nobody for a key."""

    code = "origin_refused"


class RateLimitedError(DsclError):
    """A client that has asked too often."""

    code = "rate_limited"


def is_open(path: str) -> bool:
    """Whether everybody may ask for ``path``."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


class Access:
    """Lets a request through to its route, with who asks in ``request.state``.

    ``state.client`` is the key's name, or the address where no key is known; ``state.granted`` is
    the scope that ``service.security.Require`` compares with.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing,
        limiter: RateLimiter | None,
        local_only: bool,
        origins: Sequence[str] = (),
    ) -> None:
        """Stand before ``app``.

        Args:
            app: what is guarded.
            keys: who may do what; empty: everybody may do everything.
            limiter: how often; None: as often as they like.
            local_only: only this machine is meant to reach the service. While there are no keys,
                web pages from elsewhere, which its browsers could bring in, are refused.
            origins: web pages that are welcome all the same.
        """
        self.app = app
        self.keys = keys
        self.limiter = limiter
        self.local_only = local_only
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope["state"]
        state["client"] = _address((scope.get("client") or ("unknown",))[0])
        if is_open(scope["path"]):
            # Whatever else may be mounted below such a path needs no more than reading.
            state["granted"] = "read"
            await self.app(scope, receive, send)
            return
        try:
            key = self._identified(scope)
        except (KeyMissingError, KeyUnknownError, OriginRefusedError) as error:
            await error_response(Request(scope), error)(scope, receive, send)
            return
        state["granted"] = "admin" if key is None else key.scope
        if key is not None:
            state["client"] = key.name
        if self.limiter is not None:
            allowance = self.limiter.take(state["client"])
            headers = _headers(self.limiter.per_minute, allowance)
            if not allowance.allowed:
                await _too_often(scope, allowance, self.limiter, headers)(scope, receive, send)
                return
            send = _with_headers(send, headers)
        await self.app(scope, _gated(scope, receive), send)

    def _identified(self, scope: Scope) -> AccessKey | None:
        headers = Headers(scope=scope)
        if not self.keys:
            if self.local_only:
                self._check_origin(headers)
            return None
        presented = _presented(headers)
        if presented is None:
            raise KeyMissingError(
                f"{scope['method']} {scope['path']} needs an access key: send it as "
                "`Authorization: Bearer dscl_…` or `X-API-Key: dscl_…`. Whoever runs the service "
                "makes one by `dscl keys new`."
            )
        key = self.keys.find(presented)
        if key is None:
            raise KeyUnknownError(
                "the access key is not one of this service's: it has a typing error, or it was "
                "replaced. Whoever runs the service makes another by `dscl keys new`."
            )
        return key

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("Origin")
        if origin in self.origins:
            return
        # A form of another site says where it comes from. A site whose name was made to mean this
        # machine (DNS rebinding) does not, but calls the machine by that name.
        for said in (origin, f"http://{headers.get('Host', 'localhost')}"):
            if said is not None and not _is_here(said):
                raise OriginRefusedError(
                    f"{said} is not this machine, and the service has no access keys, so it "
                    "answers this machine alone. Make a key (`dscl keys new`), allow the page "
                    "(DSCL_CORS_ORIGINS), or pass --insecure (DSCL_INSECURE=1)."
                )


@lru_cache(maxsize=64)
def _is_here(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def _presented(headers: Headers) -> str | None:
    kind, _, token = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("X-API-Key") or None


@lru_cache(maxsize=4096)
def _address(host: str) -> str:
    """Where a request comes from; an IPv6 address stands for its whole network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False).network_address)


def _gated(scope: Scope, receive: Receive) -> Receive:
    """``receive`` behind what the request's route requires; known by when it is first called."""
    checked = False

    async def receive_if_allowed() -> Message:
        nonlocal checked
        if not checked:
            check_route(scope)
            checked = True
        return await receive()

    return receive_if_allowed


def _headers(per_minute: int, allowance: Allowance) -> dict[str, str]:
    return {
        "RateLimit-Limit": str(per_minute),
        "RateLimit-Remaining": str(allowance.remaining),
        "RateLimit-Reset": str(math.ceil(allowance.full_in_s)),
    }


def _too_often(
    scope: Scope, allowance: Allowance, limiter: RateLimiter, headers: dict[str, str]
) -> ASGIApp:
    error = RateLimitedError(
        f"{scope['state']['client']} has made the {limiter.per_minute} requests a minute that this "
        f"service allows: try again in {allowance.retry_in_s:.1f} seconds."
    )
    wait = max(1, math.ceil(allowance.retry_in_s))
    return error_response(Request(scope), error, headers={"Retry-After": str(wait), **headers})


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
