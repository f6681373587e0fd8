"""The route of a search by photo: the framework's answer for a fraction of its work.

A search spends longer in the framework's form parser and dependencies than in reading its photo, so
a request as nearly all clients send it, one file in a form and plain parameters, is read here.
Anything else goes the long way, through the framework: another kind of body, a parameter that it
might refuse. What is recognised here is only what certainly passes its checks, so there is one
definition of parameters and errors, and the interface's description is made from it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from fastapi import HTTPException
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

__all__ = ["photo_route", "plain_parameters", "single_file"]

#: Characters that a boundary may have (RFC 2046, section 5.1.1), less the blank.
CONTENT_TYPE = re.compile(r"multipart/form-data; ?boundary=([A-Za-z0-9'()+_,./:=?-]{1,70})")

#: The head of a part that is a file by the name "file"; the framework ignores all of it but names.
PART_HEAD = re.compile(
    rb'content-disposition: form-data; name="file"; filename="[^"\\\r\n]*"'
    rb"(?:\r\ncontent-type: [^\r\n]*)?(?:\r\ncontent-length: \d+)?",
    re.IGNORECASE,
)
MAX_PART_HEAD = 2048

#: Digits of a number that the framework would certainly read.
INTEGER = re.compile(r"0|[1-9][0-9]{0,3}", re.ASCII)
DECIMAL = re.compile(r"-?(?:0(?:\.[0-9]{1,9})?|1(?:\.0{1,9})?)", re.ASCII)

#: Text of a filter that the framework lets pass.
MAX_WHERE = 20_000

#: Answers a photo; its errors are those of the endpoint.
Answer = Callable[..., Awaitable[Response]]


def photo_route(short_way: Answer) -> type[APIRoute]:
    """A kind of route whose endpoint takes one ``file``, with a shorter way for usual requests.

    Args:
        short_way: answers those, called with the request, the photo's bytes and, as keywords, the
            parameters that were given.
    """

    class PhotoRoute(APIRoute):
        """Takes the short way where it can."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """What answers a request."""
            long_way = super().get_route_handler()

            async def answer(request: Request) -> Response:
                parameters = plain_parameters(request.scope["query_string"])
                found = CONTENT_TYPE.fullmatch(request.headers.get("Content-Type", ""))
                if parameters is None or found is None:
                    return await long_way(request)
                try:
                    # The request keeps it, so that the long way can read it again.
                    body = await request.body()
                except ClientDisconnect as error:
                    raise HTTPException(400, "The body broke off.") from error
                photo = single_file(found[1].encode(), body)
                if photo is None:
                    return await long_way(request)
                return await short_way(request, photo, **parameters)

            return answer

    return PhotoRoute


def single_file(boundary: bytes, body: bytes) -> bytes | None:
    """The content of a form that has nothing but one file by the name "file"; else None."""
    start = len(boundary) + 4
    if body[:start] != b"--%b\r\n" % boundary:
        return None
    head_end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEAD)
    if head_end < 0 or not PART_HEAD.fullmatch(body, start, head_end):
        return None
    end = body.find(b"\r\n--%b" % boundary, head_end + 4)
    if end < 0 or body[end + start :] not in (b"--\r\n", b"--"):
        return None
    return body[head_end + 4 : end]


def plain_parameters(query: bytes) -> dict[str, Any] | None:
    """The parameters of a search, converted; None where the framework has to look at them."""
    if not query:
        return {}
    parameters: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "include":
            parameters.setdefault(name, []).append(value)
        elif name in parameters:
            return None
        elif name in ("k", "offset") and INTEGER.fullmatch(value):
            parameters[name] = int(value)
        elif name == "threshold" and DECIMAL.fullmatch(value):
            parameters[name] = float(value)
        elif (name == "group_by" and value) or (name == "where" and len(value) <= MAX_WHERE):
            parameters[name] = value
        else:
            return None
    return parameters
