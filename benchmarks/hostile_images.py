"""Images that were never meant to be decoded: damaged, lying, exploding, two things at once.

Image ``n`` of a seed is always the same, so that whatever it broke can be looked at alone.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

__all__ = ["ACCEPTED", "HostileImage", "bombs", "hostile_image", "plain_images"]

#: Formats that the service reads.
ACCEPTED = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")

MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "I", "F", "YCbCr", "LAB", "HSV")
WIDTH, HEIGHT = 96, 72

#: Sides that headers claim.
SIDES = (0, 1, 2, 7, 8, 255, 4096, 7071, 16_384, 30_000, 65_535, 2**31 - 1, 2**32 - 1)

#: First bytes of formats, some of which Pillow reads and cannot write.
MAGIC = (
    b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"MM\0*",
    b"RIFF\xff\xff\xff\x7fWEBPVP8 ", b"RIFF\x24\0\0\0WEBPVP8X", b"\0\0\0\x1cftypavif",
    b"\0\0\0\x18ftypheic", b"8BPS\0\x01", b"\x0a\x05\x01\x08", b"P6\n", b"P7\n", b"%!PS-Adobe",
    b"%PDF-1.7", b"\0\0\x01\0\x01\0", b"SIMPLE  =", b"\x01\xda\x01\x01", b"DDS ", b"FLIF",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"qoif", b"\x8aMNG", b"icns", b"<svg",
)  # fmt: skip


@dataclass(frozen=True)
class HostileImage:
    """What is sent, and how it was made."""

    n: int
    kind: str
    data: bytes


def hostile_image(seed: int, n: int) -> HostileImage:
    """Image ``n`` of a seed."""
    rng = np.random.default_rng([seed, n])
    names, weights = zip(*((kind, weight) for kind, (_, weight) in KINDS.items()), strict=True)
    kind = names[rng.choice(len(names), p=np.array(weights) / sum(weights))]
    return HostileImage(n, kind, KINDS[kind][0](rng))


@cache
def plain_images() -> dict[str, bytes]:
    """A picture in every format and mode that Pillow writes: name → encoded."""
    Image.init()
    rng = np.random.default_rng(0)
    blocks = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    picture = blocks.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    found: dict[str, bytes] = {}
    for form in sorted(Image.SAVE):
        for mode in MODES:
            # Savers refuse what their format cannot hold in a dozen ways.
            try:
                found[f"{form} {mode}"] = encoded(converted(picture, mode), form)
            except Exception:
                continue
    exif = Image.Exif()
    for orientation in range(9):
        exif[0x0112] = orientation
        found[f"JPEG turned {orientation}"] = encoded(picture, "JPEG", exif=exif)
    found["JPEG progressive"] = encoded(picture, "JPEG", progressive=True, subsampling=0)
    found["JPEG profile"] = encoded(picture, "JPEG", icc_profile=bytes(range(256)) * 40)
    found["TIFF deflate"] = encoded(picture, "TIFF", compression="tiff_adobe_deflate")
    found["TIFF lzw"] = encoded(picture, "TIFF", compression="tiff_lzw")
    for form in ("GIF", "TIFF", "WEBP", "PNG", "AVIF"):
        found[f"{form} frames"] = encoded(
            picture, form, save_all=True, append_images=[picture.rotate(90), picture.rotate(180)]
        )
    return found


def converted(picture: Image.Image, mode: str) -> Image.Image:
    if mode in ("I;16", "F", "I"):
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(grey if mode == "I;16" else grey.astype(np.float32)).convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", picture.size, picture.tobytes())
    return picture.convert(mode)


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def some(rng: np.random.Generator, *, accepted: bool = True) -> bytes:
    """One of the plain pictures; by default of a format that gets as far as a decoder."""
    names = [name for name in plain_images() if not accepted or name.split()[0] in ACCEPTED]
    return plain_images()[names[rng.integers(len(names))]]


# Kinds


def untouched(rng: np.random.Generator) -> bytes:
    return some(rng, accepted=False)


def flipped(rng: np.random.Generator) -> bytes:
    """A few bits changed, half of the time near the head, where the structure is."""
    data = bytearray(some(rng))
    reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
    for place in rng.integers(0, reach, rng.integers(1, 64)):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut(rng: np.random.Generator) -> bytes:
    data = some(rng)
    return data[: rng.integers(len(data))]


def spliced(rng: np.random.Generator) -> bytes:
    """A stretch doubled, blanked, dropped, or replaced by one of another picture."""
    data, other = some(rng), some(rng)
    first, last = sorted(rng.integers(0, len(data), 2).tolist())
    begin, end = sorted(rng.integers(0, len(other), 2).tolist())
    middle = (data[first:last] * 2, bytes(last - first), b"", other[begin:end])[rng.integers(4)]
    return data[:first] + middle + data[last:]


def noise(rng: np.random.Generator) -> bytes:
    """The right first bytes, and then anything."""
    return MAGIC[rng.integers(len(MAGIC))] + rng.bytes(int(rng.integers(0, 4000)))


def lying(rng: np.random.Generator) -> bytes:
    """Another size in the header than there is."""
    width, height = (SIDES[place] for place in rng.integers(0, len(SIDES), 2))
    plain = plain_images()
    form = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")[rng.integers(6)]
    data = bytearray(plain[f"{form} RGB" if form != "GIF" else "GIF P"])
    short = (min(width, 0xFFFF), min(height, 0xFFFF))
    if form == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif form == "JPEG":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", *reversed(short))
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", *short)
    elif form == "BMP":
        data[18:26] = struct.pack("<II", width, height)
    elif form == "WEBP":
        data[26:30] = struct.pack("<HH", *short)
    else:
        tags = struct.unpack_from("<I", data, 4)[0]
        for entry in range(struct.unpack_from("<H", data, tags)[0]):
            place = tags + 2 + 12 * entry
            tag = struct.unpack_from("<H", data, place)[0]
            if tag in (256, 257):
                struct.pack_into("<HHII", data, place, tag, 4, 1, (width, height)[tag - 256])
            elif rng.random() < 0.2:
                struct.pack_into("<I", data, place + 4, SIDES[rng.integers(len(SIDES))])
    return bytes(data)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, chunk(b"IEND", b"")])


@cache
def zeros(megabytes: int) -> bytes:
    """So many megabytes of zeros in a thousandth of the space, as one zlib stream."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    # After a full flush a block stands alone, so it can be repeated instead of packed anew.
    block = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.adler32(bytes(1_000_000 * megabytes))
    return b"\x78\xda" + block * megabytes + packer.flush() + struct.pack(">I", checksum)


@cache
def bombs() -> tuple[bytes, ...]:
    """Small files that unfold to much, within the limit on pixels and beyond it."""
    blank = chunk(b"IDAT", zlib.compress(bytes(1000)))
    solid = Image.new("RGB", (7000, 7000))
    frames = [Image.new("L", (64, 64), n % 256) for n in range(500)]
    return (
        png(30_000, 30_000, chunk(b"IDAT", zeros(100))),
        png(2**31 - 1, 2**31 - 1, blank),
        png(7000, 7000, chunk(b"IDAT", zeros(148))),
        png(7000, 7000, chunk(b"IDAT", zeros(197)), colour=6),
        png(64, 64, chunk(b"zTXt", b"a\0\0" + zeros(100)), blank),
        png(64, 64, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(100)), blank),
        png(64, 64, chunk(b"iCCP", b"a\0\0" + zeros(100)), blank),
        png(64, 64, *[chunk(b"tEXt", b"a\0" + bytes(10_000))] * 50, blank),
        encoded(solid, "JPEG", quality=1),
        encoded(solid, "TIFF", compression="tiff_adobe_deflate"),
        encoded(solid.resize((16_383, 3000)), "WEBP", quality=0),
        encoded(solid.resize((65_000, 760)), "GIF"),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
    )


def bomb(rng: np.random.Generator) -> bytes:
    return bombs()[rng.integers(len(bombs()))]


@cache
def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../../evil.py", "import os\n")
    return buffer.getvalue()


def polyglot(rng: np.random.Generator) -> bytes:
    """A picture that is something else as well."""
    picture, other = some(rng), some(rng)
    page = b"<html><script>alert(1)</script></html>"
    return (
        picture + archive(),
        archive() + picture,
        picture + other,
        b"%PDF-1.7\n" + picture,
        b"GIF89a/*" + page + b"*/" + picture,
        picture + page,
        b"\xff\xd8\xff\xfe" + struct.pack(">H", 2 + len(page)) + page + picture[2:],
        b"#!/bin/sh\n" + picture,
        picture[:20] + page + picture[20:],
    )[rng.integers(9)]


#: Kind → how it is made, and its share of all.
KINDS: dict[str, tuple[Callable[[np.random.Generator], bytes], float]] = {
    "untouched": (untouched, 10),
    "flipped": (flipped, 30),
    "cut": (cut, 15),
    "spliced": (spliced, 15),
    "noise": (noise, 10),
    "lying": (lying, 11),
    "bomb": (bomb, 1),
    "polyglot": (polyglot, 8),
}
