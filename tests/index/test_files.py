from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from index.files import replace_folder, sha256_bytes, sha256_file, write_atomically


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder that stands already."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "old.txt").write_text("old")
    return folder


def content(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail_to_move(monkeypatch, *, onto: Path) -> None:
    """Let the next move onto this path fail, as on a full or vanished disk."""
    move = Path.replace
    failures = [OSError(5, "Input/output error")]

    def replace(source: Path, target: Path) -> Path:
        if Path(target) == onto and failures:
            raise failures.pop()
        return move(source, target)

    monkeypatch.setattr(Path, "replace", replace)


def test_a_folder_takes_its_place_whole(tmp_path):
    target = tmp_path / "not yet" / "there" / "folder"
    with replace_folder(target) as fresh:
        (fresh / "a.txt").write_text("a")
        (fresh / "sub").mkdir()
        (fresh / "sub" / "b.txt").write_text("b")
        assert not target.exists()
    assert content(tmp_path) == {
        "not yet/there/folder/a.txt": "a",
        "not yet/there/folder/sub/b.txt": "b",
    }
    assert mode(target) == 0o755  # not only for its owner, as temporary folders are


def test_the_old_folder_stands_until_the_new_one_is_complete(tmp_path, old):
    with replace_folder(old) as fresh:
        (fresh / "new.txt").write_text("new")
        assert content(old) == {"deep/old.txt": "old"}
    assert content(tmp_path) == {"folder/new.txt": "new"}
    assert list(tmp_path.iterdir()) == [old]


def test_a_file_can_become_a_folder(tmp_path):
    (tmp_path / "x").write_text("file")
    with replace_folder(tmp_path / "x") as fresh:
        (fresh / "new.txt").write_text("new")
    assert content(tmp_path) == {"x/new.txt": "new"}


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_folder_and_nothing_beside_it(tmp_path, old, error):
    with pytest.raises(type(error)), replace_folder(old) as fresh:
        (fresh / "half.txt").write_text("half")
        raise error
    assert content(old) == {"deep/old.txt": "old"}
    assert list(tmp_path.iterdir()) == [old]


def test_an_error_leaves_no_folder_where_there_was_none(tmp_path):
    with pytest.raises(ValueError), replace_folder(tmp_path / "new") as fresh:
        (fresh / "half.txt").write_text("half")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_failing_swap_puts_the_old_folder_back(tmp_path, old, monkeypatch):
    fail_to_move(monkeypatch, onto=old)
    with pytest.raises(OSError, match="Input/output"), replace_folder(old) as fresh:
        (fresh / "new.txt").write_text("new")
    assert content(old) == {"deep/old.txt": "old"}
    assert list(tmp_path.iterdir()) == [old]


def test_a_file_is_written_or_replaced(tmp_path):
    path = tmp_path / "file.bin"
    for data in (b"first", b"", b"\0\xff" * 100_000):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]
    assert mode(path) == 0o644


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    fail_to_move(monkeypatch, onto=path)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_hashes_are_sha256(tmp_path):
    data = b"car" * 100_000
    (tmp_path / "file").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert sha256_bytes(data) == sha256_file(tmp_path / "file") == expected
