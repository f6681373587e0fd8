"""Access keys: how they are made, written down and found again.

Only the SHA-256 of a key is kept anywhere. What a request may do with its key is decided in
``service.access`` and ``service.security``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import DsclError

__all__ = [
    "SCOPES",
    "AccessKey",
    "KeyRing",
    "KeysInvalidError",
    "key_sha256",
    "new_key",
    "parse_keys",
]

logger = logging.getLogger(__name__)

#: Each scope includes those before it.
SCOPES = ("read", "write", "admin")

#: What a key begins with, so that scanners for leaked secrets know it.
PREFIX = "dscl_"

#: Bytes of chance in a key: beyond guessing, so a plain hash of it may be kept.
KEY_BYTES = 32

#: Names of keys stand in logs, one word a name.
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: Seconds between two looks at the file of keys.
LOOK_EVERY_S = 1.0


class KeysInvalidError(DsclError):
    """Keys in a file or in the environment that cannot be understood."""

    code = "keys_invalid"


@dataclass(frozen=True)
class AccessKey:
    """A key as the service knows it."""

    name: str  #: whose it is; several keys may share a name, as while one replaces another
    scope: str  #: one of ``SCOPES``
    sha256: bytes  #: of the key itself, 32 bytes

    def line(self) -> str:
        """The key as a line of a file of keys."""
        return f"{self.name} {self.scope} {self.sha256.hex()}"


def key_sha256(key: str) -> bytes:
    """The SHA-256 by which a key is known, 32 bytes."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_key(name: str, scope: str) -> tuple[str, AccessKey]:
    """A new key, and what to keep of it.

    Raises:
        KeysInvalidError: a name or scope that a file of keys could not hold.
    """
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, _access_key(name, scope, key_sha256(key).hex(), "the new key")


def parse_keys(text: str, origin: str) -> list[AccessKey]:
    """The keys in ``text``.

    Args:
        text: lines ``name scope sha256``, where empty lines and those that begin with ``#`` do not
            count; or a JSON list of objects with these three.
        origin: what a message calls the text.

    Raises:
        KeysInvalidError: it is neither, a scope is none of ``SCOPES``, or there is no key in it.
    """
    if text.lstrip().startswith("["):
        keys = _keys_of_json(text, origin)
    else:
        keys = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            words = line.split()
            if len(words) != 3:
                raise KeysInvalidError(
                    f"line {number} of {origin} has {len(words)} words: expected `name scope "
                    "sha256`, as `dscl keys new` prints it."
                )
            name, scope, sha256 = words
            keys.append(_access_key(name, scope, sha256, f"line {number} of {origin}"))
    if not keys:
        raise KeysInvalidError(
            f"{origin} has no key: make one by `dscl keys new`, or leave the setting out."
        )
    return keys


def _keys_of_json(text: str, origin: str) -> list[AccessKey]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise KeysInvalidError(f"{origin} begins like JSON and is none: {error}.") from error
    keys = []
    for number, entry in enumerate(entries, 1):
        where = f"entry {number} of {origin}"
        if not isinstance(entry, dict) or entry.keys() != {"name", "scope", "sha256"}:
            raise KeysInvalidError(
                f"{where} is not an object with `name`, `scope` and `sha256` and nothing more."
            )
        keys.append(_access_key(entry["name"], entry["scope"], entry["sha256"], where))
    return keys


def _access_key(name: Any, scope: Any, sha256: Any, where: str) -> AccessKey:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise KeysInvalidError(
            f"{where} is named {name!r}: expected 1 to 64 letters, digits, dots, dashes and "
            "underscores."
        )
    if scope not in SCOPES:
        raise KeysInvalidError(f"{where} has scope {scope!r}: expected {', '.join(SCOPES)}.")
    # Not shown: where the key itself was put by mistake, it would be in the log from now on.
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise KeysInvalidError(
            f"{where} has no SHA-256 where one belongs: expected 64 hex digits, as `dscl keys new` "
            "prints them. Never write the key itself there."
        )
    return AccessKey(name, scope, bytes.fromhex(sha256))


class KeyRing:
    """The keys that are good now: those given at the start, and those in a file that may change.

    A changed file counts within a second. While it cannot be used, the keys read from it before
    stay good, and the log says so.
    """

    def __init__(
        self,
        given: str | None = None,
        file: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the keys.

        Args:
            given: keys that stay, as ``parse_keys`` reads them, with ``;`` for line ends.
            file: a file of keys.
            clock: seconds that only grow.

        Raises:
            KeysInvalidError: keys that cannot be understood, or a file that cannot be read.
        """
        self._given = parse_keys(given.replace(";", "\n"), "DSCL_KEYS") if given else []
        self._file = file
        self._clock = clock
        self._looked = clock()
        self._mark = _mark(file)
        self._keys = [*self._given, *(_read(file) if file else [])]

    def __bool__(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self._keys)

    def find(self, key: str) -> AccessKey | None:
        """The key that ``key`` is, or None; the time it takes does not tell how near it was."""
        self._refresh()
        sha256 = key_sha256(key)
        found = None
        for each in self._keys:  # all of them, always
            if hmac.compare_digest(each.sha256, sha256):
                found = each
        return found

    def _refresh(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        mark = _mark(self._file)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._keys = [*self._given, *_read(self._file)]
        except KeysInvalidError as error:
            logger.error("%s The %d keys known before stay good.", error, len(self._keys))
        else:
            logger.warning("read %s again: %d keys are good now", self._file, len(self._keys))


def _mark(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does; None while it is not there."""
    if file is None:
        return None
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(file: Path) -> list[AccessKey]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeysInvalidError(f"the file of keys {file} cannot be read: {reason}.") from error
    return parse_keys(text, str(file))
