from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.errors import ImageError
from service.thumbnails import Thumbnails, make_thumbnail


def save(path: Path, width: int, height: int, *, turned: bool = False) -> Path:
    """Red on the left, blue on the right, as it lies in the file."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize(
    ("width", "height", "size", "expected"),
    [
        (400, 200, 100, (100, 50)),
        (200, 400, 100, (50, 100)),
        (60, 40, 100, (60, 40)),
        (1000, 8, 16, (16, 1)),
    ],
)
def test_the_longer_side_is_the_size_and_nothing_is_enlarged(
    tmp_path: Path, width: int, height: int, size: int, expected: tuple[int, int]
) -> None:
    data = make_thumbnail(save(tmp_path / "1.png", width, height), size)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", expected)


def test_a_thumbnail_is_upright(tmp_path: Path) -> None:
    data = make_thumbnail(save(tmp_path / "1.jpg", 400, 200, turned=True), 64)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert image.size == (32, 64)
    top, bottom = np.asarray(image)[10].mean(0), np.asarray(image)[-10].mean(0)
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]


def test_what_is_no_photo_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "1.jpg"
    file.write_bytes(b"no photo")
    with pytest.raises(ImageError):
        make_thumbnail(file, 64)


def test_a_thumbnail_is_made_once_until_others_push_it_out(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.jpg", 100, 80) for i in range(3)]
    made = [make_thumbnail(file, 64) for file in files]
    assert len(made[0]) > 0
    cache = Thumbnails(max_bytes=2 * len(made[0]))

    def there(number: int) -> bool:
        """Whether it comes from memory: its file is hidden meanwhile."""
        hidden = files[number].rename(tmp_path / "hidden")
        try:
            return cache.get(files[number], str(number), 64) == made[number]
        except ImageError:
            return False
        finally:
            hidden.rename(files[number])

    assert not there(0)
    for number in (0, 1, 0):
        assert cache.get(files[number], str(number), 64) == made[number]
    assert there(0) and there(1) and not there(2)
    assert there(0)  # now 1 has not been asked for longest
    cache.get(files[2], "2", 64)
    assert there(0) and there(2) and not there(1)


def test_sizes_and_contents_are_kept_apart_and_threads_agree(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.jpg", 100 + 20 * i, 80) for i in range(2)]
    expected = {(i, size): make_thumbnail(files[i], size) for i in range(2) for size in (32, 64)}
    cache = Thumbnails(max_bytes=3000)
    wrong: list[tuple[int, int]] = []

    def ask() -> None:
        for _ in range(20):
            for (i, size), data in expected.items():
                if cache.get(files[i], str(i), size) != data:
                    wrong.append((i, size))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
