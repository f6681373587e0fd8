"""The short way of a search by photo takes nothing that the framework would read otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.routes.photo_route import CONTENT_TYPE, plain_parameters, single_file
from service.search_parameters import SearchOptions, SearchOptionsDep, search_options
from service.where import where_parameter

BOUNDARY = "frontier"


async def read_by_the_framework(content_type: str, body: bytes) -> list[tuple[str, Any]]:
    """The fields of a form, files by their content."""

    async def stream() -> AsyncIterator[bytes]:
        yield body
        yield b""

    parser = MultiPartParser(Headers({"content-type": content_type}), stream())
    form = await parser.parse()
    return [
        (name, await value.read() if isinstance(value, UploadFile) else value)
        for name, value in form.multi_items()
    ]


def fields(body: bytes) -> list[tuple[str, Any]] | None:
    """None where the framework refuses the body."""
    try:
        return asyncio.run(read_by_the_framework(f"multipart/form-data; boundary={BOUNDARY}", body))
    except MultiPartException:
        return None


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    frontier = BOUNDARY.encode()
    return b"".join(b"--%b\r\n%b\r\n" % (frontier, part) for part in parts) + b"--" + frontier + end


def part(head: str, content: bytes) -> bytes:
    return head.encode() + b"\r\n\r\n" + content


HEAD = 'Content-Disposition: form-data; name="file"; filename="photo.jpg"'
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from([b"\r\n", b"--", BOUNDARY.encode(), b"-", b"\r", b"\n", b"a"]), max_size=12
    ).map(b"".join),
)


@given(content=CONTENTS)
def test_one_file_is_read_as_the_framework_reads_it(content: bytes) -> None:
    body = form(part(HEAD + "\r\nContent-Type: image/jpeg", content))
    found = single_file(BOUNDARY.encode(), body)
    read = fields(body)
    if found is not None:
        assert read == [("file", found)]
    elif read is not None:
        assert b"--" + BOUNDARY.encode() in content  # no other content goes the long way


def test_what_httpx_and_curl_send_takes_the_short_way() -> None:
    request = httpx.Request("POST", "http://here/", files={"file": ("a b.jpg", b"photo")})
    found = CONTENT_TYPE.fullmatch(request.headers["Content-Type"])
    assert found is not None
    assert single_file(found[1].encode(), request.read()) == b"photo"
    curl = "multipart/form-data; boundary=------------------------d74496d66958873e"
    found = CONTENT_TYPE.fullmatch(curl)
    assert found is not None
    body = (
        b"--%b\r\n" % found[1].encode()
        + b'Content-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
        + b"Content-Type: image/jpeg\r\n\r\nphoto\r\n--%b--\r\n" % found[1].encode()
    )
    assert single_file(found[1].encode(), body) == b"photo"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        form(),
        form(part(HEAD, b"1"), part(HEAD, b"2")),
        form(part(HEAD, b"1"), part('Content-Disposition: form-data; name="k"', b"2")),
        form(part('Content-Disposition: form-data; name="file"', b"text")),
        form(part('Content-Disposition: form-data; name="files"; filename="a"', b"1")),
        form(part('Content-Disposition: form-data; name="file"; filename="a\\"b"', b"1")),
        form(part(HEAD + "\r\nContent-Transfer-Encoding: base64", b"MQ==")),
        form(part(HEAD, b"1"), end=b""),
        form(part(HEAD, b"1"), end=b"--\r\nepilogue"),
        b"preamble\r\n" + form(part(HEAD, b"1")),
        form(part(HEAD, b"1"))[:-20],
        b"--frontier\r\n" + HEAD.encode() + b"\r\n\r\n",
        b"--frontier\r\n" + b"x" * 5000 + b"\r\n\r\n1\r\n--frontier--\r\n",
    ],
)
def test_other_forms_go_the_long_way(body: bytes) -> None:
    assert single_file(BOUNDARY.encode(), body) is None


# Parameters

ENGINE: Any = SimpleNamespace(settings=SimpleNamespace(max_results=1000))


def told(options: SearchOptions) -> str:
    return repr(replace(options, include=sorted(options.include)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def framework() -> TestClient:
    app = FastAPI()
    app.state.engine = ENGINE

    @app.get("/")
    async def echo(options: SearchOptionsDep) -> str:
        return told(options)

    return TestClient(app, raise_server_exceptions=False)


VALUES = {
    "k": st.one_of(st.integers(-2, 1200).map(str), st.text("0123456789+-_. e", max_size=6)),
    "offset": st.one_of(st.integers(-2, 12_000).map(str), st.text("0123456789+-_.", max_size=6)),
    "threshold": st.one_of(
        st.floats(-1.5, 1.5).map(str), st.text("0123456789+-_.e", max_size=6), st.just("nan")
    ),
    "group_by": st.sampled_from(["label", "", "sku", "make"]),
    "include": st.sampled_from(["", "image", "attributes,vector", "vector"]),
    "where": st.sampled_from(["{}", '{"make": "BMW"}', '{"year": {"gte": 2010}}']),
    "unknown": st.just("1"),
}
PAIRS = st.sampled_from(sorted(VALUES)).flatmap(lambda name: st.tuples(st.just(name), VALUES[name]))


@given(pairs=st.lists(PAIRS, max_size=4))
@example(pairs=[("k", "5")])
@example(pairs=[("k", "007")])
@example(pairs=[("threshold", "-0.25"), ("offset", "9999")])
@example(pairs=[("include", "image"), ("include", "vector")])
def test_parameters_are_read_as_the_framework_reads_them(
    framework: TestClient, pairs: list[tuple[str, str]]
) -> None:
    query = httpx.QueryParams(pairs)
    parameters = plain_parameters(str(query).encode())
    if parameters is None:
        return
    answer = framework.get(f"/?{query}")
    try:
        where = asyncio.run(where_parameter(parameters.pop("where", None)))
        options = asyncio.run(search_options(ENGINE, where, **parameters))
    except Exception:
        # Refused by the endpoint's own checks, which both ways run, not by the framework's.
        assert answer.status_code == 500
    else:
        assert answer.json() == told(options)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", {}),
        (b"k=5", {"k": 5}),
        (b"k=3&threshold=0.8&group_by=label", {"k": 3, "threshold": 0.8, "group_by": "label"}),
        (
            b"where=%7B%7D&include=image&include=vector",
            {"where": "{}", "include": ["image", "vector"]},
        ),
    ],
)
def test_plain_parameters_take_the_short_way(query: bytes, expected: dict[str, Any]) -> None:
    assert plain_parameters(query) == expected
