"""What a run's settings say of its network, loss and batches, before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
from torch.optim.swa_utils import AveragedModel

from training.backbones import Backbone
from training.criteria import Criterion, build_criterion
from training.data import Dataset, Photos
from training.inputs import load, side
from training.machine import Machine
from training.network import EmbeddingNetwork
from training.run import Run
from training.sampler import ClassBalancedBatches, plan_batch
from training.scaled_convolutions import fold_batch_norm
from training.settings import TrainSettings

__all__ = ["build_network", "plan_steps", "resume_network"]

Echo = Callable[[str], object]


def build_network(settings: TrainSettings) -> EmbeddingNetwork:
    """The network before its first step.

    Raises:
        DsclError: backbone, weights, sizes or ``freeze_until`` that cannot be used.
    """
    backbone = Backbone(settings.backbone, weights=settings.weights, size=side(settings))
    for size in {side(settings), settings.train_size or side(settings)}:
        backbone.check_size(size)
    network = EmbeddingNetwork(backbone, settings.dim)
    if settings.freeze_until is not None:
        network.freeze_until(settings.freeze_until)
    # Both change speed alone.
    if not settings.trains_batch_norm:
        fold_batch_norm(backbone.network)
    return network.to(memory_format=torch.channels_last)


def resume_network(run: Run, *, echo: Echo = print) -> tuple[Dataset, EmbeddingNetwork, Machine]:
    """Data and network of a run, as it is exported after its last checkpoint."""
    machine = Machine.choose(run.settings)
    dataset = load(run.settings, echo)
    network = build_network(dataclasses.replace(run.settings, weights="none"))
    checkpoint = run.load()
    best = run.best()
    if best is not None:
        network.load_state_dict(best.network)
    elif checkpoint.average is None:
        network.load_state_dict(checkpoint.network)
    else:
        average = AveragedModel(network, use_buffers=True)
        average.load_state_dict(checkpoint.average)
        network = cast(EmbeddingNetwork, average.module)
    return dataset, network.to(machine.device), machine


def plan_steps(
    settings: TrainSettings, photos: Photos
) -> tuple[Criterion, ClassBalancedBatches, float | None]:
    """The loss, the batches it is given, and what a random embedding scores on one."""
    classes = len(photos.classes)
    classes_per_batch, images_per_class = plan_batch(
        settings.batch_size, settings.images_per_class, classes
    )
    sampler = ClassBalancedBatches(
        photos.labels,
        classes_per_batch=classes_per_batch,
        images_per_class=images_per_class,
        seed=settings.seed,
    )
    criterion = build_criterion(
        settings.loss, dim=settings.dim, classes=classes, ridge=settings.ridge
    )
    n = classes_per_batch * images_per_class
    return criterion, sampler, criterion.random_level(n, settings.dim, classes_per_batch)
