"""What follows the last step: whitening, figures on classes never learned from, export, report.

Also the figures on the way: recall on held-out classes after an epoch, and what the backbone
reached before it learned anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from index.files import write_atomically
from index.metrics import RetrievalMetrics, evaluate
from index.model import Model, ModelCard
from training.augment import in_order
from training.backbones import Backbone
from training.data import Dataset, Photos
from training.embed import BATCH, embed
from training.evaluation import KS, row, write_evaluation
from training.export import export
from training.feature_cache import cached_features
from training.inference import InferenceNetwork, Views, chosen
from training.inputs import evaluation_loader, side, split
from training.machine import Machine
from training.network import EmbeddingNetwork
from training.quantize import add_int8, calibration_photos, measure
from training.report import write_report
from training.run import Run
from training.scaled_convolutions import unfold_batch_norm
from training.settings import Embedding, TrainSettings
from training.transductive import evaluate_transductive
from training.whitening import Whitening

__all__ = ["finish", "frozen_features", "measure_baseline", "recalls", "validate"]

Echo = Callable[[str], object]

#: Ridge of the baseline's whitening: near the best for features of ImageNet networks.
BASELINE_RIDGE = 0.1


def finish(
    run: Run,
    dataset: Dataset,
    network: EmbeddingNetwork,
    machine: Machine,
    *,
    int8: bool = False,
    echo: Echo = print,
) -> ModelCard:
    """Whiten with the training photos, measure on the test classes once, export and report.

    With ``int8``, the model folder also gets a graph in that precision, measured likewise.
    """
    settings = run.settings
    # Classes that judge have no part in the whitening either.
    fitted = dataset.train if dataset.test is not None else split(dataset, settings)[0]
    known = _features(run, fitted, network, machine, "Whitening")
    # The embedding that is exported, and after it the other one that the network has to offer
    order: list[Embedding] = sorted(
        get_args(Embedding), key=lambda embedding: embedding != settings.embedding
    )
    whitenings = {
        embedding: _whitening(settings, _chosen(settings, known, network, embedding), fitted.labels)
        for embedding in order
    }
    whitening = whitenings[settings.embedding]

    photos, queries, protocol = _judges(dataset, settings)
    measured: dict[str, Any] = {}
    if photos is not None:
        tested = _features(run, photos, network, machine, "Test classes")
        judged = {
            embedding: _unit(
                whitenings[embedding].apply(_chosen(settings, tested, network, embedding))
            )
            for embedding in order
        }
        nmi = settings.transductive
        rows = [
            row(
                f"{settings.loss}, {_describe(embedding, judged[embedding].shape[1])}",
                evaluate(judged[embedding], photos.labels, ks=KS, clustering=nmi, queries=queries),
            )
            for embedding in order
        ]
        measured = {key: value for key, value in rows[0].items() if key != "name"}
        if settings.transductive:
            raw = _chosen(settings, tested, network).numpy()
            spectral = evaluate_transductive(raw, photos.labels, ks=KS, queries=queries)
            name = f"{settings.loss}, transductive (normalised spectral clustering)"
            rows.append(row(name, spectral))
        rows += _baseline_rows(run)
        for line in rows:
            echo(f"Test ({protocol}), {line['name']}: {_figures(line)}")
        also: dict[str, NDArray[Any]] = {}
        if settings.save_embeddings:
            trained = whitening.apply(_chosen(settings, known, network))
            also = {"train_embeddings": _unit(trained), "train_labels": fitted.labels}
        write_evaluation(
            run.evaluation_folder,
            protocol=protocol,
            photos=photos,
            embeddings=judged[settings.embedding],
            rows=rows,
            queries=queries,
            also=also,
        )
    unfold_batch_norm(network.backbone.network)  # ONNX Runtime does so by itself, once
    card = export(
        InferenceNetwork.trained(
            network,
            whitening,
            embedding=settings.embedding,
            mirror=settings.mirror,
            power=settings.feature_power,
        ),
        run.model_folder,
        name=_name(settings),
        height=side(settings),
        width=side(settings),
        resize=settings.resize,
        facts={
            "loss": settings.loss,
            "dataset": dataset.name,
            "protocol": protocol,
            "metrics": measured,
            "settings": settings.to_dict(),
            "seed": settings.seed,
        },
        weights=network.state_dict(),
    )
    echo(f"Exported {run.model_folder} ({card.sha256[:12]}…), the same as the network.")
    if int8:
        card = add_int8(
            run.model_folder,
            calibration_photos(evaluation_loader(settings, fitted)),
            measured=lambda model: _figures_of(model, settings, photos, queries, machine),
        )
        figures = card.precisions["int8"].metrics
        if photos is not None:
            echo(f"Test ({protocol}), int8: {_figures(figures)}")
        echo(f"Added int8: mean cosine similarity to fp32 is {figures['cosine']:.3f}.")
    echo(f"Report: {write_report(run.path)}")
    shutil.rmtree(_own_features(run), ignore_errors=True)
    return card


def validate(
    settings: TrainSettings,
    network: EmbeddingNetwork,
    photos: Photos,
    held_out: Photos,
    machine: Machine,
) -> RetrievalMetrics:
    """Figures on classes held out of training, whitened with some of the training photos."""
    width = settings.dim if settings.embedding == "head" else network.backbone.features
    # Enough photos for the covariance, spread over all classes.
    keep = np.zeros(len(photos), np.bool_)
    keep[np.linspace(0, len(photos) - 1, min(len(photos), max(8 * width, 1))).astype(int)] = True
    some = photos.subset(keep)
    module = Views(network.backbone, mirror=settings.mirror)

    def features(of: Photos, description: str) -> Tensor:
        loader = evaluation_loader(settings, of)
        views = embed(module, loader, machine.device, description, workers=machine.workers)
        return _chosen(settings, views, network)

    whitening = _whitening(settings, features(some, "Whitening"), some.labels)
    embeddings = _unit(whitening.apply(features(held_out, "Held-out classes")))
    return evaluate(embeddings, held_out.labels, ks=KS)


def measure_baseline(
    run: Run, dataset: Dataset, backbone: Backbone, machine: Machine, *, echo: Echo
) -> None:
    """Figures of the backbone as it is, whitened; once in a run."""
    photos, queries, protocol = _judges(dataset, run.settings)
    if photos is None or _baseline_file(run).exists():
        return
    fitted = dataset.train if dataset.test is not None else split(dataset, run.settings)[0]
    known = torch.tensor(frozen_features(run, fitted, backbone, machine))
    whitening = Whitening.fit(known, ridge=BASELINE_RIDGE)
    features = torch.tensor(frozen_features(run, photos, backbone, machine))
    metrics = evaluate(
        _unit(whitening.apply(features)),
        photos.labels,
        ks=KS,
        clustering=run.settings.transductive,
        queries=queries,
    )
    line = row("frozen backbone, whitened", metrics)
    write_atomically(_baseline_file(run), (json.dumps(line) + "\n").encode())
    echo(f"Before training ({protocol}): {_figures(line)}")


def frozen_features(
    run: Run, photos: Photos, backbone: Backbone, machine: Machine
) -> NDArray[np.floating[Any]]:
    """Features (n, p) of a backbone that has not been trained, from the cache if they are there."""
    folder = run.settings.feature_cache
    return cached_features(
        backbone,
        evaluation_loader(run.settings, photos),
        folder=_own_features(run) if folder is None else Path(folder),
        device=machine.device,
        description="Frozen features",
        workers=machine.workers,
    )


def recalls(metrics: RetrievalMetrics) -> str:
    """As people read them."""
    return ", ".join(f"R@{k} {100 * value:.1f} %" for k, value in metrics.recall.items())


def _judges(
    dataset: Dataset, settings: TrainSettings
) -> tuple[Photos | None, NDArray[np.bool_] | None, str]:
    """Photos that judge, which of them are queries, and the protocol's name."""
    if dataset.test is not None:
        return dataset.test, dataset.queries, dataset.protocol
    held_out = split(dataset, settings)[1]
    return held_out, None, f"{dataset.protocol}, held-out training classes"


def _features(
    run: Run, photos: Photos, network: EmbeddingNetwork, machine: Machine, description: str
) -> Tensor:
    """float32 (n, v, p) of each view, as the exported model computes them."""
    settings = run.settings
    if settings.method == "last-layer" and not settings.mirror:
        return torch.tensor(frozen_features(run, photos, network.backbone, machine))[:, None]
    return embed(
        Views(network.backbone, mirror=settings.mirror),
        evaluation_loader(settings, photos),
        machine.device,
        description,
        workers=machine.workers,
    )


def _chosen(
    settings: TrainSettings,
    views: Tensor,
    network: EmbeddingNetwork,
    embedding: Embedding | None = None,
) -> Tensor:
    """What is whitened: of the embedding that is exported, or of another."""
    return chosen(
        views, network.head, embedding or settings.embedding, power=settings.feature_power
    )


def _figures_of(
    model: Model,
    settings: TrainSettings,
    photos: Photos | None,
    queries: NDArray[np.bool_] | None,
    machine: Machine,
) -> dict[str, Any]:
    """Of an exported model, on the photos that judge."""
    if photos is None:
        return {}
    loader = evaluation_loader(settings, photos)
    batches = in_order(loader, batch_size=BATCH, workers=machine.workers)
    total = -(-len(loader) // BATCH)
    with tqdm(batches, total=total, desc="Test classes, int8", disable=None) as bar:
        pixels = (images.numpy() for images in bar)
        line = row("int8", measure(model, pixels, photos.labels, queries=queries))
    return {key: value for key, value in line.items() if key != "name"}


def _whitening(settings: TrainSettings, raw: Tensor, labels: NDArray[np.int64]) -> Whitening:
    if settings.whitening == "within-class":
        return Whitening.fit_within(raw, labels, ridge=settings.whitening_ridge)
    return Whitening.fit(raw, ridge=settings.whitening_ridge)


def _describe(embedding: Embedding, width: int) -> str:
    return f"{width} values" if embedding == "head" else f"backbone features, {width} values"


def _own_features(run: Run) -> Path:
    """Where frozen features lie until the run ends, unless the settings name a cache."""
    return run.path / "features"


def _baseline_file(run: Run) -> Path:
    return run.path / "baseline.json"


def _baseline_rows(run: Run) -> list[dict[str, Any]]:
    if not _baseline_file(run).exists():
        return []
    return [json.loads(_baseline_file(run).read_text(encoding="utf-8"))]


def _figures(line: dict[str, Any]) -> str:
    parts = [f"R@{k} {100 * value:.1f} %" for k, value in line["recall"].items()]
    parts.append(f"MAP@R {100 * line['map_at_r']:.1f} %")
    if line["nmi"] is not None:
        parts.append(f"NMI {line['nmi']:.3f}")
    return ", ".join(parts)


def _name(settings: TrainSettings) -> str:
    loss = settings.loss.split("(")[0]
    what = str(settings.dim) if settings.embedding == "head" else "features"
    return f"{settings.backbone.removeprefix('timm:')}-{loss}-{what}"


def _unit(embeddings: Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = F.normalize(embeddings).float().numpy()
    return unit
