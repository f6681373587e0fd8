"""The page as a person meets it: Chromium against a real server of a gallery of drawn cars.

Fixtures for ``test_page_*.py``, known to all tests by ``tests/conftest.py``:

- ``visit(server, "/#/map", color_scheme="dark")`` opens the page in a window of its own and gives
  Playwright's ``Page``. Whatever the window's context can be told can be said here: ``viewport``,
  ``has_touch``, ``reduced_motion`` … A test fails if a page it opened logged an error, threw one,
  broke its Content-Security-Policy or asked another host for anything. ``visit.allow("401")`` says
  beforehand which errors a test provokes on purpose.
- ``page``: the page of ``car_site`` in an ordinary window.
- ``car_site``: one server for all tests that change no item. ``own_site`` and ``own_gallery`` are
  the test's own to change; ``empty_site`` serves a gallery without items.
- ``car_photos``: the photos, ``CLASS/NNN.jpg``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from index import Gallery, Photo, build
from tests.service.running import DEADLINE_S, Server, serving
from tests.tiny_model import make_model_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request

#: Debian's and what others call it; ``CHROMIUM`` names any other.
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

NO_CHROMIUM = (
    "no Chromium: the tests of the page in a browser need one. `make browser` installs Debian's "
    "(as root); CHROMIUM=/path/to/chrome names another"
)

#: No sandbox: tests run as root in containers. The others keep Chromium from calling anyone.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

CLASSES, PER_CLASS = 8, 6
DEALERS = ("north", "east", "south")


def find_chromium() -> str | None:
    """The browser's program, if there is one."""
    if named := os.environ.get("CHROMIUM"):
        return named
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@dataclass
class Visit:
    """Opens pages, and remembers what they did that no page may do."""

    browser: Browser
    allowed: list[str] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def __call__(self, server: Server, path: str = "/", **options: Any) -> Page:
        """The page at ``path``, loaded, in a new context with Playwright's ``options``."""
        options = {"viewport": {"width": 1280, "height": 800}, **options}
        context = self.browser.new_context(base_url=str(server.client.base_url), **options)
        context.set_default_timeout(1000 * DEADLINE_S)
        self.contexts.append(context)
        self._watch(context, server.client.base_url.netloc.decode())
        page = context.new_page()
        page.goto(path)
        return page

    def allow(self, *patterns: str) -> None:
        """Errors that match one of these regular expressions are what the test is about."""
        self.allowed += patterns

    def _watch(self, context: BrowserContext, host: str) -> None:
        def said(message: ConsoleMessage) -> None:
            if message.type == "error" or "Content Security Policy" in message.text:
                where = message.location.get("url", "")
                self.wrongs.append(f"console: {message.text} ({where})")

        def asked(request: Request) -> None:
            address = urlsplit(request.url)
            if address.scheme not in ("data", "blob") and address.netloc != host:
                self.wrongs.append(f"request to another host: {request.url}")

        context.on("console", said)
        context.on("weberror", lambda error: self.wrongs.append(f"thrown: {error.error}"))
        context.on("request", asked)

    def close(self) -> list[str]:
        """Close the pages; what they did wrong and was not allowed."""
        for context in self.contexts:
            context.close()
        return [w for w in self.wrongs if not any(re.search(a, w) for a in self.allowed)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have all tests that lack the browser be skipped in one line, as if at one place."""
    report = yield
    if report.skipped and NO_CHROMIUM in str(report.longrepr):
        report.longrepr = (__file__, 0, f"Skipped: {NO_CHROMIUM}")
    return report


# Of a module, not of the session: while Playwright's driver runs, asyncio takes this thread for
# one with a running loop, and other modules' tests could not use asyncio.run.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; the test is skipped where there is none."""
    if (chromium := find_chromium()) is None:
        pytest.skip(NO_CHROMIUM)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * DEADLINE_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=CHROMIUM_ARGUMENTS, timeout=1000 * DEADLINE_S
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser)
    yield visit
    assert visit.close() == []


@pytest.fixture
def page(visit: Visit, car_site: Server) -> Page:
    return visit(car_site)


@pytest.fixture(scope="session")
def car_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn cars: ``CLASSES`` folders of ``PER_CLASS`` photos, called such as ``sedan-01``."""
    from training.render import render_dataset

    folder = tmp_path_factory.mktemp("drawn") / "cars"
    render_dataset(folder, classes=CLASSES + 1, test_classes=CLASSES, per_class=PER_CLASS, size=128)
    return folder / "test"


@pytest.fixture(scope="session")
def car_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("car-model") / "tiny")


@pytest.fixture(scope="session")
def car_gallery(
    tmp_path_factory: pytest.TempPathFactory, car_photos: Path, car_model: Path
) -> Path:
    """The cars with attributes of each type, to copy: nobody opens it."""
    folder = tmp_path_factory.mktemp("car-gallery") / "cars"
    with Gallery.create(folder, car_model) as gallery:
        report = build(gallery, described(car_photos), workers=1)
        assert report.added == CLASSES * PER_CLASS
    return folder


def described(photos: Path) -> list[Photo]:
    """The photos with label and made-up attributes, the same at each call."""
    rng = np.random.default_rng(5)
    found = []
    for file in sorted(photos.glob("*/*.jpg")):
        label = file.parent.name
        attributes = {
            "body": label.split("-")[0],
            "dealer": str(rng.choice(DEALERS)),
            "year": int(rng.integers(2008, 2025)),
            "price": float(rng.integers(60, 900)) * 50,
            "sold": bool(rng.random() < 0.3),
        }
        found.append(
            Photo(
                root=photos,
                path=file.relative_to(photos).as_posix(),
                label=label,
                attributes=attributes,
                stated=frozenset({"label", *attributes}),
            )
        )
    return found


@pytest.fixture(scope="session")
def car_site(car_gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests that change no item."""
    folder = tmp_path_factory.mktemp("car-site")
    shutil.copytree(car_gallery, folder / "cars")
    with serving(folder / "cars", folder) as server:
        yield server


@pytest.fixture
def own_gallery(car_gallery: Path, tmp_path: Path) -> Path:
    """A copy of the gallery for this test alone, served by nobody yet."""
    shutil.copytree(car_gallery, tmp_path / "cars")
    return tmp_path / "cars"


@pytest.fixture
def own_site(own_gallery: Path, tmp_path: Path) -> Iterator[Server]:
    """A server whose items this test may change."""
    with serving(own_gallery, tmp_path) as server:
        yield server


@pytest.fixture
def empty_site(car_model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of a gallery without items."""
    Gallery.create(tmp_path / "empty", car_model).close()
    with serving(tmp_path / "empty", tmp_path) as server:
        yield server
