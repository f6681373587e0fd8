"""The training loop, flat and explicit.

One step is one logical batch of P classes × K photos, embedded in chunks by two passes. A run can
be stopped at any moment and resumed: batches, augmentation and dropout depend only on the seed, the
epoch and the step, so only weights and optimizer need to be remembered. What follows the last step
is in ``training.finish``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from index.errors import DsclError, InvalidArgumentError
from index.model import ModelCard
from training.augment import Batch, batches
from training.criteria import Criterion
from training.data import Photos
from training.distributed import World
from training.finish import finish, measure_baseline, recalls, validate
from training.inputs import load, split, training_loader
from training.last_layer_run import solve_head, train_last_layer
from training.losses import NonFiniteEmbeddingsError
from training.machine import Machine
from training.memory import keep_freed_memory
from training.network import EmbeddingNetwork
from training.optimizer import parameter_groups
from training.preparation import build_network, plan_steps
from training.run import Best, Checkpoint, Run
from training.settings import TrainSettings
from training.stop import Stopped, StopRequest, stop_on_signals
from training.two_pass import backward

__all__ = ["ChunkTooLargeError", "NonFiniteError", "schedule", "train"]

Echo = Callable[[str], object]


class NonFiniteError(DsclError):
    """An embedding, the loss or its gradient became NaN or infinite."""

    code = "training_diverged"

    def at(self, epoch: int, step: int, labels: Tensor, photos: Photos) -> NonFiniteError:
        """The same error with where it happened and the way out."""
        names = [photos.classes[label] for label in labels.unique().tolist()]
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        return NonFiniteError(
            f"epoch {epoch + 1}, step {step + 1}, classes {shown}: {self} The checkpoint of the "
            "last good step is kept. Start again with lower --lr and --backbone-lr, or a higher "
            "--ridge."
        )


class ChunkTooLargeError(DsclError):
    """The GPU has no room for the activations of a chunk."""

    code = "gpu_out_of_memory"


def train(run: Run, *, echo: Echo = print) -> ModelCard | None:
    """Train until the last epoch, from the last checkpoint if there is one, and export.

    Under ``torchrun`` or ``dscl train --nproc`` all processes call this; the main one prints and
    writes.

    Returns:
        The exported model's card; None in the other processes.

    Raises:
        Stopped: by SIGINT or SIGTERM; the checkpoint is saved.
        NonFiniteError: the checkpoint of the last good step is saved.
        ChunkTooLargeError: likewise.
        DsclError: data, weights or settings that cannot be used.
    """
    settings = run.settings
    machine = Machine.choose(settings, processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    keep_freed_memory()
    with World.join(machine.device) as world:
        say: Echo = echo if world.main else lambda message: None
        if settings.method == "last-layer" and world.size > 1:
            raise InvalidArgumentError(
                f"--method last-layer with {world.size} processes: it takes seconds in one. Leave "
                "--nproc away."
            )
        torch.manual_seed(settings.seed)
        dataset = load(settings, say)
        photos, held_out = split(dataset, settings)
        say(f"Computing on {machine.describe()}.")
        if world.main:
            run.note_device(machine.describe())
        network = build_network(settings).to(world.device)
        # Processes that train together have to stop at the same step, and what is compiled cannot
        # be left: there a request is noted, and met before the next step.
        anywhere = world.size == 1 and not settings.compile
        with stop_on_signals(network.backbone if anywhere else None) as stop:
            if world.main and settings.baseline:
                measure_baseline(run, dataset, network.backbone, machine, echo=say)
            if settings.method == "last-layer":
                train_last_layer(run, photos, network, machine, stop, echo=say)
            else:
                if settings.solves_head and not run.checkpoint_file.exists():
                    solve_head(run, photos, network, machine, world)
                network = _train_end_to_end(
                    run, dataset.protocol, photos, held_out, network, machine, world, stop, echo=say
                )
            return finish(run, dataset, network, machine, echo=say) if world.main else None


def _train_end_to_end(
    run: Run,
    protocol: str,
    photos: Photos,
    held_out: Photos | None,
    network: EmbeddingNetwork,
    machine: Machine,
    world: World,
    stop: StopRequest,
    *,
    echo: Echo,
) -> EmbeddingNetwork:
    """All epochs; the network to judge and export."""
    settings = run.settings
    device = world.device

    # Loss, batches, optimizer
    criterion, sampler, random_level = plan_steps(settings, photos)
    criterion.to(device)
    n = sampler.classes_per_batch * sampler.images_per_class
    steps = len(sampler)
    chunk_size = settings.chunk_size
    groups = parameter_groups(
        network,
        lr=settings.lr,
        backbone_lr=settings.backbone_lr,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )
    if proxies := list(criterion.parameters()):
        groups.append({"params": proxies, "lr": settings.proxy_lr, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    average = None
    if settings.average:
        average = AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(settings.average), use_buffers=True
        )
    judged = network if average is None else cast(EmbeddingNetwork, average.module)

    def checkpoint(epoch: int, step: int, losses: list[float]) -> Checkpoint:
        return Checkpoint(
            epoch=epoch,
            step=step,
            losses=list(losses),
            network=network.state_dict(),
            optimizer=optimizer.state_dict(),
            criterion=criterion.state_dict(),
            average=None if average is None else average.state_dict(),
        )

    # Resume
    start = Checkpoint(
        epoch=0, step=0, losses=[], network={}, optimizer={}, criterion={}, average=None
    )
    if run.checkpoint_file.exists():
        start = run.load()
        network.load_state_dict(start.network)
        optimizer.load_state_dict(start.optimizer)
        criterion.load_state_dict(start.criterion)
        if average is not None and start.average is not None:
            average.load_state_dict(start.average)
        if world.main:
            run.forget_metrics(from_epoch=start.epoch)
        echo(f"Continuing after {start.epoch} epochs and {start.step} steps.")
    if world.main:
        run.reserve(_bytes_to_write(network, criterion, averages=average is not None))

    floor = "" if random_level is None else f" A random embedding has loss {random_level:.3f}."
    shared = "" if world.size == 1 else f", shared by {world.size} processes,"
    classes_out = len(held_out.classes) if held_out is not None else 0
    echo(
        f"Training {settings.backbone} ({settings.weights} weights) with {criterion.expression} on "
        f"{protocol}: {len(photos)} photos of {len(photos.classes)} classes, "
        f"{len(held_out or ())} photos of {classes_out} classes held out.\n"
        f"A step is {sampler.classes_per_batch} classes × {sampler.images_per_class} photos = {n}"
        f"{shared} in chunks of {chunk_size}, {steps} steps an epoch, {settings.epochs} epochs."
        f"{floor}"
    )
    stream = batches(
        training_loader(settings, photos),
        sampler,
        epochs=range(start.epoch, settings.epochs),
        first_step=start.step,
        piece=chunk_size,
        share=world.share,
        workers=machine.workers,
        pin_memory=device.type == "cuda",
    )
    batch_loss = criterion.over(world)
    compiled = cast(nn.Module, torch.compile(network)) if settings.compile else network
    losses = list(start.losses)
    best = run.best()
    best_map_at_r = -1.0 if best is None else best.map_at_r
    with SummaryWriter(str(run.tensorboard_folder)) if world.main else nullcontext() as writer:
        for epoch in range(start.epoch, settings.epochs):
            first = start.step if epoch == start.epoch else 0
            losses = losses[:first]
            _train_mode(network, settings)
            bar = tqdm(
                total=steps * n,
                initial=first * n,
                unit="photo",
                desc=f"Epoch {epoch + 1}/{settings.epochs}",
                disable=None if world.main else True,
            )
            began = time.monotonic()
            with bar:
                for batch in islice(stream, steps - first):
                    step = batch.step
                    done = (epoch * steps + step) / (settings.epochs * steps)
                    for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                        group["lr"] = peak * schedule(done, settings.warmup)
                    buffers = {key: value.clone() for key, value in network.named_buffers()}
                    try:
                        if world.any(stop.asked):
                            raise Stopped
                        while True:
                            # Dropout of step s is the same whether or not the run was resumed
                            # before it, and how often the step had to be tried.
                            torch.manual_seed(_step_seed(settings.seed, epoch, step, world.rank))
                            optimizer.zero_grad(set_to_none=True)
                            try:
                                value = _gradient(
                                    compiled, batch, batch_loss, world, machine, chunk_size
                                )
                            except torch.OutOfMemoryError as error:
                                network.load_state_dict(buffers, strict=False)
                                chunk_size = _smaller(chunk_size, settings, world, error)
                                echo(f"Out of memory: going on in chunks of {chunk_size}.")
                                continue
                            break
                    except (Stopped, NonFiniteError, ChunkTooLargeError) as error:
                        # The step is not taken: all as it was before it.
                        network.load_state_dict(buffers, strict=False)
                        if world.main:
                            run.save(checkpoint(epoch, step, losses))
                        error.add_note(f"Saved {run.checkpoint_file} as of before this step.")
                        if isinstance(error, NonFiniteError):
                            raise error.at(epoch, step, batch.labels, photos) from error
                        raise
                    optimizer.step()
                    if average is not None:
                        average.update_parameters(network)
                    losses.append(value)
                    if writer is not None:
                        writer.add_scalar("loss/step", value, epoch * steps + step)
                    bar.set_postfix_str(f"loss {value:.3f}{_floor(random_level)}")
                    bar.update(n)
            seconds = time.monotonic() - began
            if settings.trains_batch_norm:  # each process has taken statistics of its own photos
                world.average(b for name, b in network.named_buffers() if "running_" in name)
            if writer is not None:  # in the main process
                run.save(checkpoint(epoch, steps, losses))

                # Recall on classes the network has not learned from
                record: dict[str, Any] = {
                    "epoch": epoch + 1,
                    "loss": float(np.mean(losses)),
                    "random_level": random_level,
                    "images_per_s": (steps - first) * n / seconds if steps > first else None,
                }
                line = f"Epoch {epoch + 1}/{settings.epochs}: loss {record['loss']:.3f}"
                if held_out is not None:
                    metrics = validate(settings, judged, photos, held_out, machine)
                    if settings.keep == "best" and metrics.map_at_r > best_map_at_r:
                        best_map_at_r = metrics.map_at_r
                        run.save_best(Best(epoch + 1, best_map_at_r, judged.state_dict()))
                    record["recall"] = metrics.recall
                    record["map_at_r"] = metrics.map_at_r
                    for k, recall in metrics.recall.items():
                        writer.add_scalar(f"recall/{k}", recall, epoch + 1)
                    line += f", held-out classes {recalls(metrics)}"
                if record["images_per_s"]:
                    line += f", {record['images_per_s']:.0f} photos/s"
                    writer.add_scalar("images_per_s", record["images_per_s"], epoch + 1)
                echo(line)
                writer.add_scalar("loss/epoch", record["loss"], epoch + 1)
                if random_level is not None:
                    writer.add_scalar("loss/random", random_level, epoch + 1)
                run.log(record)
            world.barrier()
    if world.main and (best := run.best()) is not None:
        judged.load_state_dict(best.network)
        echo(f"The weights after epoch {best.epoch} are kept: the best on the held-out classes.")
    return judged


def _gradient(
    network: nn.Module,
    batch: Batch,
    criterion: Criterion,
    world: World,
    machine: Machine,
    chunk_size: int,
) -> float:
    """Leave the whole batch's gradient in the parameters and return its loss.

    Raises:
        NonFiniteError: an embedding, the loss or the gradient is NaN or infinite.
    """
    try:
        value = backward(
            network,
            batch.images,
            batch.labels,
            criterion,
            chunk_size=chunk_size,
            device=world.device,
            autocast=machine.autocast,
            activation_bytes=machine.activation_bytes,
        ).item()
    except NonFiniteEmbeddingsError as error:
        raise NonFiniteError(str(error)) from error
    world.sum_gradients(network.parameters())
    world.average_gradients(criterion.parameters())
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise NonFiniteError(f"the loss is {value} and the norm of its gradient {norm}.")
    return value


def _smaller(
    chunk_size: int, settings: TrainSettings, world: World, error: torch.OutOfMemoryError
) -> int:
    """Half the chunk, where the settings allow it.

    Raises:
        ChunkTooLargeError: they do not, or the chunk cannot become smaller.
    """
    half = chunk_size // 2
    if settings.shrink_chunks and half >= 1 and world.size == 1:
        torch.cuda.empty_cache()
        return half
    raise ChunkTooLargeError(
        f"the GPU has no room for chunks of {chunk_size} photos: use --chunk-size {max(1, half)} "
        "or, in one process, --shrink-chunks to go on by itself. "
        + (
            "Start again, as BatchNorm learns its statistics by chunk."
            if settings.trains_batch_norm
            else "Both go with --resume: the result stays the same."
        )
        + f" ({error})"
    ) from error


def schedule(done: float, warmup: float) -> float:
    """Share of the peak learning rate after share ``done`` of the steps: linear up, cosine down."""
    if done < warmup:
        # From a twentieth: a rate of 0 would waste the first step.
        return 0.05 + 0.95 * done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) if warmup < 1 else 1.0


def _floor(random_level: float | None) -> str:
    return "" if random_level is None else f", random {random_level:.3f}"


def _train_mode(network: nn.Module, settings: TrainSettings) -> None:
    network.train()
    if not settings.trains_batch_norm:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Of what is random in one step, but the photos."""
    return hash((seed, epoch, step, rank)) % 2**63


def _bytes_to_write(network: nn.Module, criterion: nn.Module, *, averages: bool) -> int:
    """What a run may need at once: two checkpoints, as one replaces the other, and the model."""
    weights = sum(int(t.nbytes) for t in (*network.state_dict().values(), *criterion.parameters()))
    checkpoint = weights * (3 + averages)  # AdamW keeps two numbers for each weight
    return 2 * checkpoint + 2 * weights
