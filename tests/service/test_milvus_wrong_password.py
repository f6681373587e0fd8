"""A Milvus server that asks for a name and password.

Last of the tests that start a server anew: for half a minute after, it may not serve others.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from index import Gallery
from index.errors import GalleryError
from scripts.milvus_server import ROOT_TOKEN, MilvusServer
from tests.index.gallery_kinds import NEEDS_SERVER, SERVER, drop
from tests.tiny_model import make_model_folder

pytestmark = NEEDS_SERVER


def test_a_wrong_password_is_told_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that asks for one: with none, a wrong one, a name that it does not know."""
    monkeypatch.setenv("DSCL_CACHE", str(tmp_path / "cache"))
    model = make_model_folder(tmp_path / "model")
    name = f"test_{secrets.token_hex(6)}"
    server = MilvusServer.of_environment()
    assert server is not None
    server.kill()
    server.require_password(True)
    try:
        server.start(token=ROOT_TOKEN)
        for who in ("", "root:hunter2@", "nobody:hunter2@"):
            for use in (lambda url: Gallery.create(url, model), Gallery.open):
                with pytest.raises(GalleryError, match="refuses the name and password") as caught:
                    use(f"milvus://{who}{SERVER}/{name}")
                assert caught.value.code == "gallery_invalid"  # asking again does not help
                assert "hunter2" not in str(caught.value)
        with pytest.raises(GalleryError, match="there is no gallery at"):
            Gallery.open(f"milvus://{ROOT_TOKEN}@{SERVER}/{name}")
        monkeypatch.setenv("DSCL_MILVUS_TOKEN", ROOT_TOKEN)
        with Gallery.create(f"milvus://{SERVER}/{name}", model) as gallery:
            assert len(gallery) == 0
        drop(f"milvus://{SERVER}/{name}")
    finally:
        server.kill()
        server.require_password(False)
        server.start()
