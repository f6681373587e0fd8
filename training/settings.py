"""Everything a training run can be told, with defaults that are right for most.

The command line and the presets are made from these fields (``training.fields``), the run folder
keeps them, and the exported card repeats them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from index.errors import InvalidArgumentError
from index.images import ResizeMode
from training.loss_expression import check_batch, parse_loss

__all__ = [
    "BatchNormMode",
    "Device",
    "Embedding",
    "HeadInit",
    "Keep",
    "Method",
    "Precision",
    "Solver",
    "TrainSettings",
    "WhiteningKind",
]

Method = Literal["end-to-end", "last-layer"]
Solver = Literal["iterative", "closed-form"]
HeadInit = Literal["auto", "orthogonal", "closed-form"]
BatchNormMode = Literal["auto", "frozen", "train"]
Embedding = Literal["head", "features"]
WhiteningKind = Literal["total", "within-class"]
Keep = Literal["best", "last"]
Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]


def _setting(default: Any, section: str, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text, "section": section})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings of one run. ``None`` means: chosen by what is there, and printed."""

    data: str = _setting(
        "", "Data", "Class folders with train/ and test/, one folder of class folders, CSV, or a "
        "published data set as it unpacks."
    )  # fmt: skip
    train_classes: str | None = _setting(
        None, "Data",
        "Flat folders: how many classes to learn from, a range 001-098, or names by commas.",
    )  # fmt: skip
    crop_boxes: bool = _setting(
        False, "Data", "Cars196, CUB-200-2011: crop photos to their bounding boxes."
    )
    validation_classes: int | None = _setting(
        None, "Data",
        "Training classes held out to watch recall; 0 trains on all.  [default: a tenth]",
    )  # fmt: skip

    backbone: str = _setting(
        "mobilenet_v2", "Network", "A torchvision classification network, or timm:NAME."
    )
    weights: str = _setting("imagenet", "Network", "imagenet, none, or the path of a state dict.")
    dim: int = _setting(128, "Network", "Dimensions of the embedding that the loss sees.")
    size: int | None = _setting(
        None, "Network", "Side of the network's input in pixels.  [default: the backbone's own]"
    )
    train_size: int | None = _setting(
        None, "Network", "Side in training, when smaller than --size: faster.  [default: --size]"
    )
    resize: ResizeMode = _setting(
        "squash", "Network", "How a photo comes to a square: squash, crop or pad."
    )
    batch_norm: BatchNormMode = _setting(
        "auto", "Network",
        "BatchNorm statistics: frozen, train, or auto (train where weights are none).",
    )  # fmt: skip
    freeze_until: str | None = _setting(
        None, "Network",
        "Freeze the backbone before this module, such as features.7: faster, learns less.",
    )  # fmt: skip
    head_init: HeadInit = _setting(
        "auto",
        "Network",
        "First weights of the head: orthogonal, closed-form (LDA of the frozen features), or auto "
        "(closed-form for DSCL on trained weights).",
    )
    closed_form_ridge: float = _setting(
        1.0, "Network", "Ridge of the closed form, relative to the features' mean variance."
    )

    method: Method = _setting(
        "end-to-end", "Loss", "end-to-end, or last-layer: a head on frozen features."
    )
    solver: Solver = _setting(
        "iterative", "Loss", "last-layer: iterative, or closed-form (DSCL's optimum in seconds)."
    )
    loss: str = _setting(
        "dscl", "Loss", "A loss by name, or a weighted sum such as dscl+0.2*multi-similarity."
    )
    ridge: float = _setting(
        0.1, "Loss", "Ridge of the DSCL loss, relative to the embedding's mean variance."
    )

    batch_size: int = _setting(
        1024, "Batches", "Photos in one logical batch; well above --dim, 8 times is a good start."
    )
    images_per_class: int = _setting(8, "Batches", "Photos of each class in a batch, at least.")
    chunk_size: int = _setting(
        64, "Batches",
        "Photos embedded at once; does not change the result, lower it when memory runs out.",
    )  # fmt: skip
    shrink_chunks: bool = _setting(
        False, "Batches", "When a GPU runs out of memory, go on with chunks of half the size."
    )
    activations_mb: int | None = _setting(
        None, "Batches",
        "Memory for activations kept until the batch's loss is known; chunks beyond it are "
        "embedded twice.  [default: a quarter of what is free]",
    )  # fmt: skip

    epochs: int = _setting(15, "Optimisation", "Passes over the training photos.")
    lr: float = _setting(1e-3, "Optimisation", "Peak learning rate of the head.")
    backbone_lr: float = _setting(5e-4, "Optimisation", "Peak learning rate of the backbone.")
    layer_decay: float = _setting(
        1.0, "Optimisation", "Each layer's rate relative to the layer above it; 0.75 suits ViTs."
    )
    proxy_lr: float = _setting(
        1e-2, "Optimisation", "Peak learning rate of a loss's proxies, if it has any."
    )
    weight_decay: float = _setting(1e-4, "Optimisation", "AdamW's weight decay.")
    warmup: float = _setting(
        0.15, "Optimisation", "Share of the steps in which the rate rises; then cosine."
    )
    average: float = _setting(
        0.0, "Optimisation",
        "Decay per step of a running average of the weights, which is what is judged and "
        "exported; 0 keeps none.",
    )  # fmt: skip
    keep: Keep = _setting(
        "best", "Optimisation",
        "The epoch that is exported: best (highest MAP@R on the held-out classes), or last. "
        "Without held-out classes it is the last.",
    )  # fmt: skip

    min_area: float = _setting(
        0.4, "Augmentation", "Smallest share of a photo that a random crop keeps."
    )
    color: float = _setting(
        0.2, "Augmentation", "Strength of random brightness, contrast and saturation, 0 … 1."
    )
    flip: bool = _setting(True, "Augmentation", "Mirror photos at random.")

    embedding: Embedding = _setting(
        "head",
        "Export",
        "What is indexed, whitened: the head's output, or the backbone's features.",
    )
    feature_power: float = _setting(
        1.0,
        "Export",
        "Power of features that are indexed, before whitening; 0.5 evens out strong ones, 1 "
        "leaves them.",
    )
    whitening: WhiteningKind = _setting(
        "within-class",
        "Export",
        "Whiten by the scatter of all training photos, or of photos within their classes.",
    )
    whitening_ridge: float = _setting(
        1.0, "Export", "Ridge of the exported whitening, relative to the mean variance."
    )
    mirror: bool = _setting(
        False, "Export", "Embed each photo and its mirror image: better, at twice the time."
    )
    baseline: bool = _setting(
        True, "Export", "Also measure the backbone as it was before training, whitened."
    )
    transductive: bool = _setting(
        False, "Export", "Also report the paper's normalised spectral clustering of the test set."
    )
    save_embeddings: bool = _setting(
        False, "Export", "Also save embeddings and labels of the training photos as .npy."
    )

    seed: int = _setting(0, "Machine", "Seed of everything random.")
    device: Device = _setting("auto", "Machine", "auto, cpu or cuda.")
    precision: Precision = _setting(
        "auto", "Machine", "fp32, bf16 (autocast), or auto: bf16 on a GPU that has it."
    )
    compile: bool = _setting(
        False, "Machine", "Compile the network with torch.compile: minutes first, then faster."
    )
    workers: int | None = _setting(
        None, "Machine",
        "Processes that decode photos; 0 decodes in the training process.  "
        "[default: 0 on a CPU; on a GPU one for each core, less one]",
    )  # fmt: skip
    cache_mb: int = _setting(
        2048, "Machine", "Memory for decoded photos, MB a process; 0 decodes anew."
    )
    feature_cache: str | None = _setting(
        None, "Machine",
        "Folder for the features of a frozen backbone, used again by later runs.  "
        "[default: in the run folder]",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for the first value out of range."""
        least = {
            "dim": 1, "size": 32, "train_size": 32, "epochs": 1, "batch_size": 4,
            "images_per_class": 2, "chunk_size": 1, "activations_mb": 0, "lr": 0,
            "backbone_lr": 0, "proxy_lr": 0, "weight_decay": 0, "ridge": 0, "whitening_ridge": 0,
            "validation_classes": 0, "workers": 0, "cache_mb": 0, "seed": 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise _out_of_range(name, value, f"at least {bound}")
        for name in ("warmup", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise _out_of_range(name, getattr(self, name), "0 … 1")
        for name in ("min_area", "layer_decay", "feature_power"):
            if not 0 < getattr(self, name) <= 1:
                raise _out_of_range(name, getattr(self, name), "above 0, at most 1")
        if not 0 <= self.average < 1:
            raise _out_of_range("average", self.average, "at least 0, below 1")
        for name, kind in get_type_hints(type(self)).items():
            choices = get_args(kind)
            literal = get_origin(kind) is Literal
            if literal and getattr(self, name) not in choices:
                raise _out_of_range(name, getattr(self, name), " or ".join(choices))
        # Here rather than in the loss: an hour may lie between the two.
        parse_loss(self.loss)
        check_batch(self.loss, self.batch_size, self.dim)
        if self.solver == "closed-form" and (self.method != "last-layer" or self.loss != "dscl"):
            raise InvalidArgumentError(
                "--solver closed-form solves DSCL for the head on frozen features alone, and this "
                f"is --method {self.method} with --loss {self.loss}: add --method last-layer "
                "--loss dscl, or leave --solver away."
            )

    @property
    def trains_batch_norm(self) -> bool:
        """Whether BatchNorm statistics are learned rather than kept."""
        return self.batch_norm == "train" or (self.batch_norm == "auto" and self.weights == "none")

    @property
    def may_change_on_resume(self) -> frozenset[str]:
        """Settings of speed and memory: the result is the same, up to rounding, with others."""
        names = {"activations_mb", "workers", "cache_mb"}
        # BatchNorm in training mode normalises by chunk.
        chunks = set() if self.trains_batch_norm else {"chunk_size", "shrink_chunks"}
        return frozenset(names | chunks)

    @property
    def solves_head(self) -> bool:
        """Whether the head starts from the closed form.

        Peers of DSCL lose by it: their proxies and margins do not fit its coordinates.
        """
        if self.head_init != "auto":
            return self.head_init == "closed-form"
        return self.method == "end-to-end" and self.loss == "dscl" and self.weights != "none"

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
