"""The page's files as they are served: what they may load, and that all they name is there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import httpx
import pytest

import service

WEB = Path(service.__file__).parent / "web"
FILES = sorted(file.relative_to(WEB).as_posix() for file in WEB.rglob("*") if file.is_file())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
STYLES = [name for name in FILES if name.endswith(".css")]

#: ``import … from "./x.js"``, ``import "./x.js"``, ``export … from "./x.js"``, ``import("./x.js")``
IMPORTED = re.compile(
    r"""(?:^import\b[^"';]*|^export\b[^"'=;]*\bfrom\s*|\bimport\(\s*)"([^"]+)["]""", re.MULTILINE
)

#: Code or style in an attribute or an element, and ways to make text into either.
INLINE = re.compile(
    r"""<script(?![^>]*\bsrc=)|<style|\son\w+=["']|\sstyle=["']|setAttribute\(["']style"""
    r"""|\.(?:inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"""
)

KINDS = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".html": "text/html",
}


def text_of(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


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
    kind = KINDS[Path(path).suffix or ".html"]
    assert response.headers["Content-Type"].startswith(kind)


def test_the_page_names_only_files_that_are_there(client: httpx.Client) -> None:
    named = re.findall(r'(?:src|href)="([^"#]+)"', client.get("/").text)
    assert {"web/app.js", "web/style/base.css"} <= set(named)
    for path in named:
        assert client.get(f"/{path}").status_code == 200, path


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_only_files_that_are_there(name: str) -> None:
    for imported in IMPORTED.findall(text_of(name)):
        assert imported.startswith(("./", "../")), imported
        assert posixpath.normpath(posixpath.join(posixpath.dirname(name), imported)) in SCRIPTS


def test_each_way_to_import_is_known() -> None:
    text = 'import {\n  a,\n} from "./a.js";\nimport "./b.js";\nexport * from "./c.js";\n'
    assert IMPORTED.findall(text + 'const d = () => import("./d.js");') == [
        f"./{name}.js" for name in "abcd"
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_load_only_styles_that_are_there(name: str) -> None:
    assert set(re.findall(r'stylesheet\("([^"]+)"\)', text_of(name))) <= set(STYLES)


def test_every_file_is_used() -> None:
    used = set(re.findall(r'(?:src|href)="web/([^"#]+)"', text_of("index.html")))
    for name in SCRIPTS:
        folder = posixpath.dirname(name)
        used |= {
            posixpath.normpath(posixpath.join(folder, imported))
            for imported in IMPORTED.findall(text_of(name))
        }
        used |= set(re.findall(r'stylesheet\("([^"]+)"\)', text_of(name)))
    assert set(FILES) - used == {"index.html"}


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".css")])
def test_the_page_has_no_code_or_style_inline(name: str) -> None:
    assert not INLINE.search(text_of(name))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<style>p { color: red }</style>",
        '<p onclick="go()">',
        "<p style='color: red'>",
        'node.setAttribute("style", "color: red")',
        "node.innerHTML = text",
        "eval(text)",
    ],
)
def test_inline_code_and_style_would_be_found(text: str) -> None:
    assert INLINE.search(text)


@pytest.mark.parametrize("name", [*SCRIPTS, *STYLES])
def test_nothing_names_another_host(name: str) -> None:
    text = text_of(name).replace('"http://www.w3.org/2000/svg"', "the name of a namespace")
    assert not re.search(r"""["'(]\s*(?:https?:)?//""", text)


@pytest.mark.parametrize(
    "path", ["/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py", "/web/", "/web/nothing"]
)
def test_no_other_file_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_every_element_that_the_shell_asks_for_is_on_the_page() -> None:
    ids = set(re.findall(r'id="([^"]+)"', text_of("index.html")))
    for name in SCRIPTS:
        asked = re.findall(r'getElementById\("([^"]+)"\)', text_of(name))
        assert set(asked) <= ids, name
