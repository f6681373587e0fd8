"""Where photos lie: a folder of this machine, or a store of objects behind a URL (``s3://…``).

A place on this machine is a ``pathlib.Path``; any other is a ``UPath`` of universal_pathlib, over
fsspec. What reads a photo that may lie in either goes through ``read_photo`` and ``stamp_of``: a
``UPath`` can raise anything that its library does, and they give two outcomes names: the photo is
gone (FileNotFoundError), or its store does not answer (StoreError).

Keys and endpoint come from the environment, as the library reads it, and never stand in a URL: for
``s3://`` AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or a profile, or the machine's role) and
AWS_ENDPOINT_URL, in whose place FSSPEC_S3_ENDPOINT_URL does too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

from index.errors import DsclError, ImageError, InvalidArgumentError, StoreError

if TYPE_CHECKING:
    from typing_extensions import TypeIs
    from upath import UPath

__all__ = [
    "MAX_PHOTO_BYTES",
    "PhotoPath",
    "is_remote",
    "is_there",
    "modified_ns",
    "open_store",
    "place_named",
    "reaching",
    "read_photo",
    "stamp_of",
]

#: A photo, or the folder of photos: on this machine, or in a store.
PhotoPath: TypeAlias = "Path | UPath"

#: A photo of a store is read into memory whole; no upload comes near this.
MAX_PHOTO_BYTES = 100_000_000

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://")

#: What an S3 client does by itself. A store that hangs holds a thread for connect_timeout or
#: read_timeout, times S3_TRIES.
S3_CONFIG = {"connect_timeout": 5, "read_timeout": 15, "retries": {"total_max_attempts": 1}}
S3_TRIES = 2


def open_store(where: str | Path) -> PhotoPath:
    """The place for photos that ``where`` names, after a look whether it can be reached.

    Nothing is made: a folder, or what a store has for one, comes with its first photo.

    Args:
        where: a folder, or a URL: ``s3://bucket``, ``s3://bucket/cars``, ``file:///srv/photos``;
            any scheme that fsspec knows.

    Raises:
        InvalidArgumentError: a scheme that there is not, or whose package is not installed; a URL
            with a password or without a bucket; a file where a folder is expected.
        StoreError: no such bucket, access denied, or no answer.
    """
    place = place_named(str(where), Path())
    if not is_remote(place):
        if place.exists() and not place.is_dir():
            raise InvalidArgumentError(f"{place} is no folder: name one for the photos.")
        return place
    with reaching(place):
        if place.protocol in ("s3", "s3a"):
            _look_into_bucket(place)
        else:
            with suppress(FileNotFoundError):  # it comes with its first photo
                place.fs.ls(place.path, detail=False)
    return place


def place_named(name: str, base: Path) -> PhotoPath:
    """The place that a catalog or an export names: a URL, or a path, relative to ``base`` or not.

    Asks no store anything.

    Raises:
        InvalidArgumentError: as ``open_store``.
    """
    found = URL.match(name)
    if found is None:
        return base.absolute() / name
    scheme = found[1].lower()
    if scheme in ("file", "local"):
        return Path(unquote(urlsplit(name).path))
    return _remote(scheme, name[found.end() :].rstrip("/"), os.getpid())


def is_remote(place: PhotoPath) -> TypeIs[UPath]:
    """Whether a photo or folder lies in a store, rather than on this machine."""
    return not isinstance(place, Path)


def read_photo(photo: PhotoPath, *, max_bytes: int = MAX_PHOTO_BYTES) -> bytes:
    """The bytes of a photo. Waits for the store, so call it on a thread.

    Args:
        photo: where it lies.
        max_bytes: for one in a store; what is larger is refused, and not read further.

    Raises:
        OSError: it is not there, or its folder cannot be read.
        StoreError: its store does not answer, or denies access.
        ImageError: (``image_too_large``) more than ``max_bytes``.
    """
    if not is_remote(photo):
        return photo.read_bytes()
    # Asked for first, rather than a range that ends there: of an empty object S3 gives no range.
    size, _ = stamp_of(photo)
    if size > max_bytes:
        raise ImageError(
            "image_too_large",
            f"{photo} has {size:,} bytes, and {max_bytes:,} is the most that a photo of a store "
            "may have: it was not put there by this service. Take it away.",
        )
    with reaching(photo):
        data: bytes = photo.fs.cat_file(photo.path)
    return data


def stamp_of(photo: PhotoPath) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns of a photo. Raises as ``read_photo``."""
    if not is_remote(photo):
        status = photo.stat()
        return status.st_size, status.st_mtime_ns
    with reaching(photo):
        info = photo.fs.info(photo.path)
    if info["type"] != "file":
        raise FileNotFoundError(str(photo))
    return int(info["size"]), modified_ns(info) or 0


def is_there(photo: PhotoPath) -> bool:
    """Whether there is such a file. Raises StoreError."""
    if not is_remote(photo):
        return photo.is_file()
    try:
        stamp_of(photo)
    except FileNotFoundError:
        return False
    return True


def modified_ns(info: Mapping[str, Any]) -> int | None:
    """When an object was last changed, by what fsspec tells about it; None if it does not tell."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        when = info.get(name)
        if isinstance(when, str):
            try:
                when = datetime.fromisoformat(when)
            except ValueError:
                continue
        if isinstance(when, datetime):
            when = when.timestamp()
        if isinstance(when, int | float):
            # Microseconds are what a float of today's seconds holds exactly.
            return round(when * 1e6) * 1000
    return None


@contextmanager
def reaching(place: PhotoPath) -> Iterator[None]:
    """Turn whatever a store's library raises inside into StoreError.

    FileNotFoundError and errors of ours pass, and so does everything for a place on this machine.
    """
    try:
        yield
    except (FileNotFoundError, DsclError):
        raise
    except PermissionError as error:
        if not is_remote(place):
            raise
        raise StoreError(
            f"{_bucket(place)} denies access: check the keys in the environment, and that they may "
            "list, read, write and delete there."
        ) from error
    # The libraries raise errors of their own that share no base: of HTTP, of names that do not
    # resolve, of missing keys. Their words stay out of the message: they may quote a request.
    except Exception as error:
        if not is_remote(place):
            raise
        raise StoreError(
            f"{_bucket(place)} cannot be used ({type(error).__name__}): check that the store runs, "
            f"and that the environment has its keys and its endpoint{_endpoint_hint(place)}."
        ) from error


def _look_into_bucket(place: UPath) -> None:
    """One listing of at most one object: whether there is such a bucket, and we may look inside."""
    bucket, _, key = place.path.strip("/").partition("/")
    prefix = f"{key}/" if key else ""
    try:
        place.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no bucket {bucket} for {place}: make it, or name another one"
            f"{_endpoint_hint(place)}."
        ) from error


@lru_cache(maxsize=64)
def _remote(scheme: str, path: str, pid: int) -> UPath:
    """The place for a URL. Once a process: it holds the client, which no fork may share."""
    url = f"{scheme}://{path}"
    try:
        from fsspec import get_filesystem_class
        from upath import UPath
    except ModuleNotFoundError as error:
        raise _not_installed(scheme, "universal_pathlib") from error
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise _not_installed(scheme, str(error.name or error)) from error
    except ValueError as error:
        raise InvalidArgumentError(
            f"photos cannot be kept at {scheme}://…: there is no such scheme. Name a folder, or a "
            "URL such as s3://bucket/cars."
        ) from error
    address = urlsplit(url)
    if address.password is not None or (address.username and scheme in ("s3", "s3a")):
        raise InvalidArgumentError(  # which does not repeat it
            f"the {scheme}:// URL for photos holds a name or password: leave it out, and set it in "
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
        )
    if not address.netloc and scheme != "memory":
        raise InvalidArgumentError(
            f"{url} names no bucket: expected {scheme}://bucket or {scheme}://bucket/folder."
        )
    if scheme not in ("s3", "s3a"):
        place = UPath(url)
        with reaching(place):
            _ = place.fs
        return place
    # Listings are not kept: other processes write to the same bucket.
    place = UPath(url, use_listings_cache=False, config_kwargs=S3_CONFIG)
    with reaching(place):
        place.fs.retries = S3_TRIES
    return place


def _not_installed(scheme: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"photos at {scheme}://… need a package that is not installed ({what}): "
        "pip install 'dscl-retrieval[s3]'"
        + ("." if scheme in ("s3", "s3a") else f", and fsspec's package for {scheme}.")
    )


def _bucket(place: UPath) -> str:
    return f"the photo store {place.protocol}://{place.path.strip('/').partition('/')[0]}"


def _endpoint_hint(place: UPath) -> str:
    return " (AWS_ENDPOINT_URL)" if place.protocol in ("s3", "s3a") else ""
