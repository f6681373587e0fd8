"""Photos for tests: plausible ones, and every kind of broken one."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, *, height: int = 48, width: int = 64) -> Image.Image:
    """A smooth random picture, so that encoding and resizing hardly change it."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The bytes of ``image`` as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_photo(path: Path, seed: int) -> Path:
    """A JPEG with the picture of this seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed), quality=95))
    return path


def write_class_folders(root: Path, *, classes: int = 3, per_class: int = 4) -> Path:
    """``root/car-0/0.jpg`` …, every photo different."""
    for label in range(classes):
        for number in range(per_class):
            write_photo(root / f"car-{label}" / f"{number}.jpg", 100 * label + number)
    return root


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a huge size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def animated_gif() -> bytes:
    frames = [picture(seed) for seed in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


#: name → (bytes, the code that decoding must give)
BROKEN = {
    "empty": (b"", "image_empty"),
    "text": (b"this is no image, whatever its name says", "image_unreadable"),
    "truncated": (encoded(picture(0))[:-200], "image_truncated"),
    "truncated-png": (encoded(picture(0), "PNG")[:-200], "image_truncated"),
    "one-pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "image_too_small"),
    "bomb": (png_claiming(30_000, 30_000), "image_too_large"),
    "animated": (animated_gif(), "image_animated"),
    "float": (encoded(Image.new("F", (32, 32)), "TIFF"), "image_unsupported"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image_unreadable"),
}
