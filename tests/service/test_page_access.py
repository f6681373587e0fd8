"""The page for everybody: every eye, hand, screen and line; and only from its own server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.service.browser import Visit
from tests.service.running import Server
from tests.service.scenes import SCENES, VIEWS, at_rest, open_view, queries

#: WCAG 2.2, levels A and AA, and axe's good practice.
AXE = {
    "runOnly": {
        "type": "tag",
        "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    },
    "rules": {"target-size": {"enabled": True}},
    "resultTypes": ["violations"],
}

#: 320 is what WCAG asks for (1.4.10), the others are what people have.
WIDTHS = {320: 640, 360: 740, 768: 1024, 1440: 900, 3840: 2160}

FIRST_VIEW_BYTES = 150_000

#: Seconds that anything takes to move, over all elements and what CSS draws before and after them.
MOTION = """() => {
  const seconds = (text) => Math.max(...text.split(",").map(parseFloat));
  const slow = [];
  for (const element of document.querySelectorAll("*")) {
    for (const part of [null, "::before", "::after"]) {
      const style = getComputedStyle(element, part);
      const name = `${element.tagName}.${element.className}${part ?? ""}`;
      const moves = style.transitionProperty === "none" ? 0 : seconds(style.transitionDuration);
      const plays = style.animationName === "none" ? 0 : seconds(style.animationDuration);
      if (moves || plays) slow.push({name, moves, plays});
    }
  }
  return slow;
}"""


LONGEST_MOVE_S = 0.15

#: What has the focus, if anything on the page has, and how wide the outline is that says so: its
#: own, or that of the label around it.
FOCUSED = """() => {
  const element = document.activeElement;
  const shown = [element, element.closest("label")].filter(Boolean).map((each) => {
    const style = getComputedStyle(each);
    const hidden = style.outlineStyle === "none" || style.opacity === "0";
    return hidden ? 0 : parseFloat(style.outlineWidth);
  });
  const name = `${element.tagName}#${element.id}.${element.className} ${element.href ?? ""}`;
  return element === document.body ? null : [name, Math.max(...shown)];
}"""


def findings(page: Page) -> list[str]:
    """What axe finds serious or critical on the page as it is now."""
    return [
        f"{found['impact']}: {found['help']} ({found['id']}): {node['html'][:200]}"
        f" {node.get('failureSummary', '')}"
        for found in Axe().run(page, options=AXE).response["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("scene", SCENES)
def test_axe_finds_nothing_serious_in_light_and_dark(
    visit: Visit, car_site: Server, car_photos: Path, scene: str
) -> None:
    page = visit(car_site)
    SCENES[scene](page, car_photos)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        at_rest(page)
        assert findings(page) == [], scheme


def test_axe_would_find_something(page: Page) -> None:
    page.evaluate("document.body.append(document.createElement('button'))")
    assert any("button-name" in found for found in findings(page))


@pytest.mark.parametrize("scene", SCENES)
def test_nothing_scrolls_sideways_at_any_width(
    visit: Visit, car_site: Server, car_photos: Path, scene: str
) -> None:
    page = visit(car_site)
    SCENES[scene](page, car_photos)
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        at_rest(page)
        beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert beyond <= 0, f"{beyond} px too wide at {width} px: {widest(page)}"


def widest(page: Page) -> list[str]:
    """Some elements that reach beyond the right edge, outermost first."""
    found: list[str] = page.evaluate(
        """[...document.querySelectorAll("body *")]
             .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)
             .map((e) => `${e.tagName}.${e.className}`).slice(0, 8)"""
    )
    return found


def test_the_first_view_is_light(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, "about:blank")
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    names: dict[str, str] = {}
    sizes: dict[str, float] = {}
    network.on(
        "Network.responseReceived", lambda e: names.update({e["requestId"]: e["response"]["url"]})
    )
    network.on(
        "Network.loadingFinished", lambda e: sizes.update({e["requestId"]: e["encodedDataLength"]})
    )
    page.goto("/")
    at_rest(page)
    by_name = {names[key]: size for key, size in sizes.items()}
    assert any(name.endswith(".js") for name in by_name) and min(by_name.values()) > 0
    assert sum(by_name.values()) < FIRST_VIEW_BYTES, by_name


def test_views_load_when_first_shown(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, "about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_view(page, "search")
    later = {f"/web/{view}/view.js" for view in VIEWS if view != "search"}
    assert not [url for url in asked if any(url.endswith(path) for path in later)]
    for view in VIEWS:
        open_view(page, view)
    assert all(any(url.endswith(path) for url in asked) for path in later)


@pytest.mark.parametrize("scene", SCENES)
def test_motion_is_short_and_none_where_none_is_wanted(
    visit: Visit, car_site: Server, car_photos: Path, scene: str
) -> None:
    page = visit(car_site)
    SCENES[scene](page, car_photos)
    assert [found for found in page.evaluate(MOTION) if found["moves"] > LONGEST_MOVE_S] == []
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(MOTION) == []


def test_some_motion_is_seen_where_it_may_be(page: Page) -> None:
    assert page.evaluate(MOTION)


def test_every_view_has_its_own_title_and_one_main_heading(page: Page) -> None:
    titles = set()
    for view in VIEWS:
        open_view(page, view)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        titles.add(page.title())
    assert len(titles) == len(VIEWS)


def test_a_search_needs_no_mouse(page: Page, car_photos: Path) -> None:
    # Playwright catches file choosers from the first listener on, a moment after it was added.
    page.on("filechooser", lambda _: None)
    at_rest(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#view")).to_be_focused()

    # Choose a photo
    page.keyboard.press("/")
    expect(page.locator("#photo-input")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(queries(car_photos)[2])
    results = page.locator(".result-open")
    results.first.wait_for()

    # Among the results: one of them is in the tab order, the arrow keys reach all
    tab_until(page, ".result-open")
    expect(results.first).to_be_focused()
    tops = [box["y"] for box in (card.bounding_box() for card in results.all()) if box]
    columns = tops.count(tops[0])
    assert 1 < columns < len(tops)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(results.nth(columns + 1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    expect(results.first).to_be_focused()
    page.keyboard.press("End")
    expect(results.last).to_be_focused()

    # Compare, and back to where one was
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Compare")
    expect(dialog).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#view, header.bar')") is None
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(results.last).to_be_focused()

    # More like this
    page.keyboard.press("m")
    page.wait_for_url(re.compile(r"#/search\?item=\d+"))

    # Help
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def tab_until(page: Page, selector: str) -> None:
    """Press Tab until an element that matches has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"60 times Tab did not reach {selector}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scene", ["results", "compare", "gallery", "evaluated", "map"])
def test_what_has_the_focus_is_seen_to_have_it(
    visit: Visit, car_site: Server, car_photos: Path, scene: str, scheme: str
) -> None:
    page = visit(car_site, color_scheme=scheme)
    SCENES[scene](page, car_photos)
    seen: set[str] = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        if (focused := page.evaluate(FOCUSED)) is None:
            continue  # past the last one; the next Tab starts over
        name, outline = focused
        assert outline >= 2, f"{name} has no outline"
        seen.add(name)
    assert len(seen) >= 4


@pytest.mark.parametrize("scene", ["search", "results", "map", "evaluated", "gallery"])
def test_bar_and_content_share_their_edges_and_use_a_large_screen(
    visit: Visit, car_site: Server, car_photos: Path, scene: str
) -> None:
    page = visit(car_site)
    SCENES[scene](page, car_photos)
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        bar, view = (page.locator(part).bounding_box() for part in (".bar-inner", "#view"))
        assert bar is not None and view is not None
        assert (bar["x"], bar["width"]) == pytest.approx((view["x"], view["width"]), abs=1)
        assert bar["width"] >= min(0.9 * width, 2000)


def test_a_phone_shows_the_first_results_without_scrolling(
    visit: Visit, car_site: Server, car_photos: Path
) -> None:
    page = visit(car_site, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    SCENES["results"](page, car_photos)
    photo = page.locator(".result .photo").first.bounding_box()
    assert page.evaluate("scrollY") == 0
    assert photo is not None and photo["y"] + photo["height"] < 740
