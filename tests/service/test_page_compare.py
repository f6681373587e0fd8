"""A result beside its query in a browser, and what made the two similar."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from index import Gallery, build
from tests.service.browser import Visit, described
from tests.service.running import Server, serving
from tests.tiny_model import make_model_folder

pytest.importorskip("playwright", reason="the page is tested with Playwright")

from playwright.sync_api import Locator, Page, expect

#: Opens the comparison as search, map and evaluation do.
OPEN = """async ({ query, result, results }) => {
  const { openCompare } = await import("/web/compare/dialog.js");
  await openCompare({ query, result, ...(results && { results }) });
}"""


def hits(server: Server, item_id: int) -> list[dict[str, Any]]:
    found = server.client.get(f"/items/{item_id}/similar?k=3").json()["results"]
    return list(found)


def compare(page: Page, server: Server, item_id: int = 1) -> Locator:
    results = hits(server, item_id)
    page.evaluate(OPEN, {"query": {"itemId": item_id}, "result": results[0], "results": results})
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    return dialog


@pytest.fixture
def plain_site(car_photos: Path, tmp_path: Path) -> Iterator[Server]:
    """A model that cannot show regions."""
    model = make_model_folder(tmp_path / "model", regions=False)
    with Gallery.create(tmp_path / "cars", model) as gallery:
        build(gallery, described(car_photos)[:4], workers=1)
    with serving(tmp_path / "cars", tmp_path) as server:
        yield server


def veil(dialog: Locator, index: int) -> np.ndarray:
    """Opacity of a photo's veil in 0 … 1, (h, w)."""
    canvas = dialog.locator("canvas").nth(index)
    data = canvas.evaluate(
        """(canvas) => {
          const { width, height } = canvas;
          return [...canvas.getContext("2d").getImageData(0, 0, width, height).data]
            .filter((_, i) => i % 4 === 3);
        }"""
    )
    side = int(len(data) ** 0.5)
    return np.array(data).reshape(side, side) / 255


def test_both_photos_are_shown_large_with_score_label_and_attributes(
    page: Page, car_site: Server
) -> None:
    dialog = compare(page, car_site)
    hit = hits(car_site, 1)[0]
    expect(dialog.locator("figure img")).to_have_count(2)
    expect(dialog).to_contain_text(hit["label"])
    expect(dialog).to_contain_text(f"{hit['score']:.3f}"[:5])
    expect(dialog).to_contain_text(hit["attributes"]["dealer"])
    for i in range(2):
        image = dialog.locator("figure img").nth(i)
        page.wait_for_function("(image) => image.naturalWidth > 0", arg=image.element_handle())


def test_the_veil_is_thinnest_where_the_service_says_that_most_was_added(
    page: Page, car_site: Server
) -> None:
    dialog = compare(page, car_site)
    expect(dialog.locator("canvas")).to_have_count(2)
    params = {"item": 1, "result": hits(car_site, 1)[0]["id"]}
    told = car_site.client.post("/explain", params=params).json()
    for i, side in enumerate(("query", "result")):
        heat = np.array(told[side]["heat"])
        opacity = veil(dialog, i)
        cell = opacity.shape[0] // len(heat)
        middle = opacity[cell // 2 :: cell, cell // 2 :: cell]
        # Scaling is smooth, so cells keep their order rather than their values.
        assert middle.shape == heat.shape
        assert np.corrcoef(middle.ravel(), heat.ravel())[0, 1] < -0.95
        # Of 255 levels, two that are one apart may change places.
        assert middle.flat[heat.argmax()] <= middle.min() + 1


def test_veil_and_photo_cover_each_other(page: Page, car_site: Server) -> None:
    dialog = compare(page, car_site)
    expect(dialog.locator("canvas")).to_have_count(2)
    for i in range(2):
        photo = dialog.locator("figure img").nth(i).bounding_box()
        canvas = dialog.locator("canvas").nth(i).bounding_box()
        assert photo is not None and canvas is not None
        for side in ("x", "y", "width", "height"):
            assert canvas[side] == pytest.approx(photo[side], abs=1)  # type: ignore[literal-required]


def test_pairs_are_numbered_in_both_photos(page: Page, car_site: Server) -> None:
    dialog = compare(page, car_site)
    for figure in (0, 1):
        marks = dialog.locator("figure").nth(figure).locator(".compare-mark")
        expect(marks.first).to_have_text("1")
    params = {"item": 1, "result": hits(car_site, 1)[0]["id"]}
    pairs = car_site.client.post("/explain", params=params).json()["pairs"]
    expect(dialog.locator(".compare-mark")).to_have_count(2 * len(pairs))


def test_the_regions_can_be_taken_away(page: Page, car_site: Server) -> None:
    dialog = compare(page, car_site)
    expect(dialog.locator("canvas").first).to_be_visible()
    page.keyboard.press("o")
    expect(dialog.locator("canvas").first).to_be_hidden()
    expect(dialog.locator(".compare-mark").first).to_be_hidden()
    dialog.get_by_label("Similar regions").check()
    expect(dialog.locator("canvas").first).to_be_visible()


def test_a_photo_from_outside_is_compared_too(
    visit: Visit, car_site: Server, car_photos: Path
) -> None:
    page = visit(car_site)
    file = sorted(car_photos.glob("*/*.jpg"))[0]
    hit = car_site.client.post("/search?k=1", files={"file": file.read_bytes()}).json()["results"][
        0
    ]
    page.evaluate(
        """async ({ bytes, result }) => {
          const { openCompare } = await import("/web/compare/dialog.js");
          const file = new File([new Uint8Array(bytes)], "car.jpg", { type: "image/jpeg" });
          await openCompare({ query: { file, url: URL.createObjectURL(file) }, result });
        }""",
        {"bytes": list(file.read_bytes()), "result": hit},
    )
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("canvas")).to_have_count(2)
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        width = dialog.locator("figure img").first.evaluate("(image) => image.naturalWidth")
        assert width == image.width


def test_arrow_keys_go_through_the_results(page: Page, car_site: Server) -> None:
    dialog = compare(page, car_site)
    results = hits(car_site, 1)
    expect(dialog.get_by_role("button", name="Previous")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text(f"{results[1]['score']:.3f}"[:5])
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("button", name="Next")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(dialog).to_contain_text(f"{results[1]['score']:.3f}"[:5])
    expect(dialog.locator("canvas")).to_have_count(2)


def test_more_like_this_searches_by_the_result(page: Page, car_site: Server) -> None:
    dialog = compare(page, car_site)
    dialog.get_by_role("button", name="More like this").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.url.endswith(f"#/search?item={hits(car_site, 1)[0]['id']}")


def test_escape_closes_it(page: Page, car_site: Server) -> None:
    compare(page, car_site)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_model_that_cannot_shows_the_photos_alone(visit: Visit, plain_site: Server) -> None:
    page = visit(plain_site)
    dialog = compare(page, plain_site)
    expect(dialog).to_contain_text("This model cannot show which regions are similar.")
    expect(dialog.locator("figure img")).to_have_count(2)
    expect(dialog.locator("canvas")).to_have_count(0)
    expect(dialog.get_by_label("Similar regions")).to_be_hidden()


def test_on_a_phone_both_photos_fit_beside_each_other(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, viewport={"width": 360, "height": 740})
    dialog = compare(page, car_site)
    expect(dialog.locator("canvas")).to_have_count(2)
    for i in range(2):
        box = dialog.locator("figure img").nth(i).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
