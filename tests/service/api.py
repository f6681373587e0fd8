"""What the tests do with a running service again and again."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.service.running import eventually


def send(
    api: httpx.Client, data: bytes, path: str = "/items", method: str = "POST", **form: Any
) -> httpx.Response:
    fields = {
        name: json.dumps(value) if name == "attributes" else value for name, value in form.items()
    }
    return api.request(method, path, files={"file": ("photo", data)}, data=fields)


def nearest(api: httpx.Client, data: bytes) -> dict[str, Any]:
    answer = api.post("/search", params={"k": 1}, files={"file": data}).json()
    result: dict[str, Any] = answer["results"][0]
    return result


def wait_for(api: httpx.Client, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = api.get(f"/jobs/{job_id}").json()
        return job if job["finished"] else None

    return eventually(look)


def count(api: httpx.Client) -> int:
    total: int = api.get("/items", params={"limit": 1}).json()["total"]
    return total
