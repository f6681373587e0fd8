"""The page when something is amiss: it says what, and what to do, and goes on when it can."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index import Gallery
from service.keys import new_key
from tests.service.browser import Visit
from tests.service.running import DEADLINE_S, Server, eventually, serving
from tests.service.scenes import queries

pytest.importorskip("playwright", reason="the page is tested with Playwright")

from playwright.sync_api import FilePayload, Page, expect

#: Fits any of the drawn cars, and no large photo.
MAX_UPLOAD_BYTES = 200_000

#: What Chromium logs when nobody answers.
GONE = r"net::ERR_(CONNECTION_|EMPTY_RESPONSE|SOCKET_NOT_CONNECTED)"


def choose(page: Page, *photos: Path | FilePayload) -> None:
    page.locator("#photo-input").set_input_files(list(photos))  # type: ignore[arg-type]


def noise(name: str, side: int) -> FilePayload:
    """A photo of noise, which compresses badly: about 3 ``side``² bytes."""
    pixels = np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


def of_bytes(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": data}


@pytest.fixture
def photo(car_photos: Path) -> Path:
    return queries(car_photos)[1]


# An empty gallery


def test_an_empty_gallery_says_how_to_fill_it(empty_site: Server, visit: Visit) -> None:
    page = visit(empty_site)
    expect(page.get_by_role("heading", name="The gallery is empty")).to_be_visible()
    expect(page.locator(".found")).to_contain_text("dscl index build --gallery")
    expect(page.locator("#facts")).to_have_text("0 photos")
    expect(page.locator(".filters")).to_be_hidden()
    page.get_by_role("link", name="Add photos").click()
    expect(page).to_have_url(re.compile("#/gallery$"))


def test_a_search_in_an_empty_gallery_says_so(
    empty_site: Server, visit: Visit, photo: Path
) -> None:
    page = visit(empty_site)
    page.get_by_role("heading", name="The gallery is empty").wait_for()
    with page.expect_response("**/search?*"):
        choose(page, photo)
    expect(page.locator(".outcome")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_role("heading", name="The gallery is empty")).to_be_visible()


def test_a_gallery_that_was_filled_is_searched(
    empty_site: Server, visit: Visit, photo: Path
) -> None:
    page = visit(empty_site)
    page.get_by_role("heading", name="The gallery is empty").wait_for()
    empty_site.client.post("/items", files={"file": photo.read_bytes()}).raise_for_status()
    choose(page, photo)
    expect(page.locator(".result")).to_have_count(1)


# Access keys


@pytest.fixture
def key_site(own_gallery: Path, tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A server that asks for a key, and the key; health is open to all."""
    key, kept = new_key("reader", "read")
    with serving(own_gallery, tmp_path, DSCL_KEYS=kept.line()) as server:
        yield server, key


def give(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="Access key")
    dialog.get_by_label("Access key").last.fill(key)
    dialog.get_by_role("button", name="Use this key").click()


def test_a_missing_and_a_wrong_key_are_asked_for_until_one_is_right(
    key_site: tuple[Server, str], visit: Visit, photo: Path
) -> None:
    visit.allow("401")
    server, key = key_site
    page = visit(server)
    dialog = page.get_by_role("dialog", name="Access key")
    expect(dialog.locator("#key-why")).to_contain_text("key")
    expect(dialog.get_by_label("Access key").last).to_be_focused()
    give(page, "dscl_wrong")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("Access key").last).to_have_value("dscl_wrong")
    give(page, key)
    expect(dialog).to_have_count(0)
    # What was being loaded goes on, photos among it.
    image = page.locator(".samples img").first.element_handle()
    page.wait_for_function("(image) => image.naturalWidth > 0", arg=image)
    expect(page.locator("#facts")).to_have_text("48 photos")
    expect(page.locator(".filters")).to_be_visible()
    choose(page, photo)
    expect(page.locator(".result")).to_have_count(24)
    image = page.locator(".result img").first.element_handle()
    page.wait_for_function("(image) => image.naturalWidth > 0", arg=image)


def test_who_gave_no_key_can_give_it_later(
    key_site: tuple[Server, str], visit: Visit, photo: Path
) -> None:
    visit.allow("401")
    server, key = key_site
    page = visit(server)
    dialog = page.get_by_role("dialog", name="Access key")
    dialog.wait_for()
    # All that the page asks for at first is refused; what is asked for later would ask again.
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Escape")
    expect(page.locator(".found").get_by_role("alert")).to_contain_text("needs an access key")
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Access key").click()
    give(page, key)
    expect(page.locator(".samples img")).to_have_count(6)


def test_a_key_that_is_withdrawn_is_asked_for_and_the_search_goes_on(
    own_gallery: Path, visit: Visit, tmp_path: Path, photo: Path
) -> None:
    visit.allow("401")
    (key, kept), (other, other_kept) = new_key("one", "read"), new_key("two", "read")
    file = tmp_path / "keys"
    file.write_text(kept.line() + "\n", encoding="utf-8")
    with serving(own_gallery, tmp_path, DSCL_KEYS_FILE=str(file)) as server:
        page = visit(server)
        page.get_by_role("dialog", name="Access key").wait_for()
        give(page, key)
        page.locator(".samples img").first.wait_for()
        file.write_text(other_kept.line() + "\n", encoding="utf-8")
        until_refused(server, key)
        choose(page, photo)
        page.get_by_role("dialog", name="Access key").wait_for()
        give(page, other)
        expect(page.locator(".result")).to_have_count(24)
        page.close()


def until_refused(server: Server, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    eventually(lambda: server.client.get("/model", headers=headers).status_code == 401 or None)


# Files that cannot be used


@pytest.fixture
def narrow_site(own_gallery: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that takes small photos only."""
    limit = str(MAX_UPLOAD_BYTES)
    with serving(own_gallery, tmp_path, DSCL_MAX_UPLOAD_BYTES=limit) as server:
        yield server


def test_a_photo_that_is_too_large_is_named_with_the_limit(
    narrow_site: Server, visit: Visit, photo: Path
) -> None:
    visit.allow("413")
    page = visit(narrow_site)
    choose(page, noise("huge.png", 1000))
    said = page.locator(".found").get_by_role("alert")
    expect(said).to_contain_text("huge.png (3.0 MB)")
    expect(said).to_contain_text(f"{MAX_UPLOAD_BYTES:,} bytes")
    expect(page.locator("#gone")).to_be_hidden()
    choose(page, photo)
    expect(page.locator(".result")).to_have_count(24)


def test_a_body_far_beyond_the_limit_is_not_taken_for_a_server_that_is_gone(
    car_site: Server, visit: Visit
) -> None:
    visit.allow("413")
    page = visit(car_site)
    choose(page, of_bytes("film.jpg", b"\xff\xd8" + bytes(30_000_000)))
    said = page.locator(".found").get_by_role("alert")
    expect(said).to_contain_text("film.jpg (30.0 MB)")
    expect(said).to_contain_text("20,000,000 bytes")
    expect(page.locator("#gone")).to_be_hidden()


def test_a_broken_photo_is_named_with_what_is_wrong(
    car_site: Server, visit: Visit, photo: Path
) -> None:
    visit.allow("415", "422")
    page = visit(car_site)
    said = page.locator(".found").get_by_role("alert")
    choose(page, of_bytes("letter.jpg", b"Dear customer"))
    expect(said).to_contain_text("letter.jpg (13 bytes)")
    expect(said).to_contain_text("JPEG, PNG")
    expect(page.locator(".preview")).to_contain_text("letter.jpg cannot be shown here")
    data = photo.read_bytes()
    choose(page, of_bytes("half.jpg", data[: len(data) // 2]))
    expect(said).to_contain_text("half.jpg")
    page.get_by_role("button", name="Another photo").wait_for()
    choose(page, photo)
    expect(page.locator(".result")).to_have_count(24)


def test_of_several_photos_the_broken_one_is_named_and_harms_no_other(
    car_site: Server, visit: Visit, photo: Path
) -> None:
    page = visit(car_site)
    choose(page, of_bytes("good.jpg", photo.read_bytes()), of_bytes("letter.jpg", b"Dear customer"))
    rows = page.locator(".row")
    expect(rows).to_have_count(2)
    expect(rows.nth(0).locator(".result")).to_have_count(24)
    expect(rows.nth(1)).to_contain_text("letter.jpg")
    expect(rows.nth(1).locator(".notice-wrong")).to_contain_text("JPEG, PNG")


def test_too_many_photos_are_said_to_be_too_many(
    car_site: Server, visit: Visit, photo: Path
) -> None:
    visit.allow("422", "413")
    page = visit(car_site)
    choose(page, *[of_bytes(f"{n}.jpg", photo.read_bytes()) for n in range(17)])
    said = page.locator(".found").get_by_role("alert")
    expect(said).to_contain_text("17 photos")
    expect(said).to_contain_text("up to 16")


def test_an_items_missing_photo_is_marked(
    own_site: Server, own_gallery: Path, visit: Visit, photo: Path
) -> None:
    visit.allow("410")
    added = own_site.client.post("/items", files={"file": photo.read_bytes()}).json()
    with Gallery.open(own_gallery) as gallery:
        [item] = gallery.get([added["id"]])
    item.image.unlink()
    page = visit(own_site, f"/#/search?item={added['id']}")
    missing = page.locator(".preview .photo-missing")
    expect(missing).to_have_attribute("alt", "The photo cannot be shown")
    expect(page.locator(".result").first).to_be_visible()


# A server that is gone


@contextmanager
def again(server: Server, gallery: Path, folder: Path) -> Iterator[Server]:
    """The server of ``gallery`` once more, on the same port."""
    folder.mkdir()
    with serving(gallery, folder, "--port", str(server.client.base_url.port)) as back:
        yield back


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait(DEADLINE_S)


def test_a_search_goes_on_by_itself_when_the_server_is_back(
    own_site: Server, own_gallery: Path, visit: Visit, tmp_path: Path, photo: Path
) -> None:
    visit.allow(GONE, "503")
    page = visit(own_site)
    page.locator(".samples img").first.wait_for()
    kill(own_site)
    choose(page, photo)
    expect(page.locator("#gone")).to_be_visible()
    expect(page.locator("#gone")).to_contain_text("does not answer. Trying again")
    expect(page.locator(".found")).to_contain_text("as soon as it is back")
    with again(own_site, own_gallery, tmp_path / "again"):
        expect(page.locator(".result")).to_have_count(24)
        expect(page.locator("#gone")).to_be_hidden()


def test_results_stay_when_the_server_goes(
    own_site: Server, own_gallery: Path, visit: Visit, tmp_path: Path, photo: Path
) -> None:
    visit.allow(GONE, "503")
    page = visit(own_site)
    choose(page, photo)
    expect(page.locator(".result")).to_have_count(24)
    kill(own_site)
    expect(page.locator(".result")).to_have_count(24)
    page.get_by_label("One of each class").check()
    expect(page.locator("#gone")).to_be_visible()
    with again(own_site, own_gallery, tmp_path / "again"):
        expect(page.locator(".result")).to_have_count(8)
        expect(page.locator("#gone")).to_be_hidden()


def test_a_view_that_could_not_be_loaded_is_shown_when_the_server_is_back(
    own_site: Server, own_gallery: Path, visit: Visit, tmp_path: Path
) -> None:
    visit.allow(GONE, "503")
    page = visit(own_site)
    page.locator(".samples img").first.wait_for()
    kill(own_site)
    page.get_by_role("link", name="Gallery").click()
    expect(page.locator("#gone")).to_be_visible()
    with again(own_site, own_gallery, tmp_path / "again"):
        expect(page.locator(".gallery-card").first).to_be_visible()
        expect(page.locator("#gone")).to_be_hidden()


# A slow network


@contextmanager
def slow(page: Page, *, bytes_per_s: float = -1, latency_ms: float = 0) -> Iterator[None]:
    """Send no faster than this, and let each answer wait so long; -1 sets no limit."""
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")

    def limit(latency_ms: float, bytes_per_s: float) -> None:
        network.send(
            "Network.emulateNetworkConditions",
            {
                "offline": False,
                "latency": latency_ms,
                "downloadThroughput": -1,
                "uploadThroughput": bytes_per_s,
            },
        )

    limit(latency_ms, bytes_per_s)
    yield
    limit(0, -1)


def test_a_slow_upload_tells_how_far_it_is_and_can_be_stopped(
    car_site: Server, visit: Visit, photo: Path
) -> None:
    page = visit(car_site)
    page.locator(".samples img").first.wait_for()
    note = page.locator(".results-note")
    with slow(page, bytes_per_s=20_000):
        choose(page, noise("slow.png", 1000))
        expect(note).to_have_text(re.compile(r"^Still sending, \d+ %: the network is slow"))
        page.get_by_role("button", name="Stop").click()
        expect(note).to_have_text("Stopped.")
        expect(page.locator(".outcome")).to_have_attribute("aria-busy", "false")
    page.get_by_role("button", name="Search again").click()
    expect(page.locator(".result")).to_have_count(24)
    expect(page.get_by_role("button", name="Search again")).to_be_hidden()


def test_a_slow_answer_is_said_to_be_slow(car_site: Server, visit: Visit) -> None:
    page = visit(car_site)
    sample = page.locator(".samples .result-open").first
    sample.wait_for()
    with slow(page, latency_ms=10_000):
        sample.click()
        expect(page.locator(".results-note")).to_have_text(re.compile("Still searching: .* slow"))
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".result")).to_have_count(24)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
