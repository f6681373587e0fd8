"""Pictures of the page: each of its scenes, light and dark, on a phone and on a large screen.

Starts the real service on the drawn cars of ``make demo``, with the model trained there and made-up
attributes, and looks at it with a headless Chromium. Run by ``make screenshots``; ``--docs`` makes
the README's pictures anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file, wherever from

from index import Gallery, build
from tests.service.browser import CHROMIUM_ARGUMENTS, NO_CHROMIUM, Visit, described, find_chromium
from tests.service.running import Server, serving
from tests.service.scenes import SCENES, at_rest, compared, queries

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Screens to look at the page on, as Playwright's contexts are told.
DEVICES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 360, "height": 740},
        "device_scale_factor": 2,
        "has_touch": True,
        "is_mobile": True,
    },
    "4k": {"viewport": {"width": 3840, "height": 2160}},
}

#: The README's pictures: which scene on which screen, and what stands at the top of the picture if
#: not the page's beginning. The film of a search is beside them.
DOCS_FOLDER = Path(__file__).parent.parent / "docs" / "images"
DOCS = {
    "compare": ("compare", "light", None),
    "map": ("map", "dark", None),
    "evaluate": ("evaluated", "light", "#classes-title"),
}
FILM = "search"
FILM_SIZE = {"width": 960, "height": 640}
MAX_BYTES = 300_000


@contextmanager
def gallery_of_cars(model: Path, photos: Path) -> Iterator[Server]:
    """The service on a gallery of these photos, made for the occasion."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Gallery.create(folder / "cars", model) as gallery:
            build(gallery, described(photos))
        with serving(folder / "cars", folder) as server:
            yield server


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium."""
    if (program := find_chromium()) is None:
        raise SystemExit(NO_CHROMIUM)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=CHROMIUM_ARGUMENTS)


def take(
    browser: Browser,
    server: Server,
    photos: Path,
    scene: str,
    device: str,
    top: str | None = None,
) -> bytes:
    """A PNG of a scene on a screen, from ``top`` on; what the page did wrong is printed."""
    visit = Visit(browser)
    page = visit(server, **DEVICES[device])
    SCENES[scene](page, photos)
    if top is not None:
        page.locator(top).evaluate("(e) => scrollTo(0, e.getBoundingClientRect().top - 100)")
        at_rest(page)
    picture = page.screenshot()
    for wrong in visit.close():
        print(f"  {wrong}", file=sys.stderr)
    return picture


def film(browser: Browser, server: Server, photos: Path) -> tuple[list[Image.Image], list[int]]:
    """A search as it goes: its frames, and for how many milliseconds each is shown."""
    frames: list[Image.Image] = []
    shown: list[int] = []
    visit = Visit(browser)
    page = visit(server, viewport=FILM_SIZE, color_scheme="light")

    def frame(milliseconds: int) -> None:
        at_rest(page)
        frames.append(opened(page.screenshot()))
        shown.append(milliseconds)

    SCENES["search"](page, photos)
    frame(1200)
    page.locator("#photo-input").set_input_files(queries(photos)[3])
    page.locator(".result").first.wait_for()
    frame(2000)
    stage = page.locator(".crop-stage").bounding_box()
    assert stage is not None
    x, y, width, height = (stage[side] for side in ("x", "y", "width", "height"))
    page.mouse.move(x + 0.1 * width, y + 0.25 * height)
    page.mouse.down()
    for share in (0.4, 0.65, 0.9):
        page.mouse.move(x + share * width, y + (0.25 + 0.6 * share) * height)
        frame(250)
    with page.expect_response("**/search?*"):
        page.mouse.up()
    frame(2000)
    page.locator(".result-open").nth(1).click()
    compared(page)
    frame(2500)
    visit.close()
    return frames, shown


def opened(png: bytes) -> Image.Image:
    """A picture from the bytes of its file."""
    return Image.open(BytesIO(png)).convert("RGB")


def save_within(frames: list[Image.Image], file: Path, **options: Any) -> None:
    """Write a WebP, moving if there are several frames, in the best quality that fits."""
    for quality in range(90, 30, -10):
        frames[0].save(
            file, quality=quality, method=6, save_all=True, append_images=frames[1:], **options
        )
        if file.stat().st_size <= MAX_BYTES:
            return
    raise SystemExit(f"{file} is above {MAX_BYTES} bytes in any quality: make it smaller.")


def make_docs(browser: Browser, server: Server, photos: Path) -> None:
    """The README's pictures."""
    DOCS_FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (scene, device, top) in DOCS.items():
        picture = opened(take(browser, server, photos, scene, device, top))
        save_within([picture], DOCS_FOLDER / f"{name}.webp")
    frames, shown = film(browser, server, photos)
    save_within(frames, DOCS_FOLDER / f"{FILM}.webp", duration=shown, loop=0)


def main() -> None:
    """Take the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("demo/run/model"))
    parser.add_argument("--photos", type=Path, default=Path("demo/cars/test"))
    parser.add_argument("--out", type=Path, default=Path("scratch/screenshots"))
    parser.add_argument("--scenes", nargs="*", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--devices", nargs="*", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--docs", action="store_true", help="also make docs/images anew")
    asked = parser.parse_args()
    for needed in (asked.model, asked.photos):
        if not needed.is_dir():
            raise SystemExit(f"{needed} is not there: `make demo ARGS=--no-serve` makes it.")
    asked.out.mkdir(parents=True, exist_ok=True)
    with gallery_of_cars(asked.model, asked.photos) as server, chromium() as browser:
        for device in asked.devices:
            for scene in asked.scenes:
                file = asked.out / f"{scene}-{device}.png"
                file.write_bytes(take(browser, server, asked.photos, scene, device))
                print(file, flush=True)
        if asked.docs:
            make_docs(browser, server, asked.photos)


if __name__ == "__main__":
    main()
