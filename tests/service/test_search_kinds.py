"""All searches with all their parameters, against a loop over what the gallery holds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index import Gallery, Item, Model, build, list_photos
from tests.photos import BROKEN, encoded, picture, write_photo
from tests.service.problem import check_problem
from tests.service.running import Server, serving

MAX_FILES = 4
QUERIES = [encoded(picture(seed), "PNG") for seed in (501, 502, 503)]


@dataclass(frozen=True)
class Cars:
    """A gallery with attributes, and what is in it."""

    folder: Path
    model: Model
    items: list[Item]
    vectors: NDArray[np.float32]

    def ranked(self, query: NDArray[np.float32]) -> list[tuple[Item, float]]:
        scores = self.vectors.astype(np.float64) @ query.astype(np.float64)
        pairs = zip(self.items, scores.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0].id))

    def embedded(self, photo: bytes) -> NDArray[np.float32]:
        return self.model.embed(self.model.prepare(photo)[None])[0]


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Cars:
    """40 photos of 7 labels and 5 years; some without a label, some without a year."""
    root = tmp_path_factory.mktemp("cars")
    lines = ["path,label,sku,year,used"]
    for n in range(40):
        write_photo(root / f"{n}.jpg", 700 + n)
        label = f"car-{n % 7}" if n % 9 else ""
        year = str(2010 + n % 5) if n % 8 else ""
        lines.append(f"{n}.jpg,{label},sku {n},{year},{'true' if n % 2 else 'false'}")
    (root / "photos.csv").write_text("\n".join(lines))
    folder = tmp_path_factory.mktemp("galleries") / "cars"
    with Gallery.create(folder, model_folder) as gallery:
        build(gallery, list_photos(root / "photos.csv"))
        items = gallery.items(limit=1000)
    assert len(items) == 40
    model = Model.load(model_folder)
    vectors = model.embed(np.stack([model.prepare(item.image) for item in items]))
    return Cars(folder, model, items, vectors)


@pytest.fixture(scope="module")
def server(cars: Cars, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        cars.folder, tmp_path_factory.mktemp("server"), DSCL_MAX_FILES=str(MAX_FILES)
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> httpx.Client:
    return server.client


KINDS = ["photo", "batch", "vector", "similar"]


@dataclass(frozen=True)
class Asked:
    """A query of one kind: how to send it, and what it should find without parameters."""

    response: httpx.Response
    ranked: list[tuple[Item, float]]

    @property
    def results(self) -> list[dict[str, Any]]:
        assert self.response.status_code == 200, self.response.text
        answer = self.response.json()
        if "answers" in answer:
            [answer] = answer["answers"]
            assert answer["file"] == "photo.png"
        results: list[dict[str, Any]] = answer["results"]
        return results


def ask(kind: str, client: httpx.Client, cars: Cars, **params: Any) -> Asked:
    photo = QUERIES[0]
    query = cars.embedded(photo)
    if kind == "photo":
        response = client.post("/search", params=params, files={"file": ("photo.png", photo)})
    elif kind == "batch":
        response = client.post(
            "/search/batch", params=params, files={"files": ("photo.png", photo)}
        )
    elif kind == "vector":
        response = client.post("/search/vector", params=params, json={"vector": query.tolist()})
    else:
        item = cars.items[11]
        response = client.get(f"/items/{item.id}/similar", params=params)
        ranked = cars.ranked(cars.vectors[11])
        return Asked(response, [pair for pair in ranked if pair[0].id != item.id])
    return Asked(response, cars.ranked(query))


def year(item: Item) -> int | None:
    value = item.attributes.get("year")
    return None if value is None else int(str(value))


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_a_loop(kind: str, client: httpx.Client, cars: Cars) -> None:
    asked = ask(kind, client, cars, k=1000)
    assert [hit["id"] for hit in asked.results] == [item.id for item, _ in asked.ranked]
    np.testing.assert_allclose(
        [hit["score"] for hit in asked.results], [score for _, score in asked.ranked], atol=1e-6
    )
    for hit, (item, _) in zip(asked.results, asked.ranked, strict=True):
        assert (hit["sku"], hit["label"]) == (item.external_id, item.label)
        assert hit["attributes"] == item.attributes
        assert hit["image_url"] == f"/items/{item.id}/image"
        assert "vector" not in hit


FILTERS = {
    '{"year": {"gte": 2012}}': lambda item: (year(item) or 0) >= 2012,
    '{"year": null}': lambda item: year(item) is None,
    '{"label": ["car-1", "car-2"], "used": "true"}': lambda item: (
        item.label in ("car-1", "car-2") and item.attributes["used"] == "true"
    ),
    '{"any": [{"sku": "sku 3"}, {"not": {"label": {"exists": true}}}]}': lambda item: (
        item.external_id == "sku 3" or item.label is None
    ),
    '{"year": 1900}': lambda _: False,
}


@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_where_leaves_what_matches(kind: str, where: str, client: httpx.Client, cars: Cars) -> None:
    asked = ask(kind, client, cars, where=where, k=6)
    kept = [item.id for item, _ in asked.ranked if FILTERS[where](item)]
    assert [hit["id"] for hit in asked.results] == kept[:6]


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_and_offset_cut_both_ends(kind: str, client: httpx.Client, cars: Cars) -> None:
    ranked = ask(kind, client, cars).ranked
    least = (ranked[14][1] + ranked[15][1]) / 2
    asked = ask(kind, client, cars, threshold=least, offset=4, k=1000)
    assert [hit["id"] for hit in asked.results] == [item.id for item, _ in ranked[4:15]]
    for k in (3, 20):
        asked = ask(kind, client, cars, threshold=least, offset=4, k=k)
        expected = [item.id for item, _ in ranked[4:15]][:k]
        assert [hit["id"] for hit in asked.results] == expected
    assert ask(kind, client, cars, offset=len(ranked)).results == []


@pytest.mark.parametrize(("group_by", "of"), [("label", lambda item: item.label), ("year", year)])
@pytest.mark.parametrize("kind", KINDS)
def test_group_by_keeps_the_nearest_of_each(
    kind: str, group_by: str, of: Any, client: httpx.Client, cars: Cars
) -> None:
    asked = ask(kind, client, cars, group_by=group_by, offset=1, where='{"used": "true"}')
    best: dict[Any, int] = {}
    for item, _ in asked.ranked:
        if item.attributes["used"] == "true" and of(item) is not None:
            best.setdefault(of(item), item.id)
    assert [hit["id"] for hit in asked.results] == list(best.values())[1:]


INCLUDES = {
    "attributes": {"attributes"},
    "image": {"image_url", "thumbnail_url"},
    "vector": {"vector"},
    "attributes,vector": {"attributes", "vector"},
    "": set(),
}


@pytest.mark.parametrize("include", INCLUDES)
@pytest.mark.parametrize("kind", KINDS)
def test_include_says_what_results_tell(
    kind: str, include: str, client: httpx.Client, cars: Cars
) -> None:
    given = include.split(",") if kind == "vector" else include  # repeated, or by commas
    asked = ask(kind, client, cars, include=given, k=5)
    rows = {item.id: row for row, item in enumerate(cars.items)}
    for hit in asked.results:
        assert hit.keys() == {"id", "score", "sku", "label"} | INCLUDES[include]
        if "vector" in hit:
            np.testing.assert_allclose(hit["vector"], cars.vectors[rows[hit["id"]]], atol=1e-6)


@pytest.mark.parametrize(
    ("params", "code", "word"),
    [
        ({"k": 0}, "invalid_argument", "k is 0"),
        ({"k": 1001}, "invalid_argument", "1 to 1000"),
        ({"threshold": "1.01"}, "invalid_argument", "query.threshold"),
        ({"threshold": "nan"}, "invalid_argument", "query.threshold"),
        ({"offset": -1}, "invalid_argument", "query.offset"),
        ({"offset": 9_995, "k": 10}, "invalid_argument", "offset is 9995"),
        ({"group_by": "yaer"}, "filter_invalid", "do you mean year"),
        ({"where": "{"}, "filter_invalid", "not JSON"),
        ({"where": '{"year": NaN}'}, "filter_invalid", "not JSON"),
        ({"where": "[1]"}, "filter_invalid", "expected an object"),
        ({"where": "[" * 10_000}, "filter_invalid", "not JSON"),
        ({"where": '{"a":' * 1000 + "1" + "}" * 1000}, "filter_invalid", "where"),
        ({"where": '{"label": "\\ud800"}'}, "filter_invalid", "not JSON"),
        ({"where": '{"year": "2010"}'}, "filter_invalid", "a number"),
        ({"where": '{"colour": "red"}'}, "filter_invalid", "no field"),
        ({"where": '{"year": 1e400}'}, "filter_invalid", "finite"),
        ({"where": '{"year": ' + "9" * 400 + "}"}, "filter_invalid", "year"),
        ({"include": "vectors"}, "invalid_argument", "include is 'vectors'"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_out_of_range_are_refused_and_named(
    kind: str, params: dict[str, Any], code: str, word: str, client: httpx.Client, cars: Cars
) -> None:
    problem = check_problem(ask(kind, client, cars, **params).response, 422, code)
    assert word in problem["detail"]


# Several photos


def batch(client: httpx.Client, photos: list[tuple[str, bytes]], **params: Any) -> httpx.Response:
    return client.post("/search/batch", params=params, files=[("files", each) for each in photos])


def test_each_photo_gets_its_own_answer_in_the_order_sent(client: httpx.Client, cars: Cars) -> None:
    sent = [cars.items[n] for n in (30, 2, 17, 2)]
    answer = batch(client, [(item.path, item.image.read_bytes()) for item in sent], k=1).json()
    assert answer["model"]["sha256"] == cars.model.sha256
    assert [each["file"] for each in answer["answers"]] == [item.path for item in sent]
    assert [each["results"][0]["id"] for each in answer["answers"]] == [item.id for item in sent]


def test_a_bad_photo_gets_a_problem_in_its_place_and_harms_no_other(
    client: httpx.Client, cars: Cars
) -> None:
    good = cars.items[7]
    for name, (photo, code) in BROKEN.items():
        photos = [("good.jpg", good.image.read_bytes()), (name, photo), ("bad.txt", b"no photo")]
        response = batch(client, photos, k=1)
        assert response.status_code == 200, response.text
        first, second, third = response.json()["answers"]
        assert (first["results"][0]["id"], first.get("problem")) == (good.id, None)
        assert (second["problem"]["code"], "results" in second) == (code, False)
        alone = client.post("/search", files={"file": (name, photo)})
        assert second["problem"]["status"] == alone.status_code
        assert second["problem"]["detail"] == alone.json()["detail"]
        assert third["problem"]["code"] == "image_unreadable"


def test_more_photos_than_the_limit_are_refused(client: httpx.Client) -> None:
    photos = [("photo.png", QUERIES[0])] * MAX_FILES
    assert len(batch(client, photos, k=1).json()["answers"]) == MAX_FILES
    problem = check_problem(batch(client, [*photos, photos[0]]), 413, "too_many_files")
    assert f"{MAX_FILES + 1} photos" in problem["detail"]


@pytest.mark.parametrize("name", [b"\xff\xfe.jpg", b"\xed\xa0\x80.jpg", b"../../etc/passwd", b""])
def test_a_file_name_may_be_anything(client: httpx.Client, name: bytes) -> None:
    body = b"".join(
        [
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="',
            name,
            b'"\r\nContent-Type: image/png\r\n\r\n',
            QUERIES[0],
            b"\r\n--x--\r\n",
        ]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/search/batch", content=body, headers=headers)
    assert len(response.json()["answers"][0]["results"]) == 10


def test_a_form_without_photos_is_refused(client: httpx.Client) -> None:
    problem = check_problem(client.post("/search/batch"), 422, "invalid_argument")
    assert "files" in problem["detail"]


# Vectors


def vector_json(values: str) -> dict[str, Any]:
    return {
        "content": f'{{"vector": {values}}}',
        "headers": {"Content-Type": "application/json"},
    }


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("[]", "vector"),
        ("[0.6, 0.8]", "16 values"),
        (json.dumps([0.5] * 16), "length 2"),
        (json.dumps([0.0] * 16), "length 0"),
        ("[" + "1e300," * 15 + "1]", "length"),
        ("[" + "NaN," * 15 + "1]", "vector"),
        ("[" + "1e999," * 15 + "1]", "vector"),
        ('["a"]', "vector"),
        ("[[1]]", "vector"),
        ("null", "vector"),
        ("[" + "0," * 20_000 + "1]", "16384"),
    ],
)
def test_a_vector_that_is_none_is_refused_and_the_reason_named(
    client: httpx.Client, body: str, word: str
) -> None:
    response = client.post("/search/vector", **vector_json(body))
    problem = check_problem(response, 422, "invalid_argument")
    assert word in problem["detail"]


def test_json_without_end_is_a_bad_request(client: httpx.Client) -> None:
    response = client.post("/search/vector", **vector_json("[" * 5000))
    check_problem(response, 400, "bad_request")


def test_a_result_s_vector_finds_what_similar_finds(client: httpx.Client, cars: Cars) -> None:
    item = cars.items[20]
    [hit] = client.post(
        "/search",
        params={"k": 1, "include": "vector"},
        files={"file": ("photo.jpg", item.image.read_bytes())},
    ).json()["results"]
    found = client.post("/search/vector", params={"k": 9}, json={"vector": hit["vector"]}).json()
    similar = client.get(f"/items/{item.id}/similar", params={"k": 8}).json()
    assert found["results"][0]["id"] == item.id
    assert [each["id"] for each in found["results"][1:]] == [
        each["id"] for each in similar["results"]
    ]


# Similar items


@pytest.mark.parametrize(
    ("item_id", "status", "code"),
    [
        ("999999", 404, "item_not_found"),
        (str(2**63 - 1), 404, "item_not_found"),
        (str(2**63), 422, "invalid_argument"),
        ("0", 422, "invalid_argument"),
        ("abc", 404, "not_found"),
        ("../1", 404, "not_found"),
    ],
)
def test_similar_to_no_item_is_refused(
    client: httpx.Client, item_id: str, status: int, code: str
) -> None:
    check_problem(client.get(f"/items/{item_id}/similar"), status, code)


def test_an_item_is_never_similar_to_itself_though_others_are_equal(
    model_folder: Path, tmp_path: Path
) -> None:
    """With many equal vectors an item may be missing from its own results."""
    for n in range(30):
        photo = write_photo(tmp_path / "photos" / f"car-{n % 3}" / f"{n}.jpg", 1)
        with photo.open("ab") as file:
            file.write(b"%d" % n)  # another file, the same picture
    with Gallery.create(tmp_path / "gallery", model_folder) as gallery:
        build(gallery, list_photos(tmp_path / "photos"))
        ids = [item.id for item in gallery.items(limit=100)]
        assert len(ids) == 30
    with serving(tmp_path / "gallery", tmp_path) as server:
        for item_id in (ids[0], ids[15], ids[-1]):
            for k in (3, 29, 100):
                response = server.client.get(f"/items/{item_id}/similar", params={"k": k})
                others = [each for each in ids if each != item_id][:k]
                assert [hit["id"] for hit in response.json()["results"]] == others


# Addresses


def test_search_by_url_is_off_unless_it_is_switched_on(client: httpx.Client) -> None:
    response = client.post("/search/url", json={"url": "http://example.com/photo.jpg"})
    problem = check_problem(response, 403, "url_search_off")
    assert "--url-search" in problem["detail"]


def test_search_by_url_refuses_what_is_not_public(cars: Cars, tmp_path: Path) -> None:
    with serving(cars.folder, tmp_path, DSCL_URL_SEARCH="1") as server:
        own = str(server.client.base_url)
        for url, status, code in [
            (f"{own}/items/1/image", 422, "url_invalid"),  # its port alone is refused
            ("http://127.0.0.1/", 403, "url_forbidden"),
            ("http://localhost/", 403, "url_forbidden"),
            ("http://[::ffff:169.254.169.254]/", 403, "url_forbidden"),
            ("file:///etc/passwd", 422, "url_invalid"),
            ("x" * 3000, 422, "invalid_argument"),
            ("", 422, "invalid_argument"),
        ]:
            response = server.client.post("/search/url", json={"url": url})
            check_problem(response, status, code)


# While the gallery changes


def test_searches_beside_a_writer_answer_all_and_never_with_a_removed_item(
    cars: Cars, model_folder: Path, tmp_path: Path
) -> None:
    """Each query's nearest items come and go all the time."""
    photos = [write_photo(tmp_path / "photos" / f"{n}.jpg", 900 + n) for n in range(20)]
    folder = tmp_path / "gallery"
    with Gallery.create(folder, model_folder) as gallery:
        build(gallery, list_photos(tmp_path / "photos"))
        with serving(folder, tmp_path, DSCL_READ_ONLY="1") as server:
            done = threading.Event()

            def search(n: int) -> list[httpx.Response]:
                photo = photos[n].read_bytes()
                answers = []
                while not done.is_set():
                    answers.append(
                        server.client.post(
                            "/search", params={"k": 20, "include": "vector"}, files={"file": photo}
                        )
                    )
                return answers

            with ThreadPoolExecutor(4) as pool:
                futures = [pool.submit(search, n) for n in range(4)]
                try:
                    for _ in range(5):
                        ids = [item.id for item in gallery.items(limit=100)]
                        gallery.remove(ids[:5])
                        build(gallery, list_photos(tmp_path / "photos"))
                finally:
                    done.set()
            for response in chain.from_iterable(future.result() for future in futures):
                assert response.status_code == 200, response.text
                ids = [hit["id"] for hit in response.json()["results"]]
                assert len(ids) == len(set(ids)) >= 15
