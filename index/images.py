"""Image bytes or files → upright RGB arrays.

All defence against hostile or odd images lives here, and only here: training, indexing and the
service read photos through ``decode`` and ``resize``, so they see the same pixels. Nothing here
knows about models, galleries or HTTP.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from index.errors import ImageError, InvalidArgumentError
from index.stores import PhotoPath, read_photo

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Area",
    "ResizeMode",
    "decode",
    "resize",
    "seen_area",
]

#: File name endings that folder scans take for photos. ``decode`` itself goes by content.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
)

#: Pillow decoders that a photo may reach (a phone's MPO comes by way of JPEG). Fewer decoders,
#: smaller attack surface.
FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        AvifImagePlugin.AvifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        GifImagePlugin.GifImageFile,
    )
)

#: A 10 KB PNG can open to 80 megapixels; phone cameras stay below 50.
MAX_PIXELS = 50_000_000

#: Below this side (pixels) there is no car to be seen, and the resize filters lose their footing.
MIN_SIDE = 8

#: What lies behind transparent pixels.
MATTE = (255, 255, 255)

ResizeMode = Literal["squash", "crop", "pad"]


def decode(
    source: bytes | PhotoPath,
    *,
    at_least: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decode one still photo wholly.

    Args:
        source: the encoded image, or the file that holds it. The content decides the format; the
            file's name does not matter.
        at_least: (height, width) that the caller will shrink to. A JPEG may then be decoded at
            1/2, 1/4 or 1/8 of its size, though never to less than twice ``at_least``: several times
            faster on camera photos.
        max_pixels: photos with more pixels are refused before any is decoded.

    Returns:
        uint8 [h, w, 3], RGB, upright (EXIF orientation applied), transparency on white.

    Raises:
        ImageError: with code ``image_empty``, ``image_unreadable`` (not an image, or a format that
            is not accepted), ``image_truncated``, ``image_too_small``, ``image_too_large``,
            ``image_animated`` or ``image_unsupported`` (samples that have no RGB meaning).
        StoreError: the store that holds the file does not answer.
    """
    name, data = _read(source)
    if not data:
        raise ImageError("image_empty", f"{name} is empty (0 bytes): send the photo's own bytes.")
    with warnings.catch_warnings():
        # Sizes are checked below, before a pixel is decoded; Pillow's own limit only warns.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(name, image, max_pixels)
                if at_least is not None:
                    _draft(image, at_least)
                return _pixels(name, image)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError("image_unreadable", _unidentified(name, data)) from None
        except Image.DecompressionBombError as error:
            raise ImageError(
                "image_too_large",
                f"{name} is too large to decode ({error}): the limit is "
                f"{max_pixels / 1e6:.0f} megapixels. Scale it down.",
            ) from error
        # Pillow's decoders raise errors of a dozen types on broken data (OSError, SyntaxError,
        # ValueError, struct.error, …); to a user all of them mean the same.
        except Exception as error:
            raise ImageError(
                "image_truncated",
                f"{name} is damaged or cut off ({str(error) or type(error).__name__}): "
                "copy or export the photo again.",
            ) from error


def resize(
    image: NDArray[np.uint8], height: int, width: int, mode: ResizeMode
) -> NDArray[np.uint8]:
    """Resize ``image`` to (height, width) with the antialiased bilinear filter.

    Args:
        image: uint8 [h, w, 3].
        height: target height in pixels.
        width: target width in pixels.
        mode: ``squash`` changes the aspect ratio; ``crop`` keeps it and cuts the longer side
            evenly at both ends; ``pad`` keeps it and fills the shorter side with mid grey.

    Returns:
        uint8 [height, width, 3].
    """
    if mode not in get_args(ResizeMode):
        raise InvalidArgumentError(
            f"resize mode {mode!r} is unknown: use {', '.join(get_args(ResizeMode))}."
        )
    source = Image.fromarray(image)
    size, bilinear = (width, height), Image.Resampling.BILINEAR
    if mode == "crop":
        resized = ImageOps.fit(source, size, bilinear)
    elif mode == "pad":
        resized = ImageOps.pad(source, size, bilinear, color=(128, 128, 128))
    else:
        resized = source.resize(size, bilinear)
    return np.asarray(resized)


class Area(NamedTuple):
    """A rectangle in a photo, as fractions of its width and height from the upper left corner.

    Outside 0 … 1 where it reaches beyond the photo.
    """

    left: float
    top: float
    right: float
    bottom: float


def seen_area(
    source_height: int, source_width: int, height: int, width: int, mode: ResizeMode
) -> Area:
    """The part of a photo that fills the picture that ``resize`` makes of it.

    With ``crop`` less than the whole, with ``pad`` more: the photo and the grey beside it.
    """
    if mode == "squash":
        return Area(0, 0, 1, 1)
    scales = (height / source_height, width / source_width)
    scale = max(scales) if mode == "crop" else min(scales)
    # Both are centred.
    tall, wide = (height / (source_height * scale), width / (source_width * scale))
    return Area((1 - wide) / 2, (1 - tall) / 2, (1 + wide) / 2, (1 + tall) / 2)


def _read(source: bytes | PhotoPath) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "the file", source
    try:
        return str(source), read_photo(source)
    except OSError as error:
        raise ImageError(
            "image_missing", f"{source} cannot be read: {error.strerror or error}."
        ) from error


def _check_header(name: str, image: Image.Image, max_pixels: int) -> None:
    """Refuse by what the header says, before memory is spent on pixels."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            "image_too_large",
            f"{name} has {width} × {height} pixels ({width * height / 1e6:.0f} megapixels): the "
            f"limit is {max_pixels / 1e6:.0f} megapixels. Scale it down.",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            "image_too_small",
            f"{name} has {width} × {height} pixels: each side needs at least {MIN_SIDE}.",
        )
    # Phones write a photo and its preview into one MPO file: the first frame is the photo.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(
            "image_animated",
            f"{name} holds {frames} frames: send one still picture.",
        )


def _draft(image: Image.Image, at_least: tuple[int, int]) -> None:
    """Let the JPEG decoder skip detail that the resize would throw away."""
    # The photo may yet be turned by a quarter, so ask for the longer side both ways. Twice the
    # target keeps the antialiased resize in charge of what the pixels look like.
    side = 2 * max(at_least)
    image.draft(None, (side, side))


def _pixels(name: str, image: Image.Image) -> NDArray[np.uint8]:
    """Decode, turn upright and convert to RGB."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        samples = np.asarray(upright).astype(np.int64)
        grey = np.clip(samples >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode == "F":
        raise ImageError(
            "image_unsupported",
            f"{name} has floating-point samples: save it with 8 bits a channel.",
        )
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        matte = Image.new("RGBA", layered.size, (*MATTE, 255))
        upright = Image.alpha_composite(matte, layered)
    return np.array(upright.convert("RGB"))


def _unidentified(name: str, data: bytes) -> str:
    accepted = "JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return f"{name} is a HEIC photo, which is not accepted: export it as JPEG ({accepted})."
    return f"{name} is no picture of a known format: send {accepted}."
