"""Photos as training tensors, and the batches made of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from index.errors import ImageError, InvalidArgumentError
from index.images import ResizeMode, decode, resize
from training.augment import Augmentation, Batch, PhotoLoader, _random_box, batches, in_order
from training.data import Photos
from training.sampler import ClassBalancedBatches

SIZE = (40, 48)
STILL = Augmentation(min_area=1, stretch=1, flip=False, color=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """Three classes of four photos of different sizes; the last is a large one."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(12):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        size = (1500, 1100) if i == 11 else (70 + 3 * i, 90 - 3 * i)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(coarse).resize(size).save(paths[-1], quality=95)
    return Photos(tuple(paths), np.repeat(np.arange(3), 4), ("a", "b", "c"))


def one_photo(folder: Path, size: tuple[int, int]) -> Photos:
    """A photo of noise, (width, height)."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return Photos((folder / "noise.png",), np.zeros(1, np.int64), ("a",))


def make_loader(
    photos: Photos,
    augmentation: Augmentation | None = None,
    *,
    mode: ResizeMode = "squash",
    cache_bytes: int = 0,
) -> PhotoLoader:
    height, width = SIZE
    return PhotoLoader(
        photos,
        height=height,
        width=width,
        mode=mode,
        augmentation=augmentation,
        cache_bytes=cache_bytes,
    )


def make_sampler(photos: Photos, seed: int = 0) -> ClassBalancedBatches:
    return ClassBalancedBatches(photos.labels, classes_per_batch=3, images_per_class=2, seed=seed)


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
def test_photos_that_are_not_augmented_have_the_pixels_that_serving_sees(
    photos: Photos, mode: ResizeMode
) -> None:
    loader = make_loader(photos, mode=mode, cache_bytes=10**6)
    for position in (0, 11, 0, 11):  # read, then from the cache
        expected = resize(decode(photos.paths[position], at_least=SIZE), *SIZE, mode)
        tensor = loader[position, 7]
        assert tensor.dtype == torch.uint8
        assert tensor.shape == (3, *SIZE)
        np.testing.assert_array_equal(tensor.numpy(), expected.transpose(2, 0, 1))


# A crop slides along the longer side even where it keeps all it can: there the shapes agree.
@pytest.mark.parametrize(
    ("mode", "size"), [("squash", (130, 39)), ("pad", (130, 39)), ("crop", (24, 20))]
)
def test_an_augmentation_that_changes_nothing_leaves_the_pixels_that_serving_sees(
    tmp_path: Path, mode: ResizeMode, size: tuple[int, int]
) -> None:
    photos = one_photo(tmp_path, size)
    plain = make_loader(photos, mode=mode)[0, 0]
    for draw in range(5):
        assert torch.equal(make_loader(photos, STILL, mode=mode)[0, draw], plain)


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
def test_an_augmented_photo_depends_on_its_draw_alone(photos: Photos, mode: ResizeMode) -> None:
    loader = make_loader(photos, Augmentation(), mode=mode)
    first = loader[3, 5]
    loader[2, 9]
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - global state is what must not matter
    assert torch.equal(loader[3, 5], first)
    assert torch.equal(make_loader(photos, Augmentation(), mode=mode)[3, 5], first)
    assert len({loader[3, draw].numpy().tobytes() for draw in range(20)}) == 20


def test_loading_leaves_the_random_state_of_training_alone(photos: Photos) -> None:
    loader = make_loader(photos, Augmentation())
    state = torch.get_rng_state()
    list(batches(loader, make_sampler(photos), epochs=range(1)))
    list(in_order(loader, batch_size=5))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("cache_bytes", [15_000, 10**8])
def test_the_cache_does_not_change_the_pixels(
    photos: Photos, augmentation: Augmentation | None, cache_bytes: int
) -> None:
    plain = make_loader(photos, augmentation)
    cached = make_loader(photos, augmentation, cache_bytes=cache_bytes)
    for draw in (0, 1):
        for position in range(12):
            assert torch.equal(plain[position, draw], cached[position, draw])


def test_the_cache_saves_reading_within_its_budget(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{i}.png" for i in range(3))
    for i, path in enumerate(paths):
        Image.new("RGB", (100, 100), (i, i, i)).save(path)
    photos = Photos(paths, np.zeros(3, np.int64), ("a",))
    photo_bytes = 3 * SIZE[0] * SIZE[1]
    loader = make_loader(photos, cache_bytes=2 * photo_bytes)
    for position in range(3):
        loader[position, 0]
    for path in paths:
        path.unlink()
    for position in (0, 1):
        assert (loader[position, 0] == position).all()
    with pytest.raises(ImageError, match=r"2\.png cannot be read"):
        loader[2, 0]


def test_a_cached_tensor_may_be_written_to(photos: Photos) -> None:
    loader = make_loader(photos, cache_bytes=10**8)
    before = loader[0, 0].clone()
    loader[0, 0].zero_()
    assert torch.equal(loader[0, 0], before)


def test_large_photos_are_shrunk_no_further_than_the_smallest_crop_needs(photos: Photos) -> None:
    loader = make_loader(photos, Augmentation(min_area=0.25))
    loader.cache_bytes = 10**9
    loader[11, 0]
    height, width, _ = loader._cache[11].shape
    # Half of either side remains of a crop of a quarter: twice the tensor's size is needed.
    assert height == 2 * SIZE[0] or width == 2 * SIZE[1]
    assert height >= 2 * SIZE[0]
    assert width >= 2 * SIZE[1]
    assert height / width == pytest.approx(1100 / 1500, rel=0.01)


def test_half_of_the_photos_are_mirrored(tmp_path: Path) -> None:
    photos = one_photo(tmp_path, (60, 39))
    plain = make_loader(photos)[0, 0]
    loader = make_loader(photos, Augmentation(min_area=1, stretch=1, flip=True, color=0))
    mirrored = sum(torch.equal(loader[0, draw], plain.flip(2)) for draw in range(200))
    straight = sum(torch.equal(loader[0, draw], plain) for draw in range(200))
    assert mirrored + straight == 200
    assert 70 < mirrored < 130


def test_colours_stay_within_their_range(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (100, 100, 100)).save(tmp_path / "grey.png")
    photos = Photos((tmp_path / "grey.png",), np.zeros(1, np.int64), ("a",))
    loader = make_loader(photos, Augmentation(min_area=1, stretch=1, flip=False, color=0.2))
    greys = np.array([loader[0, draw][0, 0, 0].item() for draw in range(300)])
    # Neither contrast nor saturation changes an even grey, so brightness shows alone.
    assert greys.min() == pytest.approx(80, abs=2)  # each change rounds
    assert greys.max() == pytest.approx(120, abs=2)
    assert np.quantile(greys, [0.25, 0.5, 0.75]) == pytest.approx([90, 100, 110], abs=4)


@given(
    st.integers(8, 400),
    st.integers(8, 400),
    st.floats(0.05, 1),
    st.floats(1, 3),
    st.integers(0, 2**64 - 1),
)
@example(h=8, w=8, min_area=1, stretch=2, seed=0)
def test_a_random_box_has_the_area_and_shape_asked_for(
    h: int, w: int, min_area: float, stretch: float, seed: int
) -> None:
    settings = Augmentation(min_area=min_area, stretch=stretch)
    top, left, height, width = _random_box(np.random.default_rng(seed), (h, w), (h, w), settings)
    assert 0 <= top <= top + height <= h
    assert 0 <= left <= left + width <= w
    # Sides are rounded to whole pixels; what they were before is within half a pixel.
    low, high = (1 - 1e-9) * np.array([height - 0.5, width - 0.5]), np.array([height, width]) + 0.5
    assert high.prod() >= min_area * h * w * (1 - 1e-9)
    assert low[0] / h <= stretch * high[1] / w
    assert low[1] / w <= stretch * high[0] / h


def test_random_boxes_reach_every_corner() -> None:
    settings = Augmentation(min_area=0.3)
    boxes = np.array([_random_box(np.random.default_rng(seed), (100, 200), (100, 200), settings)
                      for seed in range(2000)])  # fmt: skip
    areas = boxes[:, 2] * boxes[:, 3] / 20_000
    assert np.histogram(areas, 7, (0.3, 1))[0] == pytest.approx([2000 / 7] * 7, rel=0.25)
    for edge, side, length in ((0, 2, 100), (1, 3, 200)):
        assert (boxes[:, edge] == 0).any()
        assert (boxes[:, edge] + boxes[:, side] == length).any()


@pytest.mark.parametrize(
    "values",
    [{"min_area": 0}, {"min_area": 1.1}, {"stretch": 0.9}, {"color": -0.1}, {"color": 2}],
)
def test_augmentation_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(values))):
        Augmentation(**values)  # type: ignore[arg-type]


# Batches


def whole(batch: Batch) -> Tensor:
    return torch.cat(tuple(batch.images))


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert [batch[:2] for batch in one] == [batch[:2] for batch in other]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(whole(a), whole(b))
        assert torch.equal(a.labels, b.labels)


def test_batches_hold_the_sampled_photos_with_their_labels(photos: Photos) -> None:
    loader, sampler = make_loader(photos), make_sampler(photos)
    made = list(batches(loader, sampler, epochs=range(2, 4)))
    assert [batch[:2] for batch in made] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    for batch, indices in zip(made, sampler.epoch(2) + sampler.epoch(3), strict=True):
        assert whole(batch).shape == (6, 3, *SIZE)
        np.testing.assert_array_equal(batch.labels, photos.labels[indices])
        for image, index in zip(whole(batch), indices, strict=True):
            assert torch.equal(image, loader[int(index), 0])


def test_batches_larger_than_what_workers_hand_over_are_put_together_in_order(
    photos: Photos,
) -> None:
    loader = make_loader(photos)
    sampler = ClassBalancedBatches(photos.labels, classes_per_batch=3, images_per_class=13, seed=0)
    (batch,) = batches(loader, sampler, epochs=range(1), workers=1)
    expected = [loader[int(index), 0] for index in sampler.epoch(0)[0]]
    assert len(expected) == 39
    assert torch.equal(whole(batch), torch.stack(expected))


@pytest.mark.parametrize(
    ("piece", "workers", "sizes"), [(6, 0, [6]), (4, 0, [4, 2]), (4, 1, [4, 2]), (1, 0, [1] * 6)]
)
def test_a_batch_comes_in_pieces(
    photos: Photos, piece: int, workers: int, sizes: list[int]
) -> None:
    loader, sampler = make_loader(photos, Augmentation()), make_sampler(photos)
    (expected, _) = batches(loader, sampler, epochs=range(1), piece=6)
    (batch, _) = batches(loader, sampler, epochs=range(1), piece=piece, workers=workers)
    assert [len(images) for images in batch.images] == sizes
    assert_equal([batch], [expected])


@pytest.mark.parametrize("held", [True, False])
def test_photos_of_a_large_batch_are_drawn_again_rather_than_held(
    photos: Photos, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    size = 6 * 3 * SIZE[0] * SIZE[1]
    monkeypatch.setattr("training.augment.HELD_BYTES", size if held else size - 1)
    drawn: list[int] = []

    class Counted(PhotoLoader):
        def __getitem__(self, key: tuple[int, int]) -> Tensor:
            drawn.append(key[0])
            return super().__getitem__(key)

    height, width = SIZE
    loader = Counted(photos, height=height, width=width, mode="squash", augmentation=Augmentation())
    batch = next(batches(loader, make_sampler(photos), epochs=range(1), piece=4))
    assert not drawn
    first, second = whole(batch), whole(batch)
    assert torch.equal(first, second)
    assert len(drawn) == (6 if held else 12)


def test_processes_share_a_batch(photos: Photos) -> None:
    loader, sampler = make_loader(photos, Augmentation()), make_sampler(photos)
    expected = next(batches(loader, sampler, epochs=range(1)))
    parts = [
        next(batches(loader, sampler, epochs=range(1), share=lambda n, part=part: part))  # type: ignore[misc]
        for part in (slice(0, 4), slice(4, 6))
    ]
    assert torch.equal(torch.cat([whole(part) for part in parts]), whole(expected))
    assert torch.equal(torch.cat([part.labels for part in parts]), expected.labels)


def test_a_photo_looks_different_each_time_it_comes(photos: Photos) -> None:
    sampler = ClassBalancedBatches(photos.labels, classes_per_batch=3, images_per_class=8, seed=0)
    made = list(batches(make_loader(photos, Augmentation()), sampler, epochs=range(2)))
    images = {image.numpy().tobytes() for batch in made for image in whole(batch)}
    assert len(images) == 2 * 24  # each photo twice an epoch
    other_seed = next(
        batches(make_loader(photos, Augmentation()), make_sampler(photos, 1), epochs=range(1))
    )
    assert not images & {image.numpy().tobytes() for image in whole(other_seed)}


@pytest.mark.parametrize("resumed_at", range(5))
def test_a_resumed_run_gets_the_same_batches(photos: Photos, resumed_at: int) -> None:
    loader, sampler = make_loader(photos, Augmentation()), make_sampler(photos)
    uninterrupted = list(batches(loader, sampler, epochs=range(2)))
    epoch, step = divmod(resumed_at, len(sampler))
    rest = batches(loader, sampler, epochs=range(epoch, 2), first_step=step)
    assert_equal(list(rest), uninterrupted[resumed_at:])


def test_worker_processes_give_the_same_batches(photos: Photos) -> None:
    loader, sampler = make_loader(photos, Augmentation()), make_sampler(photos)
    expected = list(batches(loader, sampler, epochs=range(2)))
    assert_equal(list(batches(loader, sampler, epochs=range(2), workers=1)), expected)


def test_photos_come_in_their_order(photos: Photos) -> None:
    loader = make_loader(photos)
    parts = list(in_order(loader, batch_size=5))
    assert [len(part) for part in parts] == [5, 5, 2]
    assert torch.equal(torch.cat(parts), torch.stack([loader[i, 0] for i in range(12)]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_vanished_is_named_without_a_traceback(
    photos: Photos, tmp_path: Path, workers: int
) -> None:
    gone = Photos((*photos.paths[:11], tmp_path / "gone.jpg"), photos.labels, photos.classes)
    with pytest.raises(ImageError) as caught:
        list(in_order(make_loader(gone), batch_size=12, workers=workers))
    assert caught.value.code == "image_missing"
    assert str(caught.value).startswith(f"{tmp_path / 'gone.jpg'} cannot be read")


def test_batches_are_loaded_as_they_are_asked_for(photos: Photos) -> None:
    stream = batches(make_loader(photos), make_sampler(photos), epochs=range(10**9))
    assert [batch[:2] for batch in islice(stream, 3)] == [(0, 0), (0, 1), (1, 0)]
