from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index import Item, Model, metrics
from tests.photos import BROKEN
from tests.service.problem import check_problem
from tests.service.running import eventually


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


# Parts of the gallery


def ranked(
    row: int, items: list[Item], vectors: NDArray[np.float32], among: Iterable[int]
) -> list[Item]:
    """The labelled items of ``among`` but the query, nearest first."""
    scores = vectors.astype(np.float64) @ vectors[row].astype(np.float64)
    others = [n for n in among if n != row and items[n].label is not None]
    return [items[n] for n in sorted(others, key=lambda n: (-scores[n], items[n].id))]


FEW = {"label": ["audi", "bmw", "fiat"]}


@pytest.mark.parametrize("exact", [True, False])
def test_queries_and_gallery_that_filters_choose_are_those_of_a_double_loop(
    client: httpx.Client, items: list[Item], vectors: NDArray[np.float32], exact: bool
) -> None:
    asking = [n for n, item in enumerate(items) if item.label in FEW["label"]]
    among = [n for n, item in enumerate(items) if item.id % 3]
    missing = [item.id for item in items if item.id % 3 == 0]
    body = {
        "ks": [1, 3],
        "query_where": FEW,
        "gallery_where": {"id": {"not_in": missing}},
        "exact": exact,
        "per_class": True,
        "hardest": 5,
    }
    answer = client.post("/evaluate", json=body).json()
    rankings = {n: ranked(n, items, vectors, among) for n in asking}
    right = {n: [near.label == items[n].label for near in rankings[n]] for n in asking}
    done = [n for n in asking if any(right[n])]
    for k in (1, 3):
        share = np.mean([any(right[n][:k]) for n in done])
        assert answer["recall"][str(k)] == pytest.approx(share, abs=1e-12)
    assert (answer["queries"], answer["skipped"]) == (len(done), len(asking) - len(done))
    assert answer["gallery"] == sum(items[n].label is not None for n in among)

    for each in answer["per_class"]:
        own = [n for n in done if items[n].label == each["label"]]
        assert each["queries"] == len(own)
        assert each["recall"]["1"] == pytest.approx(np.mean([right[n][0] for n in own]))
    assert [each["label"] for each in answer["per_class"]] == sorted(FEW["label"])

    rows = {item.id: n for n, item in enumerate(items)}
    firsts = []
    for each in answer["hardest"]:
        n = rows[each["id"]]
        assert (each["label"], each["file"]) == (items[n].label, None)
        first, looked = right[n].index(True) + 1, max(3, sum(right[n]))
        assert each["first_answer"] == (first if first <= looked else None)
        assert [near["id"] for near in each["neighbours"]] == [near.id for near in rankings[n]][:8]
        assert [near["right"] for near in each["neighbours"]] == right[n][:8]
        assert client.get(each["thumbnail_url"]).status_code == 200
        firsts.append(each["average_precision"])
    assert len(firsts) == 5
    assert firsts == sorted(firsts)


def test_every_answer_names_model_and_protocol_and_the_index_if_it_ranked(
    client: httpx.Client, model_folder: Any
) -> None:
    model = Model.load(model_folder)
    exact = client.post("/evaluate", json={"clustering": True}).json()
    live = client.post("/evaluate", json={"exact": False}).json()
    for answer in (exact, live):
        assert answer["model"] == {"name": model.card.name, "sha256": model.sha256}
    assert "exact search" in exact["protocol"]
    assert "flat index" in live["protocol"]
    assert (exact["index"], live["index"]) == (None, {"kind": "flat", "recall_at_10": 1.0})
    assert 0 < exact["nmi"] <= 1
    assert live["nmi"] is None


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ('{"query_where": {"colour": "red"}}', "filter_invalid", "no field"),
        ('{"gallery_where": {"id": "x"}}', "filter_invalid", "id"),
        ('{"query_where": {"label": "\\ud800"}}', "filter_invalid", "label"),
        ('{"query_where": {"\\ud800": 1}}', "filter_invalid", "no field"),
        ('{"query_where": {"label": {"\\ud800": 1}}}', "filter_invalid", "no operator"),
        ('{"gallery_where": {"label": NaN}}', "filter_invalid", "label"),
        ('{"query_where": {"id": 1e999}}', "filter_invalid", "id"),
        ('{"query_where": []}', "invalid_argument", "query_where"),
        ('{"query_where": {"label": "alone"}}', "invalid_argument", "no query has a right answer"),
        ('{"query_where": {"label": "absent"}}', "invalid_argument", "no labelled items"),
        ('{"hardest": 101}', "invalid_argument", "hardest"),
        ('{"clustering": true, "exact": false}', "invalid_argument", "clustering"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_named(
    client: httpx.Client, body: str, code: str, word: str
) -> None:
    headers = {"Content-Type": "application/json"}
    problem = check_problem(client.post("/evaluate", content=body, headers=headers), 422, code)
    assert word in problem["detail"]


# Jobs


def ended(client: httpx.Client, response: httpx.Response) -> dict[str, Any]:
    """The job that a response announced, once it has ended."""
    assert response.status_code == 202, response.text
    url = response.headers["Location"]
    assert url == f"/jobs/{response.json()['id']}"

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(url).json()
        return job if job["state"] not in ("queued", "running") else None

    return eventually(look)


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "took_ms"}


def test_in_the_background_the_answer_is_the_job_s_result(client: httpx.Client) -> None:
    body = {"ks": [1, 2], "hardest": 3, "per_class": True}
    job = ended(client, client.post("/evaluate", json={**body, "background": True}))
    assert (job["kind"], job["state"]) == ("evaluate", "done")
    assert job["progress"]["done"] == job["progress"]["total"] == 24
    direct = client.post("/evaluate", json=body).json()
    assert without_time(job["result"]) == without_time(direct)


def test_a_background_evaluation_that_cannot_be_is_a_failed_job(client: httpx.Client) -> None:
    body = {"query_where": {"label": "alone"}, "background": True}
    job = ended(client, client.post("/evaluate", json=body))
    assert (job["state"], job["problem"]["code"]) == ("failed", "invalid_argument")


# Photos that are sent


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def upload(client: httpx.Client, files: dict[str, bytes], **params: Any) -> httpx.Response:
    form = {"file": ("photos.zip", zipped(files))}
    return client.post("/evaluate/upload", params=params, files=form)


def test_sent_photos_are_looked_up_in_the_gallery(
    client: httpx.Client, items: list[Item], vectors: NDArray[np.float32]
) -> None:
    total = client.get("/items").json()["total"]
    own = [n for n, item in enumerate(items) if item.label in FEW["label"]]
    files = {f"{items[n].label}/{items[n].id}.jpg": items[n].image.read_bytes() for n in own}
    among = [n for n in range(len(items)) if n not in own[::2]]
    where = json.dumps({"id": {"not_in": [items[n].id for n in own[::2]]}})

    # A photo that is in the gallery finds itself …
    assert upload(client, files, ks=1).json()["recall"] == {"1": 1.0}
    # … and where a filter leaves half of them out, those find what a loop finds.
    answer = upload(client, files, ks=[1, 3], where=where, hardest=100).json()
    found = {}
    for n in own:
        scores = vectors.astype(np.float64) @ vectors[n].astype(np.float64)
        near = [m for m in among if items[m].label is not None]
        near.sort(key=lambda m: (-scores[m], items[m].id))
        found[f"{items[n].label}/{items[n].id}.jpg"] = [items[m] for m in near]
    labels = {name: name.partition("/")[0] for name in files}
    for k in (1, 3):
        hits = [labels[name] in [near.label for near in found[name][:k]] for name in files]
        assert answer["recall"][str(k)] == pytest.approx(np.mean(hits))
    assert answer["queries"] == len(files) == len(answer["hardest"])
    for each in answer["hardest"]:
        assert (each["id"], each["thumbnail_url"]) == (None, None)
        nearest = [near.id for near in found[each["file"]][:8]]
        assert [near["id"] for near in each["neighbours"]] == nearest
    assert client.get("/items").json()["total"] == total  # and none was added


def test_photos_that_cannot_be_used_are_listed_and_harm_no_other(
    client: httpx.Client, items: list[Item]
) -> None:
    good = {f"{item.label}/{item.id}.jpg": item.image.read_bytes() for item in items[:3]}
    bad = {f"audi/{name}.jpg": photo for name, (photo, _) in BROKEN.items()}
    answer = upload(client, {**good, **bad, "nowhere.jpg": items[0].image.read_bytes()}).json()
    refused = {each["file"]: each["code"] for each in answer["refused"]}
    assert refused == {
        **{f"audi/{name}.jpg": code for name, (_, code) in BROKEN.items()},
        "nowhere.jpg": "label_missing",
    }
    assert answer["refused_total"] == len(refused)
    labelled = [item for item in items[:3] if item.label is not None]
    assert answer["queries"] == len(labelled)


def test_a_list_in_the_zip_gives_labels(client: httpx.Client, items: list[Item]) -> None:
    item = next(item for item in items if item.label == "opel")
    files = {
        "1.jpg": item.image.read_bytes(),
        "items.csv": b"path,label\n1.jpg,opel\n",
    }
    answer = upload(client, files, per_class="true", ks=1).json()
    assert [each["label"] for each in answer["per_class"]] == ["opel"]
    assert answer["recall"] == {"1": 1.0}


def test_sent_photos_in_the_background_give_the_same(
    client: httpx.Client, items: list[Item]
) -> None:
    files = {f"{item.label}/{item.id}.jpg": item.image.read_bytes() for item in items[:6]}
    job = ended(client, upload(client, files, background="true", exact="false"))
    assert (job["kind"], job["state"]) == ("evaluate_upload", "done")
    direct = upload(client, files, exact="false").json()
    assert without_time(job["result"]) == without_time(direct)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "archive_invalid"),
        (b"PK\x03\x04 and no more", "archive_invalid"),
        (zipped({}), "archive_invalid"),
        (zipped({"readme.txt": b"no photo"}), "archive_invalid"),
        (zipped({"../audi/1.jpg": b"x"}), "archive_unsafe"),
        (zipped({"audi/1.jpg": b"no photo"}), "invalid_argument"),
        (zipped({"1.jpg": b"no label"}), "invalid_argument"),
    ],
)
def test_a_zip_without_use_is_refused(client: httpx.Client, content: bytes, code: str) -> None:
    response = client.post("/evaluate/upload", files={"file": ("photos.zip", content)})
    check_problem(response, 422, code)


def test_labels_that_the_gallery_does_not_have_say_so(
    client: httpx.Client, items: list[Item]
) -> None:
    response = upload(client, {"Audi/1.jpg": items[0].image.read_bytes()})
    problem = check_problem(response, 422, "invalid_argument")
    assert "written alike" in problem["detail"]
