from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from index import Gallery, Item, Model
from tests.service.conftest import MAX_UPLOAD_BYTES
from tests.service.problem import check_problem
from tests.service.running import run_dscl, serving


def post(client: httpx.Client, photo: bytes, *, name: str = "photo.jpg", **query: Any) -> Any:
    return client.post("/search", files={"file": (name, photo)}, params=query)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def nearest(
    query: NDArray[np.float32], items: list[Item], vectors: NDArray[np.float32]
) -> list[tuple[int, float]]:
    """(id, score) of all items by exact search in float64, ties by id."""
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    return sorted(
        ((item.id, float(score)) for item, score in zip(items, scores, strict=True)),
        key=lambda pair: (-pair[1], pair[0]),
    )


def test_an_indexed_photo_finds_itself_first_with_score_1(
    client: httpx.Client, items: list[Item], model_folder: Path
) -> None:
    for item in items:
        answer = post(client, item.image.read_bytes(), k=1).json()
        assert answer["model"]["sha256"] == Model.load(model_folder).sha256
        [hit] = answer["results"]
        assert (hit["id"], hit["label"]) == (item.id, item.label)
        assert hit["score"] == pytest.approx(1, abs=1e-6)
        assert hit["image_url"] == f"/items/{item.id}/image"


def test_results_are_those_of_exact_search(
    client: httpx.Client, items: list[Item], vectors: NDArray[np.float32], model_folder: Path
) -> None:
    model = Model.load(model_folder)
    rng = np.random.default_rng(1)
    for k in (1, 5, len(items)):
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((80, 60))
        photo = encoded(noise, "PNG")
        expected = nearest(model.embed(model.prepare(photo)[None])[0], items, vectors)[:k]
        results = post(client, photo, k=k).json()["results"]
        assert [hit["id"] for hit in results] == [item_id for item_id, _ in expected]
        np.testing.assert_allclose(
            [hit["score"] for hit in results], [score for _, score in expected], atol=1e-6
        )


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"k": 3},
        {"k": 3, "offset": 2, "threshold": 0.1},
        {"k": 2, "group_by": "label", "include": "vector"},
        {"include": ["image", "attributes"], "where": '{"label": {"exists": true}}'},
        {"include": ""},
    ],
)
def test_answers_do_not_depend_on_how_the_form_was_written(
    client: httpx.Client, items: list[Item], query: dict[str, Any]
) -> None:
    """A quoted boundary makes the service read the form by its framework."""
    photo = items[0].image.read_bytes()
    body = (
        b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
        + photo
        + b"\r\n--frontier--\r\n"
    )
    answers = [
        client.post(
            "/search",
            content=body,
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
            params=query,
        )
        for boundary in ("frontier", '"frontier"')
    ]
    for answer in answers:
        assert answer.status_code == 200
    short, long = ({**answer.json(), "took_ms": None} for answer in answers)
    assert short == long
    assert [list(hit) for hit in short["results"]] == [list(hit) for hit in long["results"]]
    assert answers[0].headers["Content-Type"] == answers[1].headers["Content-Type"]


def test_ten_results_are_given_unless_asked_otherwise_and_all_where_fewer_exist(
    client: httpx.Client, items: list[Item]
) -> None:
    photo = items[0].image.read_bytes()
    assert len(post(client, photo).json()["results"]) == 10
    assert len(post(client, photo, k=1000).json()["results"]) == len(items)


@pytest.mark.parametrize(
    ("form", "convert"),
    [
        ("PNG", lambda image: image),
        ("JPEG", lambda image: image.convert("CMYK")),
        ("PNG", lambda image: image.quantize(256)),
        ("WEBP", lambda image: image),
        ("TIFF", lambda image: image),
        ("PNG", lambda image: image.convert("RGBA")),
    ],
    ids=["rgb", "cmyk", "palette", "webp", "tiff", "alpha"],
)
def test_encodings_of_a_photo_find_the_photo(
    client: httpx.Client,
    items: list[Item],
    form: str,
    convert: Callable[[Image.Image], Image.Image],
) -> None:
    with Image.open(items[5].image) as image:
        photo = encoded(convert(image.convert("RGB")), form)
    [hit] = post(client, photo, k=1).json()["results"]
    assert hit["id"] == items[5].id
    assert hit["score"] > 0.99


def test_a_photo_lying_on_its_side_by_exif_finds_the_upright_one(
    client: httpx.Client, items: list[Item]
) -> None:
    with Image.open(items[3].image) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise for viewing
        photo = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    [hit] = post(client, photo, k=1).json()["results"]
    assert hit["id"] == items[3].id
    assert hit["score"] == pytest.approx(1, abs=1e-4)


def test_sixteen_bit_grey_is_the_eight_bit_grey_it_shows(client: httpx.Client) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (40, 40), np.uint8)
    eight = post(client, encoded(Image.fromarray(grey), "PNG")).json()["results"]
    sixteen_bits = Image.fromarray(grey.astype(np.uint16) * 257)
    assert post(client, encoded(sixteen_bits, "PNG")).json()["results"] == eight


def test_the_file_name_does_not_matter(client: httpx.Client, items: list[Item]) -> None:
    for name in ("photo.txt", "../../etc/passwd", "photo.heic", "фото"):
        [hit] = post(client, items[0].image.read_bytes(), name=name, k=1).json()["results"]
        assert hit["id"] == items[0].id


def png_header(width: int, height: int) -> bytes:
    """A tiny PNG that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def animation() -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def truncated() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (200, 200, 3), np.uint8)
    whole = encoded(Image.fromarray(pixels), "JPEG")
    return whole[: len(whole) // 2]


BAD_PHOTOS = {
    "zero_bytes": (b"", 422, "image_empty", "0 bytes"),
    "truncated": (truncated(), 422, "image_truncated", "export the photo again"),
    "text": (b"This is not a photo.", 415, "image_unreadable", "send JPEG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "image_unreadable", "send JPEG"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(50), 415, "image_unreadable", "export it as JPEG"),
    "one_pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), 422, "image_too_small", "1 × 1"),
    "animated": (animation(), 422, "image_animated", "one still picture"),
    "float": (encoded(Image.new("F", (32, 32)), "TIFF"), 415, "image_unsupported", "8 bits"),
    "huge": (png_header(30_000, 30_000), 413, "image_too_large", "limit is 50 mega"),
}


@pytest.fixture
def nothing_changes(client: httpx.Client, gallery_folder: Path) -> Iterator[None]:
    """Compares what is stored and what is answered before and after the test."""

    def state() -> tuple[str, str]:
        catalog = (gallery_folder / "catalog.sqlite").read_bytes()
        return sha256(catalog).hexdigest(), client.get("/items", params={"limit": 500}).text

    before = state()
    yield
    assert state() == before


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_a_bad_photo_is_named_with_the_way_out(client: httpx.Client, name: str) -> None:
    photo, status, code, words = BAD_PHOTOS[name]
    problem = check_problem(post(client, photo), status, code)
    assert words in problem["detail"]


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("k", ["0", "-1", "1000000000", "1001", "ten", "1.5", "", "9" * 5000])
def test_k_out_of_range_is_refused(client: httpx.Client, items: list[Item], k: str) -> None:
    response = post(client, items[0].image.read_bytes(), k=k)
    problem = check_problem(response, 422, "invalid_argument")
    assert "k" in problem["detail"]
    if k in ("0", "-1", "1000000000", "1001"):
        assert problem["detail"] == f"k is {k}: this service returns 1 to 1000 results."


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"data": {"k": "5"}},
        {"data": {"file": "photo.jpg"}},
        {"files": {"photo": ("photo.jpg", b"...")}},
        {"json": {"file": "photo.jpg"}},
        {"content": b"\xff\xd8\xff\xe0", "headers": {"Content-Type": "image/jpeg"}},
    ],
    ids=["nothing", "no_file", "text_field", "other_field", "json", "bare_photo"],
)
def test_a_form_without_a_photo_is_told_how_to_send_one(
    client: httpx.Client, request_: dict[str, Any]
) -> None:
    problem = check_problem(client.post("/search", **request_), 422, "file_missing")
    assert "`file`" in problem["detail"]
    assert f"curl -F file=@photo.jpg {client.base_url.join('/search')}" in problem["detail"]


def test_a_broken_form_is_a_bad_request(client: httpx.Client) -> None:
    headers = {"Content-Type": "multipart/form-data"}  # without the boundary
    response = client.post("/search", content=b"--x\r\n", headers=headers)
    assert "boundary" in check_problem(response, 400, "bad_request")["detail"]


@pytest.mark.usefixtures("nothing_changes")
def test_a_body_beyond_the_limit_is_refused(client: httpx.Client) -> None:
    problem = check_problem(post(client, bytes(MAX_UPLOAD_BYTES)), 413, "body_too_large")
    assert f"{MAX_UPLOAD_BYTES:,} bytes" in problem["detail"]


@pytest.mark.usefixtures("nothing_changes")
def test_a_body_of_unannounced_length_is_read_to_the_limit_only(client: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(MAX_UPLOAD_BYTES // 65536 + 1):
            yield bytes(65536)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/search", content=body(), headers=headers)
    check_problem(response, 413, "body_too_large")


def test_parallel_searches_each_get_their_own_answer(
    client: httpx.Client, items: list[Item]
) -> None:
    wanted = [items[n % len(items)] for n in range(96)]

    def own_id(item: Item) -> int:
        response = post(client, item.image.read_bytes(), k=1)
        assert response.status_code == 200, response.text
        return int(response.json()["results"][0]["id"])

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(own_id, wanted)) == [item.id for item in wanted]


def test_a_bad_photo_among_parallel_searches_harms_no_other(
    client: httpx.Client, items: list[Item]
) -> None:
    photos = [truncated() if n % 2 else items[n].image.read_bytes() for n in range(24)]
    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(lambda photo: post(client, photo, k=1), photos))
    for n, response in enumerate(responses):
        if n % 2:
            check_problem(response, 422, "image_truncated")
        else:
            assert response.json()["results"][0]["id"] == items[n].id


def test_what_another_process_writes_is_found_without_a_restart(
    gallery_folder: Path, tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    shutil.copytree(gallery_folder, gallery)
    pixels = np.random.default_rng(4).integers(0, 256, (6, 8, 3), np.uint8)
    photo = tmp_path / "new.png"
    Image.fromarray(pixels).resize((64, 48)).save(photo)

    def first(client: httpx.Client) -> dict[str, Any]:
        return dict(post(client, photo.read_bytes(), k=1).json()["results"][0])

    with serving(gallery, tmp_path) as server:
        assert first(server.client)["score"] < 0.99

        added = run_dscl("index", "add", "--gallery", gallery, photo, "--label", "new")
        assert added.returncode == 0, added.stderr
        hit = first(server.client)
        assert hit["label"] == "new"
        assert hit["score"] == pytest.approx(1, abs=1e-6)
        assert server.client.get(hit["image_url"]).content == photo.read_bytes()

        removed = run_dscl("index", "remove", "--gallery", gallery, str(hit["id"]))
        assert removed.returncode == 0, removed.stderr
        assert first(server.client)["score"] < 0.99
        check_problem(server.client.get(f"/items/{hit['id']}"), 404, "item_not_found")


def test_an_empty_gallery_has_no_results(
    model_folder: Path, tmp_path: Path, items: list[Item]
) -> None:
    Gallery.create(tmp_path / "empty", model_folder).close()
    with serving(tmp_path / "empty", tmp_path) as server:
        assert post(server.client, items[0].image.read_bytes()).json()["results"] == []
        page = server.client.get("/items").json()
        assert page == {"total": 0, "offset": 0, "items": []}


def test_answers_hold_no_path_of_the_server(
    client: httpx.Client, items: list[Item], photos: Path
) -> None:
    answers = [post(client, items[0].image.read_bytes()).json(), client.get("/items").json()]
    assert str(photos) not in json.dumps(answers)
