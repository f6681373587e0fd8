from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

import service

WEB = Path(service.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir())


def policy(response: httpx.Response) -> dict[str, str]:
    header = response.headers["Content-Security-Policy"]
    return dict(part.strip().split(" ", 1) for part in header.split(";"))


@pytest.mark.parametrize("path", ["/", *(f"/web/{name}" for name in FILES)])
def test_the_page_and_its_files_may_load_nothing_from_elsewhere(
    client: httpx.Client, path: str
) -> None:
    response = client.get(path)
    assert response.status_code == 200
    rules = policy(response)
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["Content-Security-Policy"]


def test_the_page_is_html_and_names_only_files_that_are_there(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert {"web/app.js", "web/style.css"} <= set(named)
    for path in named:
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_scripts_import_only_files_that_are_there(client: httpx.Client, name: str) -> None:
    response = client.get(f"/web/{name}")
    assert response.headers["Content-Type"].startswith("text/javascript")
    for imported in re.findall(r'from "(.+?)"', response.text):
        assert imported.startswith("./") and imported[2:] in FILES


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".js", ".html"))])
def test_the_page_has_no_code_or_style_inline(client: httpx.Client, name: str) -> None:
    text = client.get(f"/web/{name}").text
    assert not re.search(r"<script(?![^>]*src)|<style|\son\w+=\"|style=\"|innerHTML", text)


@pytest.mark.parametrize(
    "path", ["/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py", "/web/", "/web/nothing"]
)
def test_no_other_file_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_every_element_that_a_script_asks_for_is_on_the_page() -> None:
    ids = set(re.findall(r'id="([^"]+)"', (WEB / "index.html").read_text(encoding="utf-8")))
    for script in WEB.glob("*.js"):
        asked = re.findall(r'getElementById\("([^"]+)"\)', script.read_text(encoding="utf-8"))
        assert set(asked) <= ids, script.name
