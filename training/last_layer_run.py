"""Runs on features that do not change: the head alone is trained, or its start solved for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.data import Photos
from training.distributed import World
from training.finish import frozen_features
from training.last_layer import fit_closed_form, fit_iterative
from training.machine import Machine
from training.network import EmbeddingNetwork
from training.preparation import plan_steps
from training.run import Run

__all__ = ["solve_head", "train_last_layer"]

Echo = Callable[[str], object]


def solve_head(
    run: Run, photos: Photos, network: EmbeddingNetwork, machine: Machine, world: World
) -> None:
    """Start from the head that is best for the features as they are, in all processes alike."""
    if world.main:
        features = frozen_features(run, photos, network.backbone, machine)
        projection = fit_closed_form(
            features, photos.labels, dim=run.settings.dim, ridge=run.settings.closed_form_ridge
        )
        projection.copy_to(network.head)
    if world.size > 1:
        with torch.no_grad():
            for parameter in network.head.parameters():
                if not world.main:
                    parameter.zero_()
                world.sum_([parameter])


def train_last_layer(
    run: Run, photos: Photos, network: EmbeddingNetwork, machine: Machine, *, echo: Echo
) -> None:
    """Train the head alone, on features that are computed once."""
    settings = run.settings
    features = frozen_features(run, photos, network.backbone, machine)
    n, p = features.shape
    if settings.solver == "closed-form":
        projection = fit_closed_form(
            features, photos.labels, dim=settings.dim, ridge=settings.closed_form_ridge
        )
        projection.copy_to(network.head)
        echo(f"Solved for {settings.dim} dimensions of the {p} features of {n} photos.")
        return

    criterion, sampler, random_level = plan_steps(settings, photos)
    start = None
    if settings.solves_head:
        start = fit_closed_form(
            features, photos.labels, dim=settings.dim, ridge=settings.closed_form_ridge
        )
    run.forget_metrics(from_epoch=0)
    with (
        tqdm(total=settings.epochs, unit="epoch", desc="Last layer", disable=None) as bar,
        SummaryWriter(str(run.tensorboard_folder)) as writer,
    ):
        floor = "" if random_level is None else f", random {random_level:.3f}"

        def record(epoch: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}{floor}")
            bar.update()
            writer.add_scalar("loss/epoch", loss, epoch)
            run.log({"epoch": epoch, "loss": loss, "random_level": random_level,
                     "images_per_s": None})  # fmt: skip

        projection = fit_iterative(
            features,
            photos.labels,
            criterion,
            dim=settings.dim,
            epochs=settings.epochs,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            seed=settings.seed,
            sampler=sampler,
            start=start,
            device=machine.device,
            on_epoch=record,
        )
    projection.copy_to(network.head)
    echo(f"Trained {settings.dim} dimensions on the {p} features of {n} photos.")
