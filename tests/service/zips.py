"""Zips for the tests, good and bad."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from PIL import Image


def photo_bytes(seed: int, form: str = "JPEG") -> bytes:
    """A photo of coarse blocks, another one for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((96, 72), Image.Resampling.BICUBIC).save(file, form)
    return file.getvalue()


def zip_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with these files by their names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def zip_with_link(name: str, target: str) -> bytes:
    """A zip with a symbolic link."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    return file.getvalue()


@lru_cache
def large_photo() -> bytes:
    """A photo that takes a core a good part of a second to decode, in few bytes."""
    file = io.BytesIO()
    Image.new("RGB", (3000, 2500), (200, 30, 30)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def slow_photos(count: int, first: int = 0) -> dict[str, bytes]:
    """Such photos by name, each another one: what follows the picture is not decoded."""
    return {f"slow-{i}.png": large_photo() + bytes([i]) for i in range(first, first + count)}
