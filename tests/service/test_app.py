from __future__ import annotations

from typing import Any

import httpx
import pytest

#: Path, method and the name that clients made from the document give it.
OPERATIONS = {
    ("/search", "post", "search"),
    ("/search/batch", "post", "search_batch"),
    ("/search/vector", "post", "search_vector"),
    ("/search/url", "post", "search_url"),
    ("/items/{item_id}/similar", "get", "similar_items"),
    ("/items", "get", "list_items"),
    ("/items", "post", "add_item"),
    ("/items/bulk", "post", "add_items"),
    ("/items/by-sku/{sku}", "get", "get_item_by_sku"),
    ("/items/by-sku/{sku}", "put", "put_item_by_sku"),
    ("/items/{item_id}", "get", "get_item"),
    ("/items/{item_id}", "patch", "change_item"),
    ("/items/{item_id}", "delete", "remove_item"),
    ("/items/{item_id}/image", "get", "item_image"),
    ("/items/{item_id}/thumbnail", "get", "item_thumbnail"),
    ("/fields", "get", "list_fields"),
    ("/explain", "post", "explain"),
    ("/map", "get", "map"),
    ("/map", "post", "draw_map"),
    ("/jobs", "get", "list_jobs"),
    ("/jobs/{job_id}", "get", "get_job"),
    ("/jobs/{job_id}", "delete", "cancel_job"),
    ("/jobs/{job_id}/events", "get", "job_events"),
    ("/evaluate", "get", "evaluate_default"),
    ("/evaluate", "post", "evaluate"),
    ("/evaluate/upload", "post", "evaluate_upload"),
    ("/model", "get", "model"),
    ("/metrics", "get", "metrics"),
    ("/health/live", "get", "live"),
    ("/health/ready", "get", "ready"),
    ("/admin/reload", "post", "reload"),
}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Any:
    return client.get("/openapi.json").json()


def test_the_interface_is_documented(client: httpx.Client, document: Any) -> None:
    paths = document["paths"]
    found = {
        (path, method, operation["operationId"])
        for path, methods in paths.items()
        for method, operation in methods.items()
    }
    assert found == OPERATIONS
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
