"""What kind of image some bytes are, by their beginning: file names may say anything."""

from __future__ import annotations

__all__ = ["HEAD_BYTES", "media_type", "suffix_of"]

#: Bytes that ``media_type`` looks at.
HEAD_BYTES = 12

UNKNOWN = "application/octet-stream"

SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}

SUFFIXES = {
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/tiff": ".tiff",
    "image/webp": ".webp",
}


def media_type(head: bytes) -> str:
    """The media type of an image that begins with ``head``; application/octet-stream if unknown."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    for signature, name in SIGNATURES.items():
        if head.startswith(signature):
            return name
    return UNKNOWN


def suffix_of(head: bytes) -> str:
    """The file name ending for an image that begins with ``head``; empty if unknown."""
    return SUFFIXES.get(media_type(head), "")
