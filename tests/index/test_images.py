from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from index.errors import ImageError, InvalidArgumentError
from index.images import decode, resize
from tests.photos import BROKEN, encoded, picture


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_refused_with_its_code(name):
    data, code = BROKEN[name]
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == code
    assert len(str(caught.value)) > 30  # a sentence, not a class name


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"broken\.jpg is empty"):
        decode(path)
    with pytest.raises(ImageError, match=r"gone\.jpg cannot be read"):
        decode(tmp_path / "gone.jpg")


def test_heic_is_named_as_such():
    with pytest.raises(ImageError, match="HEIC"):
        decode(BROKEN["heic"][0])


def test_the_content_decides_the_format_not_the_name(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(picture(1), "PNG"))
    assert np.array_equal(decode(path), np.asarray(picture(1)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = picture(2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    upright = decode(data)
    assert np.array_equal(upright, expected)
    assert upright.shape[:2] == ((64, 48) if orientation >= 5 else (48, 64))


def test_cmyk_comes_out_in_its_colours():
    red = Image.new("RGB", (32, 32), (220, 30, 30)).convert("CMYK")
    assert np.abs(decode(encoded(red)).mean(axis=(0, 1)) - [220, 30, 30]).max() < 4


def test_palette_and_transparency_lie_on_white():
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    image.putpixel((3, 3), (0, 0, 255, 0))
    for data in (encoded(image, "PNG"), encoded(image.quantize(4), "PNG")):
        pixels = decode(data)
        assert pixels[3, 3].tolist() == [255, 255, 255]
        assert pixels[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bit_grey_keeps_its_gradient():
    ramp = np.linspace(0, 65535, 64 * 16, dtype=np.uint16).reshape(16, 64)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(pixels, np.repeat((ramp >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_a_phones_multi_picture_file_gives_its_photo():
    first = picture(3)
    data = encoded(first, "MPO", save_all=True, append_images=[picture(4)], quality=95)
    difference = decode(data).astype(int) - np.asarray(first)
    assert np.abs(difference).mean() < 3


def test_reduced_decoding_stays_above_the_target_and_near_the_full_one():
    data = encoded(picture(5, height=1600, width=2000), quality=95)
    reduced = decode(data, at_least=(224, 224))
    assert 448 <= min(reduced.shape[:2]) < 1600
    small = resize(reduced, 224, 224, "squash").astype(int)
    assert np.abs(small - resize(decode(data), 224, 224, "squash")).mean() < 1


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (32, 32), (8, 300)])
def test_resize_gives_the_size_asked_for(mode, height, width):
    image = np.asarray(picture(6, height=height, width=width))
    assert resize(image, 40, 56, mode).shape == (40, 56, 3)


def test_crop_keeps_the_middle_and_pad_keeps_everything():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert resize(image, 10, 10, "crop").min() == 255
    padded = resize(image, 30, 30, "pad")
    assert padded[0, 0].tolist() == [128] * 3
    assert np.array_equal(padded[10:20], image)


def test_an_unknown_resize_mode_is_refused():
    with pytest.raises(InvalidArgumentError, match="squash"):
        resize(np.zeros((8, 8, 3), np.uint8), 4, 4, "stretch")  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    st.floats(0, 1),
)
def test_a_mutated_image_decodes_or_is_refused(kind, changes, keep):
    data = bytearray(encoded(picture(7), kind))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    data = data[: int(keep * len(data))] if keep > 0.5 else data
    try:
        pixels = decode(bytes(data))
    except ImageError as error:
        assert error.code.startswith("image_")
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
