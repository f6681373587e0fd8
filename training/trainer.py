"""The training loop, flat and explicit, and what follows it: whitening, figures, export.

One step is one logical batch of P classes × K photos, embedded in chunks by two passes. A run can
be stopped at any moment and resumed: batches, augmentation and dropout depend only on the seed, the
epoch and the step, so only weights and optimizer need to be remembered.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from index.errors import DsclError
from index.metrics import RetrievalMetrics, evaluate
from index.model import ModelCard
from training.augment import Augmentation, PhotoLoader, batches
from training.data import Dataset, Photos, check_photos, check_trainable, hold_out, load_dataset
from training.embed import embed
from training.export import InferenceNetwork, export
from training.losses import DeepSpectralClusteringLoss, NonFiniteEmbeddingsError
from training.memory import keep_freed_memory
from training.network import Backbone, EmbeddingNetwork, default_size
from training.run import Checkpoint, Run
from training.sampler import ClassBalancedBatches, plan_batch
from training.settings import TrainSettings
from training.stop import Stopped, stop_on_signals
from training.two_pass import backward
from training.whitening import Whitening

__all__ = ["NonFiniteError", "finish", "resume_network", "train"]

KS = (1, 2, 4, 8)

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


def train(run: Run, *, echo: Echo = print) -> ModelCard:
    """Train until the last epoch, from the last checkpoint if there is one, and export.

    Raises:
        Stopped: by SIGINT or SIGTERM; the checkpoint is saved.
        NonFiniteError: the checkpoint of the last good step is saved.
        DsclError: data, weights or settings that cannot be used.
    """
    settings = run.settings
    device = choose_device(settings)
    # bf16 keeps float32's range, so it needs no loss scaling.
    autocast = torch.bfloat16 if device.type == "cuda" else None
    torch.manual_seed(settings.seed)
    keep_freed_memory()

    # Data
    dataset = _load(settings, echo)
    photos, held_out = _split(dataset, settings)
    classes_per_batch, images_per_class = plan_batch(
        settings.batch_size, settings.images_per_class, len(photos.classes)
    )
    sampler = ClassBalancedBatches(
        photos.labels,
        classes_per_batch=classes_per_batch,
        images_per_class=images_per_class,
        seed=settings.seed,
    )
    n = classes_per_batch * images_per_class
    steps = len(sampler)
    loader = _loader(
        settings,
        photos,
        Augmentation(min_area=settings.min_area, flip=settings.flip, color=settings.color),
    )

    # Network, loss, optimizer
    network = _network(settings).to(device)
    loss = DeepSpectralClusteringLoss(ridge=settings.ridge)
    random_level = loss.random_level(n, settings.dim, classes_per_batch)
    optimizer = torch.optim.AdamW(_parameter_groups(network, settings))
    peak_rates = [group["lr"] for group in optimizer.param_groups]

    # Resume
    start = Checkpoint(epoch=0, step=0, losses=[], network={}, optimizer={})
    if run.checkpoint_file.exists():
        start = run.load()
        network.load_state_dict(start.network)
        optimizer.load_state_dict(start.optimizer)
        run.forget_metrics(from_epoch=start.epoch)
        echo(f"Continuing after {start.epoch} epochs and {start.step} steps.")

    echo(
        f"Training {settings.backbone} ({settings.weights} weights) on {dataset.protocol}: "
        f"{len(photos)} photos of {len(photos.classes)} classes, {len(held_out or ())} photos of "
        f"{len(held_out.classes) if held_out else 0} classes held out.\n"
        f"A step is {classes_per_batch} classes × {images_per_class} photos = {n} in chunks of "
        f"{settings.chunk_size}, {steps} steps an epoch, {settings.epochs} epochs, on {device}. "
        f"A random embedding has loss {random_level:.3f}."
    )
    stream = batches(
        loader,
        sampler,
        epochs=range(start.epoch, settings.epochs),
        first_step=start.step,
        workers=settings.workers,
        pin_memory=device.type == "cuda",
    )
    losses = list(start.losses)
    with stop_on_signals(network), SummaryWriter(str(run.tensorboard_folder)) as writer:
        for epoch in range(start.epoch, settings.epochs):
            first = start.step if epoch == start.epoch else 0
            losses = losses[:first]
            _train_mode(network, settings)
            bar = tqdm(
                total=steps * n,
                initial=first * n,
                unit="photo",
                desc=f"Epoch {epoch + 1}/{settings.epochs}",
                disable=None,
            )
            began = time.monotonic()
            with bar:
                for _, step, images, labels in islice(stream, steps - first):
                    done = (epoch * steps + step) / (settings.epochs * steps)
                    for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                        group["lr"] = peak * schedule(done, settings.warmup)
                    # Dropout of step s is the same whether or not the run was resumed before it.
                    torch.manual_seed(hash((settings.seed, epoch, step)) % 2**63)
                    buffers = {key: value.clone() for key, value in network.named_buffers()}
                    optimizer.zero_grad(set_to_none=True)
                    try:
                        value = _gradient(
                            network, images, labels, loss, settings.chunk_size, device, autocast
                        )
                    except (Stopped, NonFiniteError) as error:
                        # The step is not taken: all as it was before it.
                        network.load_state_dict(buffers, strict=False)
                        run.save(_checkpoint(epoch, step, losses, network, optimizer))
                        error.add_note(f"Saved {run.checkpoint_file} as of before this step.")
                        if isinstance(error, NonFiniteError):
                            raise error.at(epoch, step, labels, photos) from error
                        raise
                    optimizer.step()
                    losses.append(value)
                    writer.add_scalar("loss/step", value, epoch * steps + step)
                    bar.set_postfix_str(f"loss {value:.3f}, random {random_level:.3f}")
                    bar.update(n)
            seconds = time.monotonic() - began
            run.save(_checkpoint(epoch, steps, losses, network, optimizer))

            # Recall on classes the network has not learned from
            record: dict[str, Any] = {
                "epoch": epoch + 1,
                "loss": float(np.mean(losses)),
                "random_level": random_level,
                "images_per_s": (steps - first) * n / seconds if steps > first else None,
            }
            line = f"Epoch {epoch + 1}/{settings.epochs}: loss {record['loss']:.3f}"
            if held_out is not None:
                metrics = _validate(network, photos, held_out, settings, device)
                record["recall"] = metrics.recall
                record["map_at_r"] = metrics.map_at_r
                for k, recall in metrics.recall.items():
                    writer.add_scalar(f"recall/{k}", recall, epoch + 1)
                line += f", held-out classes {_recalls(metrics)}"
            if record["images_per_s"]:
                line += f", {record['images_per_s']:.0f} photos/s"
            echo(line)
            writer.add_scalar("loss/epoch", record["loss"], epoch + 1)
            writer.add_scalar("loss/random", random_level, epoch + 1)
            run.log(record)
        return finish(run, dataset, network, echo=echo)


def finish(
    run: Run, dataset: Dataset, network: EmbeddingNetwork, *, echo: Echo = print
) -> ModelCard:
    """Whiten with the training photos, measure on the test classes once, and export."""
    settings = run.settings
    device = next(network.parameters()).device
    side = _side(settings)
    embeddings = _embed(settings, network, dataset.train, device, "Whitening")
    whitening = Whitening.fit(embeddings, ridge=settings.whitening_ridge)
    measured: dict[str, Any] = {}
    if dataset.test is not None:
        test = _embed(settings, network, dataset.test, device, "Test classes")
        metrics = evaluate(_unit(whitening.apply(test)), dataset.test.labels, ks=KS)
        measured = dataclasses.asdict(metrics)
        echo(
            f"Test ({dataset.protocol}): {_recalls(metrics)}, MAP@R {100 * metrics.map_at_r:.1f} %"
        )
    card = export(
        InferenceNetwork.trained(network, whitening),
        run.model_folder,
        name=f"{settings.backbone}-dscl-{settings.dim}",
        height=side,
        width=side,
        resize=settings.resize,
        facts={
            "loss": "dscl",
            "dataset": dataset.name,
            "protocol": dataset.protocol,
            "metrics": measured,
            "settings": settings.to_dict(),
            "seed": settings.seed,
        },
        weights=network.state_dict(),
    )
    echo(f"Exported {run.model_folder} ({card.sha256[:12]}…), the same as the network.")
    return card


def resume_network(run: Run, *, echo: Echo = print) -> tuple[Dataset, EmbeddingNetwork]:
    """Data and network of a run at its last checkpoint, ready for ``finish``."""
    dataset = _load(run.settings, echo)
    network = _network(dataclasses.replace(run.settings, weights="none"))
    network.load_state_dict(run.load().network)
    return dataset, network.to(choose_device(run.settings))


def choose_device(settings: TrainSettings) -> torch.device:
    """The device that ``settings`` ask for; ``auto`` takes a GPU where there is one.

    Raises:
        DsclError: CUDA is asked for and not there.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise DsclError("--device is cuda, and torch finds no CUDA device: use --device cpu.")
    wanted = ("cuda" if available else "cpu") if settings.device == "auto" else settings.device
    return torch.device(wanted)


def schedule(done: float, warmup: float) -> float:
    """Share of the peak learning rate after share ``done`` of the steps: linear up, cosine down."""
    if done < warmup:
        # From a twentieth: a rate of 0 would waste the first step.
        return 0.05 + 0.95 * done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) if warmup < 1 else 1.0


def _load(settings: TrainSettings, echo: Echo) -> Dataset:
    """The data set, less what cannot be read."""
    dataset = load_dataset(
        Path(settings.data),
        train_classes=settings.train_classes,
        crop_boxes=settings.crop_boxes,
    )
    for note in dataset.notes:
        echo(f"Note: {note}")
    parts: dict[str, Photos | None] = {"train": dataset.train, "test": dataset.test}
    for name, photos in parts.items():
        if photos is None:
            continue
        readable, unreadable = _check(photos, f"Checking {name} photos")
        for path, reason in unreadable[:10]:
            echo(f"Skipped {path}: {reason}")
        if unreadable:
            echo(f"Skipped {len(unreadable)} of {len(photos)} {name} photos.")
        parts[name] = readable
    train = parts["train"]
    assert train is not None  # every data set has training photos
    check_trainable(train)
    return dataclasses.replace(dataset, train=train, test=parts["test"])


def _check(photos: Photos, description: str) -> tuple[Photos, list[tuple[Path, str]]]:
    with tqdm(total=len(photos), unit="photo", desc=description, disable=None) as bar:
        return check_photos(photos, lambda done, total: bar.update())


def _split(dataset: Dataset, settings: TrainSettings) -> tuple[Photos, Photos | None]:
    """Photos to learn from, and photos of other training classes to watch recall on."""
    classes = len(dataset.train.classes)
    count = settings.validation_classes
    if count is None:
        count = max(2, round(classes / 10)) if classes >= 8 else 0
    if count == 0:
        return dataset.train, None
    return hold_out(dataset.train, count)


def _side(settings: TrainSettings) -> int:
    return settings.size or default_size(settings.backbone)


def _loader(
    settings: TrainSettings, photos: Photos, augmentation: Augmentation | None = None
) -> PhotoLoader:
    side = _side(settings)
    return PhotoLoader(
        photos,
        height=side,
        width=side,
        mode=settings.resize,
        augmentation=augmentation,
        cache_bytes=settings.cache_mb * 2**20 if augmentation else 0,
    )


def _embed(
    settings: TrainSettings,
    network: EmbeddingNetwork,
    photos: Photos,
    device: torch.device,
    description: str,
) -> Tensor:
    loader = _loader(settings, photos)
    return embed(network, loader, device, description, workers=settings.workers)


def _network(settings: TrainSettings) -> EmbeddingNetwork:
    backbone = Backbone(settings.backbone, weights=settings.weights)
    backbone.check_size(_side(settings))
    network = EmbeddingNetwork(backbone, settings.dim)
    if settings.freeze_until is not None:
        network.freeze_until(settings.freeze_until)
    return network


def _parameter_groups(network: EmbeddingNetwork, settings: TrainSettings) -> list[dict[str, Any]]:
    """Head and backbone at their own rates; no decay on biases and normalisation."""
    groups = []
    for module, rate in (
        (network.head, settings.lr),
        (network.backbone, settings.backbone_lr),
    ):
        parameters = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        for part, decay in ((matrices, settings.weight_decay), (vectors, 0.0)):
            if part:
                groups.append({"params": part, "lr": rate, "weight_decay": decay})
    return groups


def _train_mode(network: nn.Module, settings: TrainSettings) -> None:
    network.train()
    if not settings.trains_batch_norm:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _validate(
    network: EmbeddingNetwork,
    photos: Photos,
    held_out: Photos,
    settings: TrainSettings,
    device: torch.device,
) -> RetrievalMetrics:
    # Enough photos for the covariance, spread over all classes.
    keep = np.zeros(len(photos), np.bool_)
    keep[np.linspace(0, len(photos) - 1, min(len(photos), 8 * settings.dim)).astype(int)] = True
    known = _embed(settings, network, photos.subset(keep), device, "Whitening")
    whitening = Whitening.fit(known, ridge=settings.whitening_ridge)
    embeddings = _embed(settings, network, held_out, device, "Held-out classes")
    return evaluate(_unit(whitening.apply(embeddings)), held_out.labels, ks=KS)


def _gradient(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: nn.Module,
    chunk_size: int,
    device: torch.device,
    autocast: torch.dtype | None,
) -> float:
    """Leave the gradient in the parameters and return the loss.

    Raises:
        NonFiniteError: an embedding, the loss or the gradient is NaN or infinite.
    """
    try:
        value = backward(
            network, images, labels, loss, chunk_size=chunk_size, device=device, autocast=autocast
        ).item()
    except NonFiniteEmbeddingsError as error:
        raise NonFiniteError(str(error)) from error
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise NonFiniteError(f"the loss is {value} and the norm of its gradient {norm}.")
    return value


def _checkpoint(
    epoch: int,
    step: int,
    losses: list[float],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Checkpoint:
    return Checkpoint(
        epoch=epoch,
        step=step,
        losses=list(losses),
        network=network.state_dict(),
        optimizer=optimizer.state_dict(),
    )


def _unit(embeddings: Tensor) -> Any:
    return nn.functional.normalize(embeddings).float().numpy()


def _recalls(metrics: RetrievalMetrics) -> str:
    return ", ".join(f"R@{k} {100 * value:.1f} %" for k, value in metrics.recall.items())
