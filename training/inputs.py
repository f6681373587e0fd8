"""What a run's settings say of its photos: the data set, its split, and loaders for each part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from training.augment import Augmentation, PhotoLoader
from training.backbones import default_size
from training.data import (
    Dataset,
    Photos,
    check_photos,
    check_trainable,
    hold_out,
    leaked_photos,
    load_dataset,
)
from training.settings import TrainSettings

__all__ = ["evaluation_loader", "load", "side", "split", "training_loader"]

Echo = Callable[[str], object]

#: Lines of a kind that are printed one by one.
SHOWN = 10


def load(settings: TrainSettings, echo: Echo) -> Dataset:
    """The data set, less what cannot be read.

    Raises:
        DataError: nothing that can be trained on.
    """
    dataset = load_dataset(
        Path(settings.data),
        train_classes=settings.train_classes,
        crop_boxes=settings.crop_boxes,
    )
    for note in dataset.notes:
        echo(f"Note: {note}")
    gone: list[Path] = []
    for name, photos in (("train", dataset.train), ("test", dataset.test)):
        if photos is not None:
            gone += _unreadable(photos, name, echo)
    dataset = dataset.without(gone)
    check_trainable(dataset.train)
    leaks = leaked_photos(dataset)
    for trained, tested in leaks[:SHOWN]:
        echo(f"Leak: {tested} (test) is byte for byte {trained} (train).")
    if leaks:
        echo(f"{len(leaks)} test photos are also training photos: figures are too good by them.")
    return dataset


def _unreadable(photos: Photos, name: str, echo: Echo) -> list[Path]:
    with tqdm(total=len(photos), unit="photo", desc=f"Checking {name} photos", disable=None) as bar:
        _, unreadable = check_photos(photos, lambda done, total: bar.update())
    for path, reason in unreadable[:SHOWN]:
        echo(f"Skipped {path}: {reason}")
    if unreadable:
        echo(f"Skipped {len(unreadable)} of {len(photos)} {name} photos.")
    return [path for path, _ in unreadable]


def split(dataset: Dataset, settings: TrainSettings) -> tuple[Photos, Photos | None]:
    """Photos to learn from, and photos of other training classes to watch recall on."""
    classes = len(dataset.train.classes)
    count = settings.validation_classes
    if count is None:
        count = max(2, round(classes / 10)) if classes >= 8 else 0
    if count == 0:
        return dataset.train, None
    return hold_out(dataset.train, count)


def side(settings: TrainSettings) -> int:
    """Of the network's input, in pixels."""
    return settings.size or default_size(settings.backbone)


def evaluation_loader(settings: TrainSettings, photos: Photos) -> PhotoLoader:
    """Photos as serving sees them."""
    return PhotoLoader(photos, height=side(settings), width=side(settings), mode=settings.resize)


def training_loader(settings: TrainSettings, photos: Photos) -> PhotoLoader:
    """Photos at random, in the size of training."""
    size = settings.train_size or side(settings)
    return PhotoLoader(
        photos,
        height=size,
        width=size,
        mode=settings.resize,
        augmentation=Augmentation(
            min_area=settings.min_area, flip=settings.flip, color=settings.color
        ),
        cache_bytes=settings.cache_mb * 2**20,
    )
