"""The gallery view in a browser: browse, add, edit, remove with undo."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.photos import picture
from tests.service.api import count
from tests.service.browser import CLASSES, PER_CLASS, Visit
from tests.service.running import Server, eventually

pytest.importorskip("playwright", reason="the page is tested with Playwright")

from playwright.sync_api import FilePayload, Locator, Page, expect

ITEMS = CLASSES * PER_CLASS

#: A word that is in no label, so that a card with it is the one that was added.
NEW = "brand-new"


def photo(seed: int, name: str | None = None) -> FilePayload:
    buffer = io.BytesIO()
    picture(seed, height=90, width=120).save(buffer, "JPEG")
    return {"name": name or f"{seed}.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}


def cards(page: Page) -> Locator:
    return page.locator(".gallery-card")


def choose(page: Page, *files: FilePayload) -> None:
    page.locator("input[type=file]").first.set_input_files(list(files))


def drop(page: Page, *files: FilePayload) -> None:
    """What a browser does when files are let go over the view."""
    data = page.evaluate_handle(
        """(files) => {
          const data = new DataTransfer();
          for (const { name, type, bytes } of files) {
            data.items.add(new File([new Uint8Array(bytes)], name, { type }));
          }
          return data;
        }""",
        [{"name": f["name"], "type": f["mimeType"], "bytes": list(f["buffer"])} for f in files],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(".gallery", event, {"dataTransfer": data})


def item(server: Server, item_id: int) -> dict[str, Any] | None:
    response = server.client.get(f"/items/{item_id}")
    found: dict[str, Any] = response.json()
    return found if response.status_code == 200 else None


# Browsing


def test_all_photos_are_shown_with_label_and_attributes(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, "/#/gallery")
    expect(cards(page)).to_have_count(ITEMS)
    expect(page.get_by_role("main")).to_contain_text(f"{ITEMS} photos")
    first = car_site.client.get("/items?limit=1").json()["items"][0]
    expect(cards(page).first).to_contain_text(first["label"])
    expect(cards(page).first).to_contain_text(first["attributes"]["dealer"])


def test_every_photo_is_loaded_once_it_is_on_screen(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, "/#/gallery")
    cards(page).last.scroll_into_view_if_needed()
    image = cards(page).last.locator("img")
    expect(image).to_be_visible()
    page.wait_for_function("(image) => image.naturalWidth > 0", arg=image.element_handle())


def test_further_pages_come_as_one_scrolls(own_site: Server, visit: Visit) -> None:
    """More than a page: what is added goes to the end."""
    for seed in range(30):
        sent = photo(seed)["buffer"]
        answer = own_site.client.post("/items", files={"file": sent}, data={"label": NEW})
        assert answer.status_code == 201
    page = visit(own_site, "/#/gallery")
    expect(cards(page).filter(has_text=NEW).first).to_be_attached()
    page.mouse.move(600, 400)
    for _ in range(20):
        page.mouse.wheel(0, 3000)
        if cards(page).count() == ITEMS + 30:
            break
    expect(cards(page)).to_have_count(ITEMS + 30)
    ids = cards(page).evaluate_all("(all) => all.map((each) => Number(each.dataset.id))")
    assert ids == sorted(set(ids))


def test_arrow_keys_move_between_photos_and_enter_opens_one(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, "/#/gallery")
    cards(page).first.focus()
    page.keyboard.press("ArrowRight")
    expect(cards(page).nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    columns = page.evaluate(
        "getComputedStyle(document.querySelector('.gallery-grid'))"
        ".gridTemplateColumns.split(' ').length"
    )
    expect(cards(page).nth(1 + columns)).to_be_focused()
    assert page.locator('.gallery-card[tabindex="0"]').count() == 1
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(cards(page).nth(1 + columns)).to_be_focused()


def test_m_searches_by_the_photo(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, "/#/gallery")
    cards(page).nth(2).focus()
    wanted = cards(page).nth(2).get_attribute("data-id")
    page.keyboard.press("m")
    expect(page).to_have_url(re.compile(rf"#/search\?item={wanted}"))


# An empty gallery


def test_an_empty_gallery_says_how_to_fill_it(empty_site: Server, visit: Visit) -> None:
    page = visit(empty_site, "/#/gallery")
    expect(page.get_by_role("heading", name="The gallery is empty")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("dscl index add")
    drop(page, photo(1))
    page.get_by_role("button", name="Add", exact=True).click()
    expect(cards(page)).to_have_count(1)
    expect(page.get_by_role("heading", name="The gallery is empty")).to_be_hidden()


# Adding


def test_dropped_photos_are_added_with_what_they_have_in_common(
    own_site: Server, visit: Visit
) -> None:
    page = visit(own_site, "/#/gallery")
    expect(cards(page)).to_have_count(ITEMS)
    drop(page, photo(1), photo(2), photo(3))
    page.get_by_label("Label", exact=True).fill(NEW)
    page.get_by_label("year", exact=True).fill("2021")
    page.get_by_label("sold").select_option("yes")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(cards(page).filter(has_text=NEW)).to_have_count(3)
    expect(page.get_by_role("main")).to_contain_text(f"{ITEMS + 3} photos")
    where = {"where": f'{{"label": "{NEW}"}}'}
    found = own_site.client.get("/items", params=where).json()["items"]
    assert [each["attributes"] for each in found] == 3 * [{"year": 2021, "sold": True}]


def test_a_broken_photo_is_named_with_the_reason_and_harms_no_other(
    own_site: Server, visit: Visit
) -> None:
    visit.allow("status of 4")
    page = visit(own_site, "/#/gallery")
    broken = photo(1, "broken.jpg")
    broken["buffer"] = broken["buffer"][:200]
    choose(page, broken, photo(2, "sound.jpg"))
    page.get_by_role("button", name="Add", exact=True).click()
    row = page.locator(".adding-row", has_text="broken.jpg")
    expect(row).to_contain_text(re.compile("damaged|cut off"))
    expect(page.locator(".adding-row", has_text="sound.jpg")).to_contain_text("Added")
    expect(page.locator(".adding-status")).to_have_text("1 added, 1 refused: see below.")
    assert count(own_site.client) == ITEMS + 1


def test_a_zip_is_added_as_a_job_whose_result_is_told(own_site: Server, visit: Visit) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for seed in range(3):
            file.writestr(f"{NEW}/{seed}.jpg", photo(seed)["buffer"])
        file.writestr(f"{NEW}/broken.jpg", b"no photo")
    page = visit(own_site, "/#/gallery")
    choose(page, {"name": "cars.zip", "mimeType": "application/zip", "buffer": buffer.getvalue()})
    page.get_by_role("button", name="Add", exact=True).click()
    row = page.locator(".adding-row", has_text="cars.zip")
    expect(row).to_contain_text("3 added, 1 skipped")
    expect(row).to_contain_text("broken.jpg")
    assert count(own_site.client) == ITEMS + 3
    expect(page.get_by_role("main")).to_contain_text(f"{ITEMS + 3} photos")


def test_what_is_neither_photo_nor_zip_is_not_sent(visit: Visit, car_site: Server) -> None:
    page = visit(car_site, "/#/gallery")
    drop(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"})
    expect(page.get_by_text("No photo or zip: notes.txt")).to_be_visible()
    expect(page.get_by_role("button", name="Add", exact=True)).to_have_count(0)


# Editing


def test_label_and_attributes_can_be_changed_and_taken_away(own_site: Server, visit: Visit) -> None:
    page = visit(own_site, "/#/gallery")
    cards(page).first.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    item_id = int(cards(page).first.get_attribute("data-id") or 0)
    before = item(own_site, item_id)
    assert before is not None
    dialog.get_by_label("Label", exact=True).fill(NEW)
    dialog.get_by_label("year").fill("1999")
    dialog.get_by_label("dealer").fill("")
    dialog.get_by_label("Name of another attribute").fill("doors")
    dialog.get_by_label("Value of another attribute").fill("5")
    dialog.get_by_role("button", name="Save").click()
    expect(cards(page).first).to_contain_text(NEW)
    after = item(own_site, item_id)
    assert after is not None
    assert after["label"] == NEW
    expected = before["attributes"] | {"year": 1999, "doors": 5}
    del expected["dealer"]
    assert after["attributes"] == expected


def test_a_value_of_another_type_is_refused_in_the_services_words(
    own_site: Server, visit: Visit
) -> None:
    visit.allow("status of 422")
    page = visit(own_site, "/#/gallery")
    cards(page).first.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name of another attribute").fill("year")
    dialog.get_by_label("Value of another attribute").fill("old")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("year")
    expect(dialog).to_be_visible()


# Removing


def test_a_removed_photo_can_be_brought_back_as_it_was(own_site: Server, visit: Visit) -> None:
    page = visit(own_site, "/#/gallery")
    expect(cards(page)).to_have_count(ITEMS)
    first = int(cards(page).first.get_attribute("data-id") or 0)
    before = item(own_site, first)
    cards(page).first.focus()
    page.keyboard.press("Delete")
    expect(cards(page)).to_have_count(ITEMS - 1)
    page.get_by_role("button", name="Undo").click()
    expect(cards(page)).to_have_count(ITEMS)
    expect(cards(page).first).to_have_attribute("data-id", str(first))
    page.reload()
    expect(cards(page)).to_have_count(ITEMS)
    assert item(own_site, first) == before


def test_a_removed_photo_is_deleted_when_the_time_to_undo_is_over(
    own_site: Server, visit: Visit
) -> None:
    page = visit(own_site, "/")
    page.clock.install()
    page.goto("/#/gallery")
    expect(cards(page)).to_have_count(ITEMS)
    first = int(cards(page).first.get_attribute("data-id") or 0)
    cards(page).first.focus()
    page.keyboard.press("Delete")
    expect(cards(page)).to_have_count(ITEMS - 1)
    assert item(own_site, first) is not None
    page.clock.fast_forward(10_000)
    eventually(lambda: True if item(own_site, first) is None else None)
    expect(page.get_by_role("main")).to_contain_text(f"{ITEMS - 1} photos")


def test_a_page_that_is_left_deletes_what_was_removed(own_site: Server, visit: Visit) -> None:
    page = visit(own_site, "/#/gallery")
    first = int(cards(page).first.get_attribute("data-id") or 0)
    cards(page).first.focus()
    page.keyboard.press("Delete")
    page.goto("about:blank")
    eventually(lambda: True if item(own_site, first) is None else None)
    assert count(own_site.client) == ITEMS - 1


def test_a_photo_that_may_not_be_removed_comes_back_with_the_reason(
    own_gallery: Path, visit: Visit, tmp_path: Path
) -> None:
    from tests.service.running import serving

    visit.allow("status of 409")
    with serving(own_gallery, tmp_path, "--read-only") as server:
        page = visit(server, "/")
        page.clock.install()
        page.goto("/#/gallery")
        expect(cards(page)).to_have_count(ITEMS)
        cards(page).first.focus()
        page.keyboard.press("Delete")
        expect(cards(page)).to_have_count(ITEMS - 1)
        page.clock.fast_forward(10_000)
        expect(page.get_by_text(re.compile("Not removed: .*read-only"))).to_be_visible()
        expect(cards(page)).to_have_count(ITEMS)
