from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path

import pytest

from service.keys import (
    SCOPES,
    AccessKey,
    KeyRing,
    KeysInvalidError,
    key_sha256,
    new_key,
    parse_keys,
)
from service.security import Require, ScopeMissingError
from tests.service.running import run_dscl

HASH = hashlib.sha256(b"dscl_abc").hexdigest()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def replace(file: Path, *keys: AccessKey) -> None:
    """As an editor does: a new file in the place of the old."""
    beside = file.with_suffix(".new")
    beside.write_text("".join(f"{key.line()}\n" for key in keys))
    beside.replace(file)


def test_keys_are_read_from_lines_and_from_json() -> None:
    lines = f"# ours\n\nshop write {HASH}\n  admin.1\tadmin {HASH.upper()}  \n"
    listed = json.dumps(
        [
            {"name": "shop", "scope": "write", "sha256": HASH},
            {"name": "admin.1", "scope": "admin", "sha256": HASH},
        ]
    )
    digest = hashlib.sha256(b"dscl_abc").digest()
    expected = [AccessKey("shop", "write", digest), AccessKey("admin.1", "admin", digest)]
    assert parse_keys(lines, "it") == parse_keys(listed, "it") == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no key"),
        ("# nobody\n", "no key"),
        ("[]", "no key"),
        (f"shop {HASH}", "line 1 of it has 2 words"),
        (f"ok read {HASH}\nshop root {HASH}", "line 2 of it has scope 'root': expected read"),
        (f"shop,a read {HASH}", "letters, digits"),
        (f"shop read {HASH[:-1]}", "64 hex digits"),
        (f"shop read {HASH[:-1]}g", "64 hex digits"),
        ("[{", "begins like JSON"),
        ('[{"name": "a", "scope": "read"}]', "entry 1 of it"),
        ("[7]", "entry 1 of it"),
        ('[{"name": 1, "scope": "read", "sha256": ""}]', "entry 1 of it is named 1"),
        ('[{"name": "a", "scope": ["read"], "sha256": ""}]', "scope"),
        ('[{"name": "a", "scope": "read", "sha256": 5}]', "64 hex digits"),
    ],
)
def test_keys_that_cannot_be_understood_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(KeysInvalidError, match=re.escape(complaint)):
        parse_keys(text, "it")


def test_a_key_written_where_its_hash_belongs_is_not_repeated() -> None:
    with pytest.raises(KeysInvalidError) as refusal:
        parse_keys("shop read dscl_verysecret", "it")
    assert "verysecret" not in str(refusal.value)


def test_a_new_key_is_found_by_its_hash_alone() -> None:
    key, kept = new_key("shop", "write")
    assert re.fullmatch(r"dscl_[A-Za-z0-9_-]{43}", key)  # 32 bytes
    ring = KeyRing(kept.line())
    assert ring.find(key) == kept and key not in repr(ring.__dict__)
    assert ring.find(key[:-1]) is None and ring.find("") is None
    assert ring.find("dscl_\udcff") is None  # a byte that is no text, as headers may hold


def test_several_keys_come_from_the_environment_and_a_file_together(tmp_path: Path) -> None:
    made = [new_key("one", "read"), new_key("two", "write"), new_key("two", "admin")]
    file = tmp_path / "keys.txt"
    replace(file, made[2][1])
    ring = KeyRing(f"{made[0][1].line()};{made[1][1].line()};", file)
    assert [ring.find(key) for key, _ in made] == [kept for _, kept in made]


def test_a_changed_file_counts_after_a_second(tmp_path: Path) -> None:
    (old, kept_old), (new, kept_new) = new_key("shop", "read"), new_key("shop", "read")
    file, clock = tmp_path / "keys.txt", Clock()
    replace(file, kept_old)
    ring = KeyRing(None, file, clock=clock)
    replace(file, kept_new)
    clock.now += 0.9
    assert (ring.find(old), ring.find(new)) == (kept_old, None)
    clock.now += 0.2
    assert (ring.find(old), ring.find(new)) == (None, kept_new)


@pytest.mark.parametrize("broken", ["shop read", "", None])
def test_a_file_that_breaks_leaves_the_keys_as_they_were(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (key, kept), (later, kept_later) = new_key("shop", "read"), new_key("shop", "admin")
    file, clock = tmp_path / "keys.txt", Clock()
    replace(file, kept)
    ring = KeyRing(None, file, clock=clock)
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    clock.now += 2
    with caplog.at_level(logging.ERROR):
        assert ring.find(key) == kept
    assert str(file) in caplog.text and "stay good" in caplog.text
    replace(file, kept_later)
    clock.now += 2
    assert (ring.find(key), ring.find(later)) == (None, kept_later)


def test_a_file_that_is_broken_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysInvalidError, match="cannot be read"):
        KeyRing(None, tmp_path / "nowhere.txt")
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(KeysInvalidError, match="UTF-8"):
        KeyRing(None, file)


@pytest.mark.parametrize("granted", SCOPES)
@pytest.mark.parametrize("required", SCOPES)
def test_each_scope_includes_those_before_it(granted: str, required: str) -> None:
    allowed = {
        "read": {"read"},
        "write": {"read", "write"},
        "admin": {"read", "write", "admin"},
    }
    state = {"granted": granted, "client": "shop"}
    scope = {"method": "GET", "path": "/items", "state": state}
    if required in allowed[granted]:
        Require(required).check(scope)
    else:
        with pytest.raises(ScopeMissingError, match=f"scope {required}.* shop, has {granted}"):
            Require(required).check(scope)


def test_the_command_prints_a_key_once_and_keeps_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"old read {HASH}")  # no line end
    made = run_dscl("keys", "new", "--name", "shop", "--scope", "write", "--file", file)
    assert made.returncode == 0, made.stderr
    [key] = made.stdout.split()
    assert key not in made.stderr
    first, second = parse_keys(file.read_text(), "it")
    assert first.name == "old"
    assert second == AccessKey("shop", "write", hashlib.sha256(key.encode()).digest())


def test_the_command_makes_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    assert run_dscl("keys", "new", "--name", "shop", "--file", file).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert [key.scope for key in parse_keys(file.read_text(), "it")] == ["read"]


def test_without_a_file_the_command_prints_the_line_to_keep() -> None:
    made = run_dscl("keys", "new", "--name", "shop")
    line = made.stderr.strip().rsplit(": ", 1)[1]
    assert parse_keys(line, "it")[0].sha256 == key_sha256(made.stdout.strip())


@pytest.mark.parametrize("content", ["shop read", '[{"name": "a"}]'])
def test_the_command_leaves_a_file_alone_that_it_cannot_use(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    made = run_dscl("keys", "new", "--name", "shop", "--file", file)
    assert made.returncode == 1 and str(file) in made.stderr and not made.stdout
    assert file.read_text() == content
