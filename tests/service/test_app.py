from __future__ import annotations

from typing import Any

import httpx
import pytest

OPERATIONS = {
    ("/search", "post"),
    ("/items", "get"),
    ("/items/{item_id}", "get"),
    ("/items/{item_id}/image", "get"),
    ("/evaluate", "get"),
    ("/evaluate", "post"),
    ("/model", "get"),
    ("/health/live", "get"),
    ("/health/ready", "get"),
}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Any:
    return client.get("/openapi.json").json()


def test_the_interface_is_documented(client: httpx.Client, document: Any) -> None:
    paths = document["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == OPERATIONS
    for methods in paths.values():
        for operation in methods.values():
            assert operation["summary"] and operation["description"]
    assert client.get("/docs").status_code == 200


def test_every_documented_error_is_a_problem(document: Any) -> None:
    seen = set()
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    seen.add(status)
                    [(media_type, content)] = response["content"].items()
                    assert media_type == "application/problem+json"
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert {"404", "410", "413", "415", "422", "503"} <= seen
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_meaning_of_a_score_is_documented(document: Any) -> None:
    score = document["components"]["schemas"]["Hit"]["properties"]["score"]
    assert (score["minimum"], score["maximum"]) == (-1, 1)
    assert "Cosine similarity" in score["description"]
    assert "higher is nearer" in score["description"]
