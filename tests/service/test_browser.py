"""The watch over tests of the page: what no page may do fails a test that did not announce it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.service.browser import Visit
from tests.service.running import DEADLINE_S, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ADD_STYLE = """
const style = document.createElement("style");
style.textContent = "body { color: red }";
document.head.append(style);
"""

FORBIDDEN = {
    "an error that it logs": ("console.error('broken')", "console: broken"),
    "an error that it throws": ("setTimeout(() => { throw Error('oops'); })", "thrown: .*oops"),
    "a style beyond its policy": (ADD_STYLE, "Content Security Policy"),
    "a file that is not there": ("new Image().src = '/web/nothing.svg'", "console: .*404"),
    "a host beyond its policy": ("new Image().src = 'http://127.0.0.2:9/a.png'", "127.0.0.2"),
}


def until_seen(page: Page, visit: Visit, pattern: str) -> None:
    """Let the browser go on until something wrong that matches has been seen."""
    end = time.monotonic() + DEADLINE_S
    while not any(re.search(pattern, wrong) for wrong in visit.wrongs):
        assert time.monotonic() < end, f"not seen: {pattern}; seen: {visit.wrongs}"
        page.wait_for_timeout(20)


@pytest.mark.parametrize(("script", "pattern"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_no_page_may_do_is_seen_unless_announced(
    browser: Browser, car_site: Server, script: str, pattern: str
) -> None:
    visit = Visit(browser)
    page = visit(car_site)
    page.evaluate(script)
    until_seen(page, visit, pattern)
    wrongs = visit.close()
    assert wrongs
    visit.allow(pattern)
    assert [wrong for wrong in visit.close() if re.search(pattern, wrong)] == []


def test_another_host_is_seen_also_where_no_policy_holds(
    browser: Browser, car_site: Server
) -> None:
    visit = Visit(browser)
    page = visit(car_site, "about:blank")
    page.set_content("<img src='http://127.0.0.2:9/a.png'>")
    until_seen(page, visit, "request to another host: http://127.0.0.2:9/a.png")
    assert visit.close()


def test_an_ordinary_visit_does_nothing_wrong(page: Page) -> None:
    assert page.title()
