"""Photos → training tensors: resize as serving does, random crops and colours, batches.

What a photo looks like depends on the photo and one seed, never on the process that draws it or on
what was drawn before. Which photos make a batch is decided in ``training.sampler``.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import tee
from multiprocessing import resource_tracker
from typing import NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2 import functional as transforms

from index.errors import ImageError, InvalidArgumentError
from index.images import ResizeMode, resize
from training.data import Photos, read_photo
from training.sampler import ClassBalancedBatches

__all__ = ["Augmentation", "Batch", "PhotoLoader", "batches", "in_order"]

#: Photos that a worker process hands over at a time. Small: what is under way lies in /dev/shm,
#: of which containers have 64 MB unless told otherwise, and a batch has up to thousands of photos.
CHUNK = 16

#: Without workers, photos of a larger batch are drawn twice rather than held: memory does not grow
#: with the batch.
HELD_BYTES = 128 * 2**20

#: Which photo, and the seed of its augmentation.
Key = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may change in a training photo without changing what it shows.

    Attributes:
        min_area: least share of the photo's area that a random crop keeps, in (0, 1].
        stretch: a crop's aspect ratio differs from the photo's by at most this factor, ≥ 1.
        flip: mirror every other photo.
        color: brightness, contrast and saturation change by a factor in 1 ± this, in [0, 1].
    """

    min_area: float = 0.4
    stretch: float = 4 / 3
    flip: bool = True
    color: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.min_area <= 1 and self.stretch >= 1 and 0 <= self.color <= 1):
            raise InvalidArgumentError(
                f"{self}: expected 0 < min_area <= 1, stretch >= 1 and 0 <= color <= 1."
            )


class Batch(NamedTuple):
    """One training step's photos, or this process's share of them.

    ``images`` are pieces uint8 [m, 3, h, w] of n photos in all, ``labels`` int64 [n]; ``step``
    counts within ``epoch``.
    """

    epoch: int
    step: int
    images: Sequence[Tensor]
    labels: Tensor


class PhotoLoader(TorchDataset[Tensor]):
    """Photos as tensors of one size, by key (position, draw).

    Without augmentation the pixels are those that serving sees: decoded and resized by
    ``index.images``, whatever the draw.
    """

    def __init__(
        self,
        photos: Photos,
        *,
        height: int,
        width: int,
        mode: ResizeMode,
        augmentation: Augmentation | None = None,
        cache_bytes: int = 0,
    ) -> None:
        """Load ``photos`` on demand.

        Args:
            photos: the photos.
            height: of the tensors, in pixels.
            width: likewise.
            mode: how a photo comes to that size, see ``index.images.resize``. Augmented, ``crop``
                moves its window over the photo; ``squash`` and ``pad`` cut a part of it first.
            augmentation: None for the photo as it is.
            cache_bytes: keep decoded photos in memory up to this size, in each process that loads.
                Changes the speed, not the pixels; 0 keeps none.
        """
        self.photos = photos
        self.height = height
        self.width = width
        self.mode = mode
        self.augmentation = augmentation
        self.cache_bytes = cache_bytes
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> Tensor:
        """uint8 [3, h, w], RGB.

        Raises:
            ImageError: if the photo cannot be read.
        """
        position, draw = key
        image = self._cache.get(position)
        if image is None:
            image = self._read(position)
            if self._cached_bytes + image.nbytes <= self.cache_bytes:
                self._cache[position] = image
                self._cached_bytes += image.nbytes
        if self.augmentation is None:
            return _to_tensor(image)
        return self._augment(image, self.augmentation, np.random.default_rng(draw))

    def _read(self, position: int) -> NDArray[np.uint8]:
        """The photo as far as no draw is involved."""
        if self.augmentation is None:
            image = read_photo(self.photos, position, at_least=(self.height, self.width))
            return resize(image, self.height, self.width, self.mode)
        # The smallest crop still has as many pixels as the tensor; more would only cost time.
        scale = 1 / math.sqrt(self.augmentation.min_area)
        least_h, least_w = math.ceil(self.height * scale), math.ceil(self.width * scale)
        image = read_photo(self.photos, position, at_least=(least_h, least_w))
        h, w, _ = image.shape
        shrink = max(least_h / h, least_w / w)
        if shrink >= 1:
            return image
        return resize(image, round(h * shrink), round(w * shrink), "squash")

    def _augment(
        self, image: NDArray[np.uint8], settings: Augmentation, rng: np.random.Generator
    ) -> Tensor:
        h, w, _ = image.shape
        if self.mode == "crop":
            # The largest window of the tensor's shape that the photo has room for.
            scale = min(h / self.height, w / self.width)
            window_h, window_w = self.height * scale, self.width * scale
        else:
            window_h, window_w = h, w
        top, left, crop_h, crop_w = _random_box(rng, (h, w), (window_h, window_w), settings)
        cut = image[top : top + crop_h, left : left + crop_w]
        mode = "squash" if self.mode == "crop" else self.mode
        tensor = _to_tensor(resize(cut, self.height, self.width, mode))

        if settings.flip and rng.random() < 0.5:
            tensor = transforms.horizontal_flip(tensor)
        if settings.color:
            changes = (
                transforms.adjust_brightness,
                transforms.adjust_contrast,
                transforms.adjust_saturation,
            )
            for i in rng.permutation(len(changes)):
                tensor = changes[i](tensor, rng.uniform(1 - settings.color, 1 + settings.color))
        return tensor.contiguous()


def batches(
    loader: PhotoLoader,
    sampler: ClassBalancedBatches,
    *,
    epochs: range,
    first_step: int = 0,
    piece: int = 64,
    share: Callable[[int], slice] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches of ``epochs``, one after the other.

    A batch depends on the sampler's seed, epoch and step alone: neither on the number of workers
    nor on where a run was resumed. Workers load ahead, across the borders of epochs; they start
    once and end with the iterator. Without workers, photos are loaded when a piece is asked for,
    and those of a batch beyond ``HELD_BYTES`` each time that it is.

    Args:
        loader: the photos that the sampler's labels belong to.
        sampler: which photos make up each batch.
        epochs: numbers of the epochs.
        first_step: steps of the first epoch to leave out, when a run is resumed.
        piece: photos in a piece of a batch, at most.
        share: which part of a batch of n photos this process loads; default: all.
        workers: processes that load; 0 loads in this one.
        pin_memory: put images where a GPU can fetch them asynchronously; workers do.

    Raises:
        ImageError: naming the photo that cannot be read.
    """

    def steps() -> Iterator[tuple[int, int, list[Key]]]:
        for epoch in epochs:
            plan = sampler.epoch(epoch)
            total = sum(map(len, plan))
            draws = np.random.SeedSequence((sampler.seed, epoch)).generate_state(total, np.uint64)
            ends = np.cumsum([len(indices) for indices in plan])[:-1]
            for step, (indices, seeds) in enumerate(zip(plan, np.split(draws, ends), strict=True)):
                if epoch == epochs.start and step < first_step:
                    continue
                part = slice(None) if share is None else share(len(indices))
                yield (
                    epoch,
                    step,
                    list(zip(indices[part].tolist(), seeds[part].tolist(), strict=True)),
                )

    described, loaded = tee(steps())
    images: Iterator[Sequence[Tensor]]
    if workers:
        whole = _load(loader, (keys for _, _, keys in loaded), workers, pin_memory)
        images = (tensor.split(piece) for tensor in whole)
    else:
        images = (_Drawn(loader, keys, piece) for _, _, keys in loaded)
    for (epoch, step, keys), pieces in zip(described, images, strict=True):
        labels = torch.from_numpy(loader.photos.labels[[position for position, _ in keys]])
        yield Batch(epoch, step, pieces, labels)


class _Drawn(Sequence[Tensor]):
    """Pieces of a batch, drawn when they are asked for and kept as long as they are small."""

    def __init__(self, loader: PhotoLoader, keys: list[Key], piece: int) -> None:
        self._loader = loader
        self._pieces = [keys[start : start + piece] for start in range(0, len(keys), piece)]
        self._keeps = 3 * loader.height * loader.width * len(keys) <= HELD_BYTES
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if (kept := self._kept.get(index)) is not None:
            return kept
        images = torch.stack([self._loader[key] for key in self._pieces[index]])
        if self._keeps:
            self._kept[index] = images
        return images


def in_order(loader: PhotoLoader, *, batch_size: int, workers: int = 0) -> Iterator[Tensor]:
    """All photos in their order, uint8 [≤ batch_size, 3, h, w] at a time; see ``batches``."""
    n = len(loader)
    keys = (
        [(position, 0) for position in range(start, min(start + batch_size, n))]
        for start in range(0, n, batch_size)
    )
    return _load(loader, keys, workers, pin_memory=False)


class _Chunks(TorchDataset["Tensor | tuple[str, str]"]):
    """Stacked photos of several keys, or code and message of the ImageError met."""

    def __init__(self, loader: PhotoLoader) -> None:
        self._loader = loader

    def __getitem__(self, keys: list[Key]) -> Tensor | tuple[str, str]:
        try:
            return torch.stack([self._loader[key] for key in keys])
        except ImageError as error:
            # Raised in a worker, it would reach the user as a RuntimeError full of tracebacks.
            return error.code, str(error)


def _load(
    loader: PhotoLoader, batches_of_keys: Iterable[list[Key]], workers: int, pin_memory: bool
) -> Iterator[Tensor]:
    """uint8 [n, 3, h, w] for each list of n keys, put together from the chunks of all workers."""
    asked, loaded = tee(batches_of_keys)
    chunks = DataLoader(
        _Chunks(loader),
        batch_size=None,
        sampler=(keys[i : i + CHUNK] for keys in loaded for i in range(0, len(keys), CHUNK)),
        num_workers=workers,
        # A child forked after torch or FAISS ran threads can hang on a lock that one of them held.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_own_group,
        generator=torch.Generator(),  # else each pass would advance the generator of the training
    )
    with _ctrl_c_to_this_process_alone():
        arriving = iter(chunks)  # starts the workers
    for keys in asked:
        shape = (len(keys), 3, loader.height, loader.width)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
        for part in images.split(CHUNK):
            chunk = next(arriving)
            if not isinstance(chunk, Tensor):
                raise ImageError(*chunk)
            part.copy_(chunk)
        yield images


def _own_group(worker: int) -> None:
    """Leave the group of the training process, which launchers signal as a whole.

    Workers that died of it would leave the training waiting for the photos of its last step.
    """
    os.setpgrp()


@contextmanager
def _ctrl_c_to_this_process_alone() -> Iterator[None]:
    """Processes started within never notice SIGINT.

    A terminal sends it to all processes at once. Workers that died of it would leave the training
    waiting for photos, and unable to save its last step before it ends them itself.
    """
    resource_tracker.ensure_running()  # the first spawn starts it, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _random_box(
    rng: np.random.Generator,
    size: tuple[int, int],
    window: tuple[float, float],
    settings: Augmentation,
) -> tuple[int, int, int, int]:
    """A random part of an image: (top, left, height, width) in pixels.

    Area and aspect ratio are relative to ``window`` (h, w), which fits into ``size`` (h, w): the
    area is uniform in [min_area, 1] and the ratio's logarithm is uniform within ± log(stretch), as
    in the Inception crop (Szegedy et al. 2015, section 6), but within what such an area leaves
    room for, so that no draw has to be repeated.
    """
    area = rng.uniform(settings.min_area, 1)
    widest = min(math.log(settings.stretch), math.log(1 / area))
    stretch = math.exp(rng.uniform(-widest, widest))
    height = max(1, min(size[0], round(window[0] * math.sqrt(area / stretch))))
    width = max(1, min(size[1], round(window[1] * math.sqrt(area * stretch))))
    top = int(rng.integers(size[0] - height, endpoint=True))
    left = int(rng.integers(size[1] - width, endpoint=True))
    return top, left, height, width


def _to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """[h, w, 3] → a tensor [3, h, w] with memory of its own."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
