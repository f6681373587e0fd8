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
from training.lda import Projection
from training.machine import Machine
from training.network import EmbeddingNetwork
from training.preparation import plan_steps
from training.run import Checkpoint, Run
from training.stop import Stopped, StopRequest

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
    run: Run,
    photos: Photos,
    network: EmbeddingNetwork,
    machine: Machine,
    stop: StopRequest,
    *,
    echo: Echo,
) -> None:
    """Train the head alone, on features that are computed once.

    It takes seconds: a run that was stopped starts again, and only the result is saved.

    Raises:
        Stopped: a request was met after an epoch.
    """
    settings = run.settings
    features = frozen_features(run, photos, network.backbone, machine)
    n, p = features.shape
    if settings.solver == "closed-form":
        projection = fit_closed_form(
            features, photos.labels, dim=settings.dim, ridge=settings.closed_form_ridge
        )
        _keep(run, projection, network)
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
            if stop.asked:
                raise Stopped

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
    _keep(run, projection, network)
    echo(f"Trained {settings.dim} dimensions on the {p} features of {n} photos.")


def _keep(run: Run, projection: Projection, network: EmbeddingNetwork) -> None:
    """Put the head in its place, and save the network as that of a finished run."""
    projection.copy_to(network.head)
    run.save(
        Checkpoint(
            epoch=run.settings.epochs,
            step=0,
            losses=[],
            network=network.state_dict(),
            optimizer={},
            criterion={},
            average=None,
        )
    )
