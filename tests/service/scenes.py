"""What there is to see of the page: its views, and the states of them that people meet.

``SCENES`` names each with a function that brings a page there, for tests that hold everywhere and
for ``scripts/screenshots.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: The views, as in the page's address.
VIEWS = ("search", "gallery", "map", "evaluate")

#: Photos in sight are there, fonts are loaded, nothing moves.
AT_REST = """() => {
  const inSight = (image) => {
    const box = image.getBoundingClientRect();
    let [left, top, right, bottom] = [0, 0, innerWidth, innerHeight];
    for (let around = image.parentElement; around; around = around.parentElement) {
      if (getComputedStyle(around).overflowX === "visible") continue;
      const clip = around.getBoundingClientRect();
      [left, right] = [Math.max(left, clip.left), Math.min(right, clip.right)];
    }
    const within = box.bottom > top && box.top < bottom && box.right > left && box.left < right;
    return box.width > 0 && within;
  };
  return (
    document.fonts.status === "loaded" &&
    document.getAnimations().every((animation) => animation.playState !== "running") &&
    [...document.images].filter(inSight).every((image) => image.complete && image.naturalWidth > 0)
  );
}"""


def at_rest(page: Page) -> None:
    """Wait until the page has loaded what it shows and stands still."""
    page.wait_for_load_state("networkidle")
    page.wait_for_function(AT_REST)


def open_view(page: Page, view: str) -> None:
    """Show one of ``VIEWS``."""
    page.goto(f"/#/{view}")
    page.locator(f".views a[href='#/{view}'][aria-current=page]").wait_for()
    page.locator("#view h1").first.wait_for()
    at_rest(page)


def queries(photos: Path) -> list[Path]:
    """Photos to search by: the first of each class."""
    return [sorted(folder.iterdir())[0] for folder in sorted(photos.iterdir())]


def search(page: Page, photos: Path) -> None:
    open_view(page, "search")


def results(page: Page, photos: Path) -> None:
    search(page, photos)
    page.locator("#photo-input").set_input_files(queries(photos)[1])
    page.locator(".result").first.wait_for()
    at_rest(page)


def cropped(page: Page, photos: Path) -> None:
    results(page, photos)
    with page.expect_response("**/search?*"):
        page.get_by_role("button", name="Crop").click()
    at_rest(page)


def filtered(page: Page, photos: Path) -> None:
    results(page, photos)
    page.locator(".filters summary").click()
    with page.expect_response("**/search?*"):
        page.locator(".filter-value").first.click()
    at_rest(page)


def several(page: Page, photos: Path) -> None:
    search(page, photos)
    page.locator("#photo-input").set_input_files(queries(photos)[:3])
    page.locator(".row .result").first.wait_for()
    at_rest(page)


def nothing(page: Page, photos: Path) -> None:
    results(page, photos)
    with page.expect_response("**/search?*"):
        page.locator("#threshold").fill("1")
    at_rest(page)


def compared(page: Page) -> None:
    """Wait until the comparison shows which regions are similar, or says that it cannot."""
    told = page.locator("dialog .compare-note")
    told.filter(has_not_text="Finding").filter(has_text=re.compile(".")).wait_for()
    at_rest(page)


def compare(page: Page, photos: Path) -> None:
    results(page, photos)
    page.locator(".result-open").nth(1).click()
    compared(page)


def keyboard_help(page: Page, photos: Path) -> None:
    search(page, photos)
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keyboard").wait_for()


def gallery(page: Page, photos: Path) -> None:
    open_view(page, "gallery")
    page.locator(".gallery-card").first.wait_for()
    at_rest(page)


def item(page: Page, photos: Path) -> None:
    gallery(page, photos)
    page.locator(".gallery-open").first.click()
    page.get_by_role("dialog").wait_for()
    at_rest(page)


def evaluate(page: Page, photos: Path) -> None:
    open_view(page, "evaluate")


def evaluated(page: Page, photos: Path) -> None:
    evaluate(page, photos)
    page.get_by_role("button", name="Evaluate").click()
    page.locator(".hard").first.wait_for()
    at_rest(page)


def mapped(page: Page, photos: Path) -> None:
    page.goto("/#/map")
    page.locator(".map-stage:visible").wait_for()
    page.locator(".map-canvas").press("ArrowRight")
    page.locator(".map-card .card-label").wait_for()
    at_rest(page)


SCENES: dict[str, Callable[[Page, Path], None]] = {
    "search": search,
    "results": results,
    "cropped": cropped,
    "filtered": filtered,
    "several": several,
    "nothing": nothing,
    "compare": compare,
    "help": keyboard_help,
    "gallery": gallery,
    "item": item,
    "map": mapped,
    "evaluate": evaluate,
    "evaluated": evaluated,
}
