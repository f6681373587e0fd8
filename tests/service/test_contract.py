"""What the OpenAPI document promises, against a real server: schemathesis, all checks."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from service.app import create_app
from service.settings import Settings
from tests.service.running import Server, serving

KEYS = {scope: f"dscl_{scope}-{'k' * 40}" for scope in ("read", "write", "admin")}

#: What is refused although its form is right: a photo or zip that cannot be decoded, a filter on a
#: field that there is not, a vector of another model's length.
BY_MEANING = ["2xx", "403", "404", "409", "410", "413", "415", "422"]

#: What is wrong in form; 431 where it does not fit into a request's head.
REFUSALS = ["400", "401", "403", "404", "405", "409", "413", "415", "422", "431"]

#: Operations whose every well-formed request is answered, or names what there is not.
BY_FORM = [
    "get_item",
    "remove_item",
    "item_image",
    "item_thumbnail",
    "list_jobs",
    "get_job",
    "cancel_job",
    "model",
    "live",
    "ready",
]


def photo(size: tuple[int, int], form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


schemathesis.openapi.format(
    "binary",
    st.sampled_from([photo((48, 64), "JPEG"), photo((9, 30), "PNG"), photo((2, 2), "PNG"), b""])
    | st.binary(max_size=100),
)


def contract() -> Any:
    """The schema, each operation with the checks that fit it."""
    config = schemathesis.Config.from_dict(
        {
            "checks": {
                "positive_data_acceptance": {"expected-statuses": BY_MEANING},
                "negative_data_rejection": {"expected-statuses": REFUSALS},
            },
            "operations": [
                {
                    "include-operation-id": BY_FORM,
                    "checks": {
                        "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "410"]}
                    },
                }
            ],
        }
    )
    document = create_app(Settings(gallery=Path("gallery"))).openapi()
    return schemathesis.openapi.from_dict(document, config=config)


schema = contract()
few = settings(
    max_examples=5,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="module")
def open_server(gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without keys: everybody may do everything."""
    folder = tmp_path_factory.mktemp("open")
    shutil.copytree(gallery_folder, folder / "gallery")
    with serving(folder / "gallery", folder) as server:
        yield server


@pytest.fixture(scope="module")
def guarded_server(
    gallery_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(gallery_folder, folder / "gallery")
    lines = (
        f"{scope} {scope} {hashlib.sha256(key.encode()).hexdigest()}" for scope, key in KEYS.items()
    )
    with serving(folder / "gallery", folder, DSCL_KEYS=";".join(lines)) as server:
        yield server


@schema.parametrize()
@few
def test_without_keys_the_contract_holds(
    case: schemathesis.Case, open_server: Server, session: requests.Session
) -> None:
    case.call_and_validate(
        base_url=str(open_server.client.base_url),
        session=session,
        excluded_checks=[schemathesis.checks.ignored_auth],  # it is, on loopback
    )


@schema.parametrize()
@few
def test_with_an_admins_key_the_contract_holds(
    case: schemathesis.Case, guarded_server: Server, session: requests.Session
) -> None:
    case.call_and_validate(
        base_url=str(guarded_server.client.base_url),
        session=session,
        headers={"Authorization": f"Bearer {KEYS['admin']}"},
    )


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    document = create_app(Settings(gallery=Path("gallery"))).openapi()
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


OPERATIONS = [
    pytest.param(method, path, operation, id=f"{method} {path}")
    for method, path, operation in operations()
]


def test_operation_ids_are_short_and_unique() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and len(name) <= 20 for name in names), names


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_each_operation_says_what_it_does(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    assert operation["description"].strip() and operation["tags"]
    assert method == "GET" or "2" in {status[0] for status in operation["responses"]}


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_without_a_key_only_the_open_operations_answer(
    guarded_server: Server, method: str, path: str, operation: dict[str, Any]
) -> None:
    address = path.format(item_id=1, job_id="0" * 32, sku="none")
    response = guarded_server.client.request(method, address)
    open_to_all = path.startswith("/health/")
    assert ("security" not in operation) == open_to_all
    if open_to_all:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["code"]) == (401, "key_missing")
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_a_readers_key_changes_nothing(
    guarded_server: Server, method: str, path: str, operation: dict[str, Any]
) -> None:
    address = path.format(item_id=10**6, job_id="0" * 32, sku="none")
    headers = {"X-API-Key": KEYS["read"]}
    response = guarded_server.client.request(method, address, headers=headers)
    searches = path.startswith(("/search", "/explain", "/evaluate", "/map"))
    if method == "GET" or searches:
        assert response.status_code not in (401, 403) or path == "/search/url"
    else:
        assert (response.status_code, response.json()["code"]) == (403, "scope_missing")
