"""Everything a training run can be told, with defaults that are right for most.

The command line is made from these fields (``training.commands``), the run folder keeps them, and
the exported card repeats them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_type_hints

from index.errors import InvalidArgumentError
from index.images import ResizeMode

__all__ = ["BatchNormMode", "Device", "TrainSettings"]

BatchNormMode = Literal["auto", "frozen", "train"]
Device = Literal["auto", "cpu", "cuda"]


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings of one run. ``None`` means: chosen by what is there, and printed."""

    data: str = _setting(
        "", "Class folders with train/ and test/, one folder of class folders, CSV, or Cars196."
    )
    train_classes: str | None = _setting(
        None, "Flat folders: how many classes to learn from, a range 001-098, or names by commas."
    )
    crop_boxes: bool = _setting(False, "Cars196: crop photos to their bounding boxes.")
    validation_classes: int | None = _setting(
        None, "Training classes held out to watch recall; 0 trains on all.  [default: a tenth]"
    )

    backbone: str = _setting("mobilenet_v2", "Any torchvision classification network.")
    weights: str = _setting("imagenet", "imagenet, none, or the path of a state dict.")
    dim: int = _setting(128, "Dimensions of the embedding.")
    size: int | None = _setting(
        None, "Side of the network's input in pixels.  [default: the backbone's own]"
    )
    resize: ResizeMode = _setting("squash", "How a photo comes to a square: squash, crop or pad.")
    batch_norm: BatchNormMode = _setting(
        "auto", "BatchNorm statistics: frozen, train, or auto (train where weights are none)."
    )
    freeze_until: str | None = _setting(
        None, "Freeze the backbone before this module, such as features.7: faster, learns less."
    )

    epochs: int = _setting(15, "Passes over the training photos.")
    batch_size: int = _setting(
        1024, "Photos in one logical batch; well above --dim, 8 times is a good start."
    )
    images_per_class: int = _setting(8, "Photos of each class in a batch, at least.")
    chunk_size: int = _setting(
        64, "Photos in memory at once; does not change the result, lower it when memory runs out."
    )
    lr: float = _setting(2e-3, "Peak learning rate of the head.")
    backbone_lr: float = _setting(2e-4, "Peak learning rate of the backbone.")
    weight_decay: float = _setting(1e-4, "AdamW's weight decay.")
    warmup: float = _setting(0.15, "Share of the steps in which the rate rises; then cosine.")
    ridge: float = _setting(1e-3, "Ridge of the DSCL loss, relative to the mean variance.")
    whitening_ridge: float = _setting(0.1, "Ridge of the exported whitening, likewise.")

    min_area: float = _setting(0.4, "Smallest share of a photo that a random crop keeps.")
    color: float = _setting(0.2, "Strength of random brightness, contrast and saturation, 0 … 1.")
    flip: bool = _setting(True, "Mirror photos at random.")

    seed: int = _setting(0, "Seed of everything random.")
    device: Device = _setting("auto", "auto, cpu or cuda.")
    workers: int = _setting(0, "Processes that decode photos; 0 decodes in the training process.")
    cache_mb: int = _setting(2048, "Memory for decoded photos, MB a process; 0 decodes anew.")

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for the first value out of range."""
        least = {
            "dim": 1, "size": 32, "epochs": 1, "batch_size": 4, "images_per_class": 2,
            "chunk_size": 1, "lr": 0, "backbone_lr": 0, "weight_decay": 0, "ridge": 0,
            "whitening_ridge": 0, "validation_classes": 0, "workers": 0, "cache_mb": 0, "seed": 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise _out_of_range(name, value, f"at least {bound}")
        for name in ("warmup", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise _out_of_range(name, getattr(self, name), "0 … 1")
        if not 0 < self.min_area <= 1:
            raise _out_of_range("min_area", self.min_area, "above 0, at most 1")
        for name, kind in (
            ("resize", ResizeMode),
            ("batch_norm", BatchNormMode),
            ("device", Device),
        ):
            if getattr(self, name) not in get_args(kind):
                raise _out_of_range(name, getattr(self, name), " or ".join(get_args(kind)))
        # Here rather than in the loss: an hour may lie between the two.
        if self.batch_size <= self.dim + 1:
            raise InvalidArgumentError(
                f"a batch of {self.batch_size} images cannot train a {self.dim}-dimensional DSCL "
                "embedding: the loss is flat when n <= d. Raise --batch-size above "
                f"{self.dim + 1} ({8 * self.dim} is a good start) or lower --dim."
            )

    @property
    def trains_batch_norm(self) -> bool:
        """Whether BatchNorm statistics are learned rather than kept."""
        return self.batch_norm == "train" or (self.batch_norm == "auto" and self.weights == "none")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            InvalidArgumentError: a setting this release does not know.
        """
        unknown = values.keys() - get_type_hints(cls).keys()
        if unknown:
            raise InvalidArgumentError(f"unknown settings: {', '.join(sorted(unknown))}.")
        return cls(**values)


def _out_of_range(name: str, value: object, expected: str) -> InvalidArgumentError:
    option = name.replace("_", "-")
    return InvalidArgumentError(f"--{option} is {value}: expected {expected}.")
