"""What every refusal has in common."""

from __future__ import annotations

from typing import Any

import httpx


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem in ``response`` after a check of everything but its own words."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["title"] and problem["detail"] and problem["type"] == "about:blank"
    assert problem["request_id"] == response.headers["X-Request-ID"]
    return problem
