"""What a request may do: the scopes that routes require, and the dependency that says so.

Whose request it is, ``service.access`` has found out before.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.types import Scope

from index.errors import DsclError
from service.errors import RefusedBody
from service.keys import SCOPES

__all__ = ["Require", "ScopeMissingError", "check_route", "require"]


class ScopeMissingError(DsclError):
    """A key that may not do what was asked."""

    code = "scope_missing"


class Require(SecurityBase):
    """A dependency that lets only those pass who have a scope.

    For the interface's description it is the scheme by which a key is sent.
    """

    scheme_name = "key"
    model = HTTPBearer(
        description="An access key, sent as `Authorization: Bearer dscl_…` or `X-API-Key: dscl_…`. "
        "A service without keys needs none."
    )

    def __init__(self, scope: str) -> None:
        """Require ``scope``, one of ``SCOPES``."""
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        """Check the request.

        Raises:
            ScopeMissingError: its key has a smaller scope.
        """
        self.check(request.scope)

    def check(self, scope: Scope) -> None:
        """The same for an ASGI scope that ``service.access`` has seen."""
        granted: str = scope["state"]["granted"]
        if SCOPES.index(granted) < SCOPES.index(self.scope):
            raise ScopeMissingError(
                f"{scope['method']} {scope['path']} needs a key of scope {self.scope}, and this "
                f"one, {scope['state']['client']}, has {granted}: ask for another."
            )


def require(scope: str) -> Require:
    """The dependency of a route that needs ``scope``: ``Depends(require("write"))``.

    Declare it on the route or in ``APIRouter(dependencies=…)``: ``check_route`` looks there.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
    return Require(scope)


def check_route(scope: Scope) -> None:
    """Check what the route of a request requires, before any of its body is read.

    The framework reads a body before it calls dependencies; without this, whoever may read could
    have the service take in an upload that only writers may make.

    Raises:
        RefusedBody: the request's key has a smaller scope.
    """
    for each in getattr(scope.get("route"), "dependencies", ()):
        if isinstance(each.dependency, Require):
            try:
                each.dependency.check(scope)
            except ScopeMissingError as error:
                raise RefusedBody(error) from error
