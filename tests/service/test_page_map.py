"""The map on the page: drawn once, pointed at, coloured, clicked to search; smooth at 50,000."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.service.browser import CLASSES, PER_CLASS, Visit
from tests.service.running import Server, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page


def to_map(page: Page) -> None:
    page.goto("/#/map")
    page.locator(".map-stage:visible").wait_for()
    page.wait_for_function("() => document.querySelector('.map-canvas').width > 300")


def place_of(page: Page, server: Server, number: int) -> tuple[int, float, float]:
    """An item on the map, and where it is on the screen, as ``plot.js`` lays it out."""
    told = server.client.get("/map").json()
    box = page.locator(".map-canvas").bounding_box()
    assert box is not None
    scale = min(box["width"], box["height"]) - 32
    x = box["x"] + box["width"] / 2 + (told["x"][number] / 65535 - 0.5) * scale
    y = box["y"] + box["height"] / 2 + (told["y"][number] / 65535 - 0.5) * scale
    return told["ids"][number], x, y


def test_the_map_is_drawn_once_with_progress_and_kept(own_site: Server, visit: Visit) -> None:
    page = visit(own_site)
    posts: list[str] = []
    page.on("request", lambda r: posts.append(r.url) if r.method == "POST" else None)
    to_map(page)
    assert len(posts) == 1
    assert f"{CLASSES * PER_CLASS} photos" in page.locator(".map-note").inner_text()
    page.reload()
    page.locator(".map-stage:visible").wait_for()
    assert len(posts) == 1


def test_pointing_shows_the_photo_and_a_click_searches_for_more_like_it(
    page: Page, car_site: Server
) -> None:
    to_map(page)
    item_id, x, y = place_of(page, car_site, 7)
    page.mouse.move(x, y)
    card = page.locator(".map-card")
    card.locator(".card-label").wait_for()
    shown = card.locator("img").get_attribute("src")
    assert shown is not None
    found = int(shown.split("/")[1])  # another may lie on top of it
    label = car_site.client.get(f"/items/{found}").json()["label"]
    assert card.locator(".card-label").inner_text() == label
    page.mouse.click(x, y)
    page.wait_for_url(f"**/#/search?item={found}*")
    page.locator(".result").first.wait_for()
    assert found == item_id or found in car_site.client.get("/map").json()["ids"]


def test_keys_go_from_photo_to_photo_and_search(page: Page, car_site: Server) -> None:
    to_map(page)
    canvas = page.locator(".map-canvas")
    canvas.press("ArrowRight")
    first = page.locator(".map-card img").get_attribute("src")
    canvas.press("ArrowRight")
    page.wait_for_function(
        "(before) => document.querySelector('.map-card img')?.getAttribute('src') !== before",
        arg=first,
    )
    second = page.locator(".map-card img").get_attribute("src")
    assert second is not None
    canvas.press("Enter")
    page.wait_for_url(f"**/#/search?item={second.split('/')[1]}*")


def test_colours_are_those_of_the_chosen_field(page: Page, car_site: Server) -> None:
    to_map(page)
    legend = page.locator(".map-value")
    assert legend.count() == CLASSES
    page.locator("#map-colour").select_option("dealer")
    page.wait_for_function("() => document.querySelectorAll('.map-value').length <= 4")
    told = car_site.client.get("/map", params={"colour": "dealer"}).json()["colours"]["legend"]
    words = [each.inner_text().split("\n") for each in legend.all()]
    assert [[word, int(number)] for word, number in words] == [
        [entry["value"], entry["count"]] for entry in told
    ]


def test_numbers_are_coloured_by_ranges_from_low_to_high(page: Page, car_site: Server) -> None:
    to_map(page)
    page.locator("#map-colour").select_option("price")
    legend = page.locator(".map-value")
    page.locator(".map-word", has_text=" – ").first.wait_for()
    told = car_site.client.get("/map", params={"colour": "price"}).json()["colours"]["legend"]
    lows = [float(each.inner_text().split(" – ")[0]) for each in legend.locator(".map-word").all()]
    assert lows == [entry["low"] for entry in told] == sorted(lows)
    swatches = [
        each.evaluate("e => getComputedStyle(e).backgroundColor")
        for each in legend.locator(".map-swatch").all()
    ]
    assert len(set(swatches)) == len(told)


def test_to_cross_the_map_asks_for_few_items(page: Page, car_site: Server) -> None:
    to_map(page)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if "/items/" in r.url else None)
    # Within one task of the page, as a quick hand's moves are: no timer can run out in between.
    page.evaluate(
        """() => {
            const canvas = document.querySelector(".map-canvas");
            const { left, top, width, height } = canvas.getBoundingClientRect();
            for (let y = 0; y < height; y += 6)
                for (let x = 0; x < width; x += 6) {
                    const at = { clientX: left + x, clientY: top + y };
                    const mouse = { pointerId: 1, pointerType: "mouse", ...at };
                    canvas.dispatchEvent(new PointerEvent("pointermove", mouse));
                }
        }"""
    )
    _, x, y = place_of(page, car_site, 3)
    page.mouse.move(x, y)
    page.locator(".map-card .card-label").wait_for()
    assert len(asked) <= 4  # photo and words of the last, and of one the pointer rested on


def test_one_colour_can_stand_out(page: Page) -> None:
    to_map(page)
    first = page.locator(".map-value").first
    before = pixels(page)
    first.click()
    assert first.get_attribute("aria-pressed") == "true"
    eventually(lambda: pixels(page) != before or None)
    first.click()
    assert first.get_attribute("aria-pressed") == "false"
    eventually(lambda: pixels(page) == before or None)


def pixels(page: Page) -> str:
    drawn: str = page.evaluate("document.querySelector('.map-canvas').toDataURL()")
    return drawn


def test_a_filter_leaves_only_its_photos(page: Page, car_site: Server) -> None:
    to_map(page)
    page.locator(".filters summary").click()
    page.locator(".filter", has_text="dealer").locator(".filter-value", has_text="north").click()
    expected = car_site.client.get("/items", params={"where": '{"dealer": "north"}'}).json()[
        "total"
    ]
    page.locator(".map-note", has_text=f"{expected} photo").wait_for()


def test_newer_photos_are_told_of_and_put_on_it(
    own_site: Server, visit: Visit, car_photos: Path
) -> None:
    page = visit(own_site)
    to_map(page)
    photo = min(car_photos.rglob("*.jpg"))
    data = io.BytesIO()
    Image.open(photo).rotate(9).save(data, "JPEG")
    assert own_site.client.post("/items", files={"file": data.getvalue()}).status_code == 201
    page.reload()
    page.locator(".map-note", has_text="1 newer").wait_for()
    page.get_by_role("button", name="Draw again").click()
    page.locator(".map-note", has_text=f"{CLASSES * PER_CLASS + 1} photos").wait_for()


def test_an_empty_gallery_says_how_to_fill_it(empty_site: Server, visit: Visit) -> None:
    page = visit(empty_site, "/#/map")
    page.get_by_role("link", name="Add photos").wait_for()


def test_fifty_thousand_points_are_drawn_zoomed_and_pointed_at(
    own_site: Server, visit: Visit
) -> None:
    """The answer is made up, for its size; what draws it is real."""
    visit.allow("404")  # of the items that there are not: nobody else is asked for them
    page = visit(own_site)
    to_map(page)
    told = many(50_000)
    page.route("**/map?*", lambda route: route.fulfill(json=told))
    page.route("**/items/**", lambda route: route.fulfill(status=404, json={"detail": "none"}))
    page.reload()
    page.locator(".map-note", has_text="50,000 photos").wait_for()
    before = pixels(page)
    box = page.locator(".map-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -200)
    eventually(lambda: pixels(page) != before or None)
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2)
    shown = page.locator(".map-card img").get_attribute("src")
    assert shown is not None
    number = int(shown.split("/")[1]) - 1
    # Near the middle of the map, which the zoom keeps where the pointer was.
    assert abs(told["x"][number] / 65535 - 0.5) + abs(told["y"][number] / 65535 - 0.5) < 0.1


def many(n: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    spots = rng.integers(0, 65_535, (n, 2))
    legend = [{"value": f"car-{i}", "low": None, "high": None, "count": n // 20} for i in range(20)]
    return {
        "model": {"name": "tiny", "sha256": "0" * 64},
        "created": "2026-01-01T00:00:00Z",
        "items": n,
        "missing": 0,
        "ids": list(range(1, n + 1)),
        "x": spots[:, 0].tolist(),
        "y": spots[:, 1].tolist(),
        "colours": {
            "field": "label",
            "ordered": False,
            "legend": legend,
            "codes": (np.arange(n) % 20).tolist(),
        },
    }


@pytest.mark.parametrize("width", [360, 1280])
def test_the_photo_shown_lies_within_the_window(visit: Visit, car_site: Server, width: int) -> None:
    page = visit(car_site, viewport={"width": width, "height": 740})
    to_map(page)
    canvas = page.locator(".map-canvas")
    for key in ["ArrowRight"] * 4 + ["ArrowLeft"] * 8 + ["ArrowDown"] * 4:
        canvas.press(key)
        box = page.locator(".map-card").bounding_box()
        assert box is not None
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
