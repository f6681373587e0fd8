"""Where a gallery is: a folder, or a collection of a Milvus server.

    galleries/cars
    milvus://127.0.0.1:19530/cars
    milvus://user:password@milvus.example:19530/cars?store=s3://photos/cars
    milvus:///data/cars.db/cars        Milvus Lite: a file of this machine, one process at a time

``milvuss://`` speaks TLS. After ``?``: ``store``, where the photos that come over the network are
kept (a folder or a URL of fsspec's; default: none are taken); ``database``, of the server;
``consistency``, of searches; ``timeout``, seconds until a server that does not answer is given up.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from index.errors import InvalidArgumentError

__all__ = ["Consistency", "GalleryAddress", "MilvusAddress", "parse_address"]

SCHEMES = ("milvus", "milvuss")
DEFAULT_PORT = 19530

#: Where name and password are read from if the address has none, as ``user:password`` or a token.
TOKEN_VARIABLE = "DSCL_MILVUS_TOKEN"

#: What Milvus accepts as the name of a collection, less room for what is put behind it.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")

#: "Session": a process finds what it has changed itself at once, what others have changed soon.
#: "Strong": all of it at once, for some 0.2 s a search on a cluster.
Consistency = Literal["Session", "Strong", "Bounded", "Eventually"]

SETTINGS = ("store", "database", "consistency", "timeout")


@dataclass(frozen=True, kw_only=True)
class MilvusAddress:
    """A collection of a Milvus server, or of a file of Milvus Lite. Shown without its password."""

    name: str  #: of the gallery: an alias in Milvus
    host: str = ""  #: "" for Milvus Lite
    port: int = DEFAULT_PORT
    file: str = ""  #: of Milvus Lite
    tls: bool = False
    token: str = ""
    database: str = ""
    store: str = ""  #: of photos; "" for the one that the gallery remembers
    consistency: Consistency = "Session"
    timeout_s: float = 10.0

    @property
    def uri(self) -> str:
        """What pymilvus connects to."""
        if self.file:
            return self.file
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address, password included: what ``parse_address`` reads."""
        settings = {
            "store": self.store,
            "database": self.database,
            "consistency": self.consistency,
            "timeout": f"{self.timeout_s:g}",
        }
        query = urlencode({name: value for name, value in settings.items() if value})
        who = ":".join(quote(each, safe="") for each in self.token.split(":", 1))
        who += "@" * bool(self.token)
        scheme, _, rest = str(self).partition("://")
        return f"{scheme}://{who}{rest}?{query}"

    def __str__(self) -> str:
        if self.file:
            return f"milvus://{quote(self.file)}/{self.name}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"milvus{'s' * self.tls}://{host}:{self.port}/{self.name}"

    def __repr__(self) -> str:
        return f"<{self}>"  # a password is in no log and no traceback


GalleryAddress = Path | MilvusAddress


def parse_address(text: str | Path | MilvusAddress) -> GalleryAddress:
    """Read what a user calls a gallery.

    Raises:
        InvalidArgumentError: a URL that is none of Milvus, or one that lacks or misspells a part.
    """
    if isinstance(text, MilvusAddress | Path):
        return text
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if not scheme:
        return Path(text)
    if scheme not in SCHEMES:
        raise InvalidArgumentError(
            f"a gallery at {scheme}:// is not known: expected a folder, or "
            "milvus://HOST:PORT/NAME for a gallery on Milvus."
        )
    try:
        return _parse_milvus(urlsplit(text))
    except InvalidArgumentError:
        raise
    except ValueError:  # its text may hold a piece of a password
        raise InvalidArgumentError(
            f"the gallery's address cannot be read, for its port or its brackets; {_form(scheme)}."
        ) from None


def _parse_milvus(parts: SplitResult) -> MilvusAddress:
    form = _form(parts.scheme)
    port = parts.port or DEFAULT_PORT
    folder, _, name = unquote(parts.path).rstrip("/").rpartition("/")
    if not NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"the gallery's name is {name!r}: expected letters, digits and _, not a digit first; "
            f"{form}."
        )
    if not parts.hostname and not folder.endswith(".db"):
        raise InvalidArgumentError(f"the gallery's address names no host and no file; {form}.")
    if parts.hostname and folder:
        raise InvalidArgumentError(
            f"the gallery's address has a folder before its name; {form}. A database is named by "
            "?database=."
        )
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := set(settings) - set(SETTINGS):
        raise InvalidArgumentError(
            f"the gallery's address sets {', '.join(sorted(unknown))}: expected of "
            f"{', '.join(SETTINGS)}."
        )
    token = os.environ.get(TOKEN_VARIABLE, "")
    if parts.username:
        given = [parts.username] if parts.password is None else [parts.username, parts.password]
        token = ":".join(map(unquote, given))
    return MilvusAddress(
        name=name,
        host=parts.hostname or "",
        port=port,
        file="" if parts.hostname else folder,
        tls=parts.scheme.lower() == "milvuss",
        token=token,
        database=settings.get("database", ""),
        store=settings.get("store", ""),
        consistency=_consistency(settings.get("consistency", "Session")),
        timeout_s=_timeout(settings.get("timeout", "10")),
    )


def _form(scheme: str) -> str:
    return (
        f"expected {scheme}://HOST:PORT/NAME, or milvus:///FILE.db/NAME for Milvus Lite. In a name "
        "and password, %XX stands for each of : / ? # @"
    )


def _consistency(text: str) -> Consistency:
    for level in get_args(Consistency):
        if text.lower() == level.lower():
            found: Consistency = level
            return found
    raise InvalidArgumentError(
        f"consistency is {text!r}: expected one of {', '.join(get_args(Consistency))}."
    )


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise InvalidArgumentError(f"timeout is {text!r}: expected seconds, above 0, up to 3600.")
    return seconds
