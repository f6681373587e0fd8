from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index import Item, metrics
from tests.service.problem import check_problem


def labelled(items: list[Item], vectors: NDArray[np.float32]) -> Any:
    keep = [n for n, item in enumerate(items) if item.label is not None]
    return vectors[keep], np.array([items[n].label for n in keep])


@pytest.mark.parametrize("ks", [[1, 2, 4, 8], [1], [3, 25, 10_000]])
def test_figures_are_those_of_index_metrics(
    client: httpx.Client, items: list[Item], vectors: NDArray[np.float32], ks: list[int]
) -> None:
    answer = client.post("/evaluate", json={"ks": ks}).json()
    expected = metrics.evaluate(*labelled(items, vectors), ks=tuple(ks))
    assert answer["recall"] == {
        str(k): pytest.approx(value, abs=1e-12) for k, value in expected.recall.items()
    }
    assert answer["r_precision"] == pytest.approx(expected.r_precision, abs=1e-12)
    assert answer["map_at_r"] == pytest.approx(expected.map_at_r, abs=1e-12)
    assert (answer["queries"], answer["skipped"], answer["unlabelled"]) == (24, 1, 1)
    assert "leave-one-out" in answer["protocol"]
    assert answer["took_ms"] > 0


def test_recall_at_1_is_that_of_a_double_loop(
    client: httpx.Client, items: list[Item], vectors: NDArray[np.float32]
) -> None:
    x, labels = labelled(items, vectors)
    found = []
    for n in range(len(x)):
        if (labels == labels[n]).sum() > 1:
            scores = x.astype(np.float64) @ x[n].astype(np.float64)
            scores[n] = -np.inf
            found.append(labels[np.argmax(scores)] == labels[n])
    assert client.post("/evaluate").json()["recall"]["1"] == pytest.approx(np.mean(found))


def test_the_body_is_optional_and_get_is_the_same(client: httpx.Client) -> None:
    answers = [
        client.get("/evaluate").json(),
        client.post("/evaluate").json(),
        client.post("/evaluate", json={}).json(),
    ]
    for answer in answers:
        assert list(answer["recall"]) == ["1", "2", "4", "8"]
        del answer["took_ms"]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    "body",
    [
        '{"ks": [0]}',
        '{"ks": [-1]}',
        '{"ks": [1000000000]}',
        '{"ks": []}',
        '{"ks": [NaN]}',
        '{"ks": ["one"]}',
        '{"ks": 1}',
        '{"k": 1}',
        '{"ks": [1',
        "[]",
    ],
)
def test_wrong_values_of_k_are_refused(client: httpx.Client, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = client.post("/evaluate", content=body, headers=headers)
    check_problem(response, 422, "invalid_argument")
