"""Searching on the page in a browser: by photos, by parts of them, by items; with the keyboard."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.service.browser import CLASSES, PER_CLASS, Visit
from tests.service.running import Server
from tests.service.scenes import queries

pytest.importorskip("playwright", reason="the page is tested with Playwright")

from playwright.sync_api import Locator, Page, Response, expect

#: Hands files to the page as a drop or a paste does; a page cannot be dropped on from outside.
HAND_OVER = """({ kind, files }) => {
  const data = new DataTransfer();
  for (const { name, bytes } of files) {
    data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
  }
  const init = { bubbles: true, cancelable: true };
  const at = document.querySelector("#view h1");
  if (kind === "paste") {
    at.dispatchEvent(new ClipboardEvent("paste", { ...init, clipboardData: data }));
  } else {
    for (const type of ["dragenter", "dragover", "drop"]) {
      at.dispatchEvent(new DragEvent(type, { ...init, dataTransfer: data }));
    }
  }
}"""


def hand_over(page: Page, kind: str, *photos: Path) -> None:
    files = [{"name": photo.name, "bytes": list(photo.read_bytes())} for photo in photos]
    page.locator("#view h1").wait_for()
    page.evaluate(HAND_OVER, {"kind": kind, "files": files})


def choose(page: Page, *photos: Path) -> None:
    page.locator("#photo-input").set_input_files(list(photos))


def found(server: Server, photo: Path, **params: Any) -> list[dict[str, Any]]:
    """What the service finds for a photo when it is asked without the page."""
    answer = server.client.post("/search", params=params, files={"file": photo.read_bytes()})
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def similar(server: Server, item: int, **params: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = server.client.get(
        f"/items/{item}/similar", params=params
    ).json()["results"]
    return results


def expect_results(scope: Page | Locator, hits: list[dict[str, Any]]) -> None:
    """The grid shows these hits, in their order: label and score, and each its own photo."""
    cards = scope.locator(".result")
    expect(cards.locator(".card-label")).to_have_text([hit["label"] for hit in hits])
    expect(cards.locator(".result-score")).to_have_text([score(hit) for hit in hits])
    sources = cards.locator("img").evaluate_all("images => images.map((image) => image.src)")
    assert [int(re.findall(r"/items/(\d+)/", source)[0]) for source in sources] == [
        hit["id"] for hit in hits
    ]


def score(hit: dict[str, Any]) -> str:
    return f"{hit['score']:.3f}".replace("-", "−")


def is_search(response: Response) -> bool:
    return response.request.method == "POST" and urlsplit(response.url).path == "/search"


def asked(response: Response) -> dict[str, str]:
    """The parameters of a search."""
    return {name: value for name, [value] in parse_qs(urlsplit(response.url).query).items()}


def searched(page: Page) -> int:
    """The item that the address says is searched by."""
    return int(parse_qs(page.url.partition("?")[2])["item"][0])


@pytest.fixture
def photo(car_photos: Path) -> Path:
    return queries(car_photos)[1]


@pytest.fixture
def results(page: Page, photo: Path) -> Page:
    """The page with what a photo found."""
    choose(page, photo)
    page.locator(".result").first.wait_for()
    return page


# Photos come in


def test_a_chosen_photo_finds_what_the_service_finds(
    page: Page, car_site: Server, photo: Path
) -> None:
    choose(page, photo)
    expect(page.locator(".result")).to_have_count(24)
    hits = found(car_site, photo, k=24)
    expect_results(page, hits)
    expect(page.locator(".results-note")).to_have_text(re.compile(r"^24 results in [\d.]+ m?s$"))
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)


def test_results_show_photos_and_attributes(results: Page, car_site: Server, photo: Path) -> None:
    hit = found(car_site, photo, k=1)[0]
    first = results.locator(".result").first
    told = hit["attributes"]
    for value in (told["body"], told["dealer"], str(told["year"]), f"{told['price']:g}"):
        expect(first.locator(".card-attributes")).to_contain_text(value)
    image = first.locator("img").element_handle()
    results.wait_for_function("(image) => image.complete && image.naturalWidth > 0", arg=image)


def test_the_clicked_drop_area_opens_the_chooser(page: Page, photo: Path) -> None:
    with page.expect_file_chooser() as opened:
        page.locator(".drop").click()
    assert opened.value.is_multiple()
    opened.value.set_files(photo)
    expect(page.locator(".result").first).to_be_visible()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(page: Page, car_site: Server, photo: Path, kind: str) -> None:
    hand_over(page, kind, photo)
    expect(page.locator(".result")).to_have_count(24)
    expect_results(page, found(car_site, photo, k=24))


def test_pasted_text_is_no_photo(page: Page) -> None:
    hand_over(page, "paste")
    expect(page.locator(".preview")).to_be_hidden()


def test_several_photos_become_rows(page: Page, car_site: Server, car_photos: Path) -> None:
    photos = queries(car_photos)[:3]
    hand_over(page, "drop", *photos)
    rows = page.locator(".row")
    expect(rows).to_have_count(3)
    for row, photo in zip(rows.all(), photos, strict=True):
        expect_results(row, found(car_site, photo, k=24))
        query = row.locator(".row-query img").element_handle()
        page.wait_for_function("(image) => image.naturalWidth > 0", arg=query)


def test_a_phone_offers_its_camera(visit: Visit, car_site: Server, photo: Path) -> None:
    page = visit(car_site, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    camera = page.locator("#camera-input")
    assert camera.get_attribute("capture") == "environment"
    with page.expect_file_chooser() as opened:
        page.get_by_text("Take a photo").tap()
    opened.value.set_files(photo)
    # The query makes room: the first results are in sight without scrolling.
    expect(page.locator(".result").first).to_be_in_viewport()


def test_a_computer_offers_no_camera(page: Page) -> None:
    page.locator("#view h1").wait_for()
    expect(page.get_by_text("Take a photo")).to_be_hidden()


def test_a_search_can_start_from_an_item(page: Page, car_site: Server) -> None:
    sample = page.locator(".samples .result-open").nth(2)
    label = sample.inner_text()
    sample.click()
    expect(page.locator(".result").first).to_be_visible()
    item = searched(page)
    assert car_site.client.get(f"/items/{item}").json()["label"] == label
    expect_results(page, similar(car_site, item, k=24))


# Parts of a photo


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on the photo between two points, as shares of it."""
    box = page.locator(".crop-stage").bounding_box()
    assert box is not None
    for n, (x, y) in enumerate([start, end]):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=1 + 4 * n)
        if n == 0:
            page.mouse.down()
    page.mouse.up()


def box_of(page: Page) -> list[float]:
    """Left, top, width and height of the box, as shares of the photo."""
    shares: list[float] = page.locator(".crop-box").evaluate(
        "({ style }) => ['left', 'top', 'width', 'height'].map((name) => "
        "parseFloat(style[name]) / 100)"
    )
    return shares


#: Keeps what is uploaded; the browser does not tell it to Playwright.
KEEP_UPLOADS = """() => {
  const append = FormData.prototype.append;
  FormData.prototype.append = function (name, value, ...rest) {
    window.uploaded = value;
    return append.call(this, name, value, ...rest);
  };
}"""
UPLOADED = "async () => [...new Uint8Array(await window.uploaded.arrayBuffer())]"


def test_a_box_dragged_on_the_photo_is_what_is_searched_by(
    results: Page, car_site: Server, photo: Path
) -> None:
    results.evaluate(KEEP_UPLOADS)
    with results.expect_response(is_search) as answer:
        drag(results, (0.25, 0.2), (0.75, 0.9))
    assert box_of(results) == pytest.approx([0.25, 0.2, 0.5, 0.7], abs=0.02)
    uploaded = io.BytesIO(bytes(results.evaluate(UPLOADED)))
    with Image.open(photo) as whole, Image.open(uploaded) as part:
        left, top, width, height = (
            share * side for share, side in zip(box_of(results), whole.size * 2, strict=True)
        )
        assert part.size == (round(width), round(height))
        expected = whole.crop((round(left), round(top), round(left + width), round(top + height)))
        difference = np.asarray(part.convert("RGB"), float) - np.asarray(
            expected.resize(part.size).convert("RGB"), float
        )
    assert np.abs(difference).mean() < 12  # grey levels; JPEG and half a pixel
    hits = answer.value.json()["results"]
    assert [hit["id"] for hit in hits] != [hit["id"] for hit in found(car_site, photo, k=24)]
    expect_results(results, hits)


def test_a_box_can_be_moved(results: Page) -> None:
    with results.expect_response(is_search):
        drag(results, (0.2, 0.2), (0.6, 0.6))
    with results.expect_response(is_search):
        drag(results, (0.4, 0.4), (0.5, 0.6))
    assert box_of(results) == pytest.approx([0.3, 0.4, 0.4, 0.4], abs=0.02)
    with results.expect_response(is_search):
        drag(results, (0.5, 0.6), (1, 1))
    assert box_of(results) == pytest.approx([0.6, 0.6, 0.4, 0.4], abs=0.02)


def test_a_box_is_sized_by_its_corners(results: Page) -> None:
    with results.expect_response(is_search):
        drag(results, (0.3, 0.3), (0.7, 0.7))
    for corner, to, expected in [
        ((0.7, 0.7), (0.9, 0.8), [0.3, 0.3, 0.6, 0.5]),
        ((0.3, 0.3), (0.1, 0.2), [0.1, 0.2, 0.8, 0.6]),
        ((0.9, 0.2), (0.6, 0.1), [0.1, 0.1, 0.5, 0.7]),
    ]:
        with results.expect_response(is_search):
            drag(results, corner, to)
        assert box_of(results) == pytest.approx(expected, abs=0.02)


def test_the_whole_photo_is_searched_by_again(results: Page, car_site: Server, photo: Path) -> None:
    with results.expect_response(is_search):
        drag(results, (0.2, 0.2), (0.6, 0.6))
    with results.expect_response(is_search):
        results.get_by_role("button", name="Whole photo").click()
    expect(results.locator(".crop-box")).to_be_hidden()
    expect_results(results, found(car_site, photo, k=24))


def test_a_click_on_the_photo_is_no_box(results: Page) -> None:
    drag(results, (0.5, 0.5), (0.51, 0.51))
    expect(results.locator(".crop-box")).to_be_hidden()


def test_a_finger_draws_a_box(visit: Visit, car_site: Server, photo: Path) -> None:
    page = visit(car_site, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose(page, photo)
    page.locator(".result").first.wait_for()
    box = page.locator(".crop-stage").bounding_box()
    assert box is not None
    touch = page.context.new_cdp_session(page)

    def send(kind: str, *shares: float) -> None:
        points = [
            {"x": box["x"] + share * box["width"], "y": box["y"] + share * box["height"]}
            for share in shares
        ]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    with page.expect_response(is_search):
        send("touchStart", 0.2)
        for share in (0.3, 0.5, 0.7, 0.8):
            send("touchMove", share)
        send("touchEnd")
    assert box_of(page) == pytest.approx([0.2, 0.2, 0.6, 0.6], abs=0.03)


def test_a_box_is_drawn_moved_sized_and_taken_away_with_keys(results: Page) -> None:
    with results.expect_response(is_search):
        results.get_by_role("button", name="Crop").press("Enter")
    box = results.locator(".crop-box")
    expect(box).to_be_focused()
    left, top, width, height = box_of(results)
    for press, expected in {
        "ArrowRight": [left + 0.02, top, width, height],
        "ArrowUp": [left + 0.02, top - 0.02, width, height],
        "Shift+ArrowLeft": [left + 0.02, top - 0.02, width - 0.02, height],
        "Shift+ArrowDown": [left + 0.02, top - 0.02, width - 0.02, height + 0.02],
    }.items():
        with results.expect_response(is_search):
            box.press(press)
        assert box_of(results) == pytest.approx(expected, abs=1e-6)
    with results.expect_response(is_search):
        box.press("Escape")
    expect(box).to_be_hidden()
    expect(results.get_by_role("button", name="Crop")).to_be_focused()


# Options


def test_filters_are_the_gallerys_fields_with_counts(page: Page, car_site: Server) -> None:
    fields = car_site.client.get("/fields?values=12").json()["fields"]
    page.locator(".filters summary").click()
    shown = page.locator(".filter")
    expect(shown.locator("legend")).to_have_text([field["name"] for field in fields])
    for field in fields:
        row = page.get_by_role("group", name=field["name"], exact=True)
        if field["more"] and field["type"] in ("integer", "number"):
            expect(row.get_by_role("spinbutton")).to_have_count(2)
            continue
        expect(row.locator(".filter-count")).to_have_text(
            [str(value["count"]) for value in field["values"]]
        )
    labels = page.get_by_role("group", name="label", exact=True).locator(".filter-value")
    expect(labels).to_have_count(CLASSES)
    expect(labels.first.locator(".filter-count")).to_have_text(str(PER_CLASS))


def test_filters_narrow_what_is_found(results: Page, car_site: Server, photo: Path) -> None:
    results.locator(".filters summary").click()
    with results.expect_response(is_search):
        results.get_by_role("group", name="dealer").get_by_label("north").check()
    where: dict[str, Any] = {"dealer": "north"}
    expect_results(results, found(car_site, photo, k=24, where=json.dumps(where)))
    with results.expect_response(is_search):
        results.get_by_role("group", name="dealer").get_by_label("east").check()
    with results.expect_response(is_search) as answer:
        results.get_by_label("year from").fill("2015")
        results.get_by_label("year from").press("Enter")
    where = {"dealer": ["north", "east"], "year": {"gte": 2015}}
    assert json.loads(asked(answer.value)["where"]) == where
    hits = found(car_site, photo, k=24, where=json.dumps(where))
    expect_results(results, hits)
    assert 0 < len(hits) < 24
    expect(results.locator(".filter-number")).to_have_text("2")
    with results.expect_response(is_search):
        results.get_by_role("button", name="Clear all").click()
    expect_results(results, found(car_site, photo, k=24))
    expect(results.get_by_role("checkbox", name="north")).not_to_be_checked()


def test_one_of_each_class(results: Page, car_site: Server, photo: Path) -> None:
    results.get_by_label("One of each class").check()
    expect(results.locator(".result")).to_have_count(CLASSES)
    expect_results(results, found(car_site, photo, k=24, group_by="label"))


def test_the_slider_sets_the_least_score(results: Page, car_site: Server, photo: Path) -> None:
    with results.expect_response(is_search):
        results.get_by_role("slider", name="Score").fill("0.8")
    expect(results.locator(".threshold-value")).to_have_text("≥ 0.800")
    hits = found(car_site, photo, k=24, threshold=0.8)
    expect_results(results, hits)
    assert 0 < len(hits) < 24
    with results.expect_response(is_search):
        results.get_by_role("slider", name="Score").press("ArrowRight")
    expect(results.locator(".threshold-value")).to_have_text("≥ 0.810")


def test_more_results_are_shown_when_asked_for(results: Page) -> None:
    results.get_by_label("Show").select_option("48")
    expect(results.locator(".result")).to_have_count(CLASSES * PER_CLASS)


def test_nothing_found_says_what_to_change(page: Page, photo: Path, car_photos: Path) -> None:
    choose(page, photo)
    page.locator(".result").first.wait_for()
    page.get_by_role("slider", name="Score").fill("1")
    with page.expect_response(is_search):
        drag(page, (0.4, 0.4), (0.6, 0.6))
    expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
    expect(page.locator(".found")).to_contain_text("lower the score")


# Items and links


def test_more_like_this_searches_by_the_result(
    results: Page, car_site: Server, photo: Path
) -> None:
    hit = found(car_site, photo, k=24)[3]
    results.locator(".result").nth(3).get_by_role("button", name="More like this").click()
    expect(results.get_by_text(f"Item {hit['id']} of the gallery")).to_be_visible()
    assert searched(results) == hit["id"]
    expect_results(results, similar(car_site, hit["id"], k=24))


def test_back_from_more_like_this_is_the_photos_search_as_it_was(
    results: Page, car_site: Server, photo: Path
) -> None:
    results.get_by_label("One of each class").check()
    expect(results.locator(".result")).to_have_count(CLASSES)
    results.locator(".result").nth(1).get_by_role("button", name="More like this").click()
    expect(results.locator(".preview-item")).to_be_visible()
    results.go_back()
    expect(results.locator(".crop-image")).to_be_visible()
    expect(results.get_by_label("One of each class")).to_be_checked()
    expect_results(results, found(car_site, photo, k=24, group_by="label"))


def test_a_look_at_another_view_keeps_the_search(
    results: Page, car_site: Server, photo: Path
) -> None:
    results.get_by_role("link", name="Gallery").click()
    expect(results.locator(".result")).to_have_count(0)
    results.get_by_role("link", name="Search", exact=True).click()
    expect(results.locator(".result")).to_have_count(24)
    expect_results(results, found(car_site, photo, k=24))


def test_the_link_reproduces_an_items_search_with_its_options(
    visit: Visit, results: Page, car_site: Server
) -> None:
    results.locator(".result").nth(2).get_by_role("button", name="More like this").click()
    results.get_by_label("Show").select_option("12")
    results.get_by_label("One of each class").check()
    results.get_by_role("slider", name="Score").fill("-0.2")
    results.locator(".filters summary").click()
    results.get_by_label("year from").fill("2010")
    results.get_by_label("year from").press("Enter")
    expect(results).to_have_url(re.compile("where="))
    item = searched(results)
    hits = similar(
        car_site, item, k=12, group_by="label", threshold=-0.2, where='{"year": {"gte": 2010}}'
    )
    expect_results(results, hits)

    other = visit(car_site, f"/#{results.url.partition('#')[2]}")
    expect(other.locator(".result")).to_have_count(len(hits))
    expect_results(other, hits)
    expect(other.get_by_label("Show")).to_have_value("12")
    expect(other.get_by_label("One of each class")).to_be_checked()
    expect(other.locator(".threshold-value")).to_have_text("≥ −0.200")
    expect(other.locator(".filter-number")).to_have_text("1")
    other.locator(".filters summary").click()
    expect(other.get_by_label("year from")).to_have_value("2010")


@pytest.mark.parametrize(
    ("link", "said"),
    {
        "item=seven": "not the number of an item",
        "item=3&where={": "filter cannot be read",
    }.items(),
)
def test_a_damaged_link_says_so(visit: Visit, car_site: Server, link: str, said: str) -> None:
    page = visit(car_site, f"/#/search?{link}")
    expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible()


def test_a_link_to_an_item_that_is_gone_says_so(visit: Visit, car_site: Server) -> None:
    visit.allow("404")
    page = visit(car_site, "/#/search?item=999999")
    expect(page.get_by_role("alert").filter(has_text="999999")).to_be_visible()


# With the keyboard alone


def test_a_search_from_choosing_to_comparing_with_the_keyboard(
    page: Page, car_site: Server, photo: Path
) -> None:
    # Listened for from the start: Playwright takes a moment until it catches choosers.
    with page.expect_file_chooser() as opened:
        page.locator("#view h1").wait_for()
        page.keyboard.press("/")
        expect(page.locator("#photo-input")).to_be_focused()
        page.keyboard.press("Enter")
    opened.value.set_files(photo)
    expect(page.locator(".result")).to_have_count(24)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.result-open')"):
            break
    cards = page.locator(".result-open")
    expect(cards.first).to_be_focused()
    columns = len({round(box["x"]) for card in cards.all() if (box := card.bounding_box())})
    assert columns > 1
    for key, place in {
        "ArrowRight": 1,
        "ArrowDown": 1 + columns,
        "ArrowLeft": columns,
        "ArrowUp": 0,
        "End": 23,
        "Home": 0,
    }.items():
        page.keyboard.press(key)
        expect(cards.nth(place)).to_be_focused()
    page.keyboard.press("ArrowRight")
    hits = found(car_site, photo, k=24)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Compare")
    expect(dialog).to_contain_text(score(hits[1]))
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("m")
    expect(page.get_by_text(f"Item {hits[1]['id']} of the gallery")).to_be_visible()
    expect_results(page, similar(car_site, hits[1]["id"], k=24))


def test_tab_leaves_the_grid_after_a_photo_and_its_button(results: Page) -> None:
    results.locator(".result-open").nth(4).focus()
    results.keyboard.press("Tab")
    expect(results.locator(".result-more").nth(4)).to_be_focused()
    results.keyboard.press("Tab")
    assert not results.evaluate("document.activeElement.matches('.result *')")


def test_the_slash_leads_to_the_upload_after_a_search_too(results: Page) -> None:
    with results.expect_file_chooser():
        results.locator(".result-open").first.focus()
        results.keyboard.press("/")
        expect(results.get_by_role("button", name="Another photo")).to_be_focused()
        results.keyboard.press("Enter")


def test_the_keys_are_explained(page: Page) -> None:
    page.locator("#view h1").wait_for()
    page.keyboard.press("?")
    help_ = page.get_by_role("dialog", name="Keyboard")
    for key in ("/", "Enter", "m", "Esc", "?"):
        expect(help_.locator("kbd").get_by_text(key, exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(help_).to_have_count(0)


def test_enter_compares_with_the_query(results: Page, car_site: Server, photo: Path) -> None:
    results.locator(".result-open").nth(2).press("Enter")
    dialog = results.get_by_role("dialog", name="Compare")
    expect(dialog.locator("figure img")).to_have_count(2)
    expect(dialog).to_contain_text(score(found(car_site, photo, k=3)[2]))
