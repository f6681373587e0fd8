"""What a run leaves behind once it has learned: figures, and the embeddings they come from."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from index.metrics import RetrievalMetrics, evaluate
from tests.training.test_trainer import PER_CLASS, interrupt_at, one_thread, open_run  # noqa: F401
from tests.training.tiny_runs import (
    Finished,
    embedded,
    end,
    finished_run,
    untrained,
    write_cars,
    write_table,
)
from training import export, trainer
from training.data import Photos
from training.inference import Views
from training.stop import Stopped
from training.whitening import Whitening

KS = (1, 2, 4, 8)
EVERYTHING: dict[str, Any] = {
    "epochs": 2, "baseline": True, "transductive": True, "save_embeddings": True,
    "whitening": "total", "whitening_ridge": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cars(tmp_path_factory.mktemp("data") / "cars")


@pytest.fixture(scope="module")
def judged(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that was asked for all figures and arrays."""
    return finished_run(tmp_path_factory.mktemp("runs") / "judged", cars, **EVERYTHING)


def judges(finished: Finished) -> Photos:
    """The photos of the test classes."""
    photos = finished.data().test
    assert photos is not None
    return photos


def assert_row(row: dict[str, Any], expected: RetrievalMetrics) -> None:
    """Equal but for rounding, which may come in another order."""
    assert row["recall"] == pytest.approx({str(k): v for k, v in expected.recall.items()})
    assert row["r_precision"] == pytest.approx(expected.r_precision)
    assert row["map_at_r"] == pytest.approx(expected.map_at_r)
    assert row["nmi"] == (None if expected.nmi is None else pytest.approx(expected.nmi))
    assert (row["queries"], row["skipped"]) == (expected.queries, expected.skipped)


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    lengths: NDArray[Any] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


# Rows


def test_the_exported_embedding_comes_first_and_the_baseline_last(judged: Finished) -> None:
    assert [row["name"] for row in judged.evaluation()["rows"]] == [
        "dscl, 4 values",
        "dscl, backbone features, 192 values",
        "dscl, transductive (normalised spectral clustering)",
        "frozen backbone, whitened",
    ]


def test_the_first_row_and_the_card_are_the_figures_of_the_saved_embeddings(
    judged: Finished,
) -> None:
    embeddings, labels = judged.saved("embeddings"), judged.saved("labels")
    first = judged.evaluation()["rows"][0]
    assert_row(first, evaluate(embeddings, labels, ks=KS, clustering=True))
    assert judged.facts["metrics"] == {k: v for k, v in first.items() if k != "name"}


def test_the_saved_embeddings_are_those_of_the_exported_network(judged: Finished) -> None:
    embeddings, photos = judged.saved("embeddings"), judges(judged)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, judged.embed(photos), rtol=0, atol=2e-5)
    assert judged.saved("labels").dtype == np.int64
    assert np.array_equal(judged.saved("labels"), photos.labels)
    values = judged.evaluation()
    assert values["classes"] == list(photos.classes)
    assert values["paths"] == [str(path) for path in photos.paths]
    assert values["boxes"] is None
    assert values["protocol"] == judged.facts["protocol"] == "folders 6/2"
    assert not (judged.run.evaluation_folder / "queries.npy").exists()


def test_the_second_row_is_of_whitened_backbone_features(judged: Finished) -> None:
    backbone = judged.trained().backbone
    train, test = (
        embedded(backbone, judged.settings, photos).astype(np.float64)
        for photos in (judged.data().train, judges(judged))
    )
    # More features than photos: the ridge keeps all of them, so by hand, in all directions.
    centred = train - train.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred / (len(train) - 1))
    scales = np.sqrt(variances.clip(0) + judged.settings.whitening_ridge * variances.mean())
    features = unit((test - train.mean(0)) @ axes / scales)
    expected = evaluate(features, judges(judged).labels, ks=KS, clustering=False)
    row = judged.evaluation()["rows"][1]
    assert row["nmi"] is not None
    assert_row({**row, "nmi": None}, expected)


def test_the_transductive_row_is_spectral_clustering_of_the_test_photos_alone(
    judged: Finished,
) -> None:
    raw = embedded(judged.trained(), judged.settings, judges(judged))
    # Whitened by themselves: the left singular vectors.
    rows = unit(PCA(whiten=True, svd_solver="full").fit_transform(raw.astype(np.float64)))
    expected = evaluate(rows, judges(judged).labels, ks=KS, clustering=True)
    assert_row(judged.evaluation()["rows"][2], expected)


def test_the_baseline_is_the_backbone_before_its_first_step(judged: Finished) -> None:
    backbone = untrained(judged.settings).backbone
    train, test = (
        torch.from_numpy(embedded(backbone, judged.settings, photos))
        for photos in (judged.data().train, judges(judged))
    )
    rows = unit(Whitening.fit(train, ridge=0.1).apply(test).numpy())
    expected = evaluate(rows, judges(judged).labels, ks=KS)
    row = judged.evaluation()["rows"][3]
    assert row["nmi"] is not None
    assert_row({**row, "nmi": None}, expected)


def test_backbone_features_come_first_where_they_are_exported(cars: Path, tmp_path: Path) -> None:
    finished = finished_run(tmp_path / "run", cars, epochs=1, embedding="features")
    rows = finished.evaluation()["rows"]
    assert [row["name"] for row in rows] == [
        "dscl, backbone features, 192 values",
        "dscl, 4 values",
    ]
    embeddings = finished.saved("embeddings")
    assert embeddings.shape == (2 * PER_CLASS, 192)
    assert_row(rows[0], evaluate(embeddings, finished.saved("labels"), ks=KS))
    expected = finished.embed(judges(finished))
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=2e-5)


def test_whitening_within_classes_mirror_images_and_a_ridge_reach_the_exported_network(
    cars: Path, tmp_path: Path
) -> None:
    finished = finished_run(
        tmp_path / "run", cars, epochs=1, whitening="within-class", whitening_ridge=0.5, mirror=True
    )
    network, train = finished.trained(), finished.data().train
    photos = judges(finished)

    def raw(of: Photos) -> torch.Tensor:
        mirrored = EmbeddingOfBoth(network)
        return torch.from_numpy(embedded(mirrored, finished.settings, of))

    fitted = Whitening.fit_within(raw(train), train.labels, ridge=0.5)
    expected = unit(fitted.apply(raw(photos)).numpy())
    for found in (finished.saved("embeddings"), finished.embed(photos)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_a_power_is_of_the_features_of_each_view_and_of_nothing_else(
    cars: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 1, "mirror": True, "whitening_ridge": 0.5}
    plain = finished_run(tmp_path / "plain", cars, embedding="features", **options)
    finished = finished_run(
        tmp_path / "run", cars, embedding="features", feature_power=0.5, **options
    )
    backbone, train = finished.trained().backbone, finished.data().train

    def raw(of: Photos) -> torch.Tensor:
        views = embedded(Views(backbone, mirror=True), finished.settings, of)
        return torch.from_numpy(np.sqrt(np.maximum(views, 0).astype(float)).mean(axis=1))

    fitted = Whitening.fit_within(raw(train), train.labels, ridge=0.5)
    expected = unit(fitted.apply(raw(judges(finished))).numpy())
    # Scores: axes along which these few photos hardly vary are each machine's own.
    scores = expected @ expected.T
    for found in (finished.saved("embeddings"), finished.embed(judges(finished))):
        np.testing.assert_allclose(found @ found.T, scores, rtol=0, atol=2e-5)
    others = plain.saved("embeddings")
    assert np.abs(others @ others.T - scores).max() > 0.01
    # The head has learned from the features as they are.
    assert finished.evaluation()["rows"][1] == plain.evaluation()["rows"][1]


class EmbeddingOfBoth(torch.nn.Module):
    """The mean of a photo's embedding and its mirror image's: the head is linear."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        both: torch.Tensor = self.network(pixels) + self.network(pixels.flip(-1))
        return both / 2


def test_figures_while_training_are_of_classes_held_out_and_whitened_with_the_others(
    judged: Finished,
) -> None:
    train = judged.data().train
    held = train.labels >= 4
    network = judged.trained()
    raw = torch.from_numpy(embedded(network, judged.settings, train))
    whitening = Whitening.fit(raw[torch.from_numpy(~held)])
    rows = unit(whitening.apply(raw[torch.from_numpy(held)]).numpy())
    expected = evaluate(rows, train.labels[held], ks=KS)
    last = judged.run.metrics()[-1]
    assert last["recall"] == pytest.approx({str(k): v for k, v in expected.recall.items()})
    assert last["map_at_r"] == pytest.approx(expected.map_at_r)


# Arrays


def test_embeddings_of_the_training_photos_are_saved_on_request(judged: Finished) -> None:
    train = judged.data().train
    found = judged.saved("train_embeddings")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, judged.embed(train), rtol=0, atol=2e-5)
    assert np.array_equal(judged.saved("train_labels"), train.labels)
    assert {file.name for file in judged.run.evaluation_folder.iterdir()} == {
        "evaluation.json", "embeddings.npy", "labels.npy", "train_embeddings.npy",
        "train_labels.npy",
    }  # fmt: skip


# Protocols


def test_queries_are_looked_up_in_the_gallery_of_their_protocol(cars: Path, tmp_path: Path) -> None:
    def split(label: str, number: int) -> str:
        if label in ("car-6", "car-7"):
            return "query" if number < 2 else "gallery"
        return "train"

    table = write_table(tmp_path / "cars.csv", cars, split)
    finished = finished_run(tmp_path / "run", table, **{**EVERYTHING, "epochs": 1})
    queries = finished.saved("queries")
    paths = finished.evaluation()["paths"]
    assert queries.dtype == np.bool_
    assert queries.tolist() == [Path(path).name in ("0.png", "1.png") for path in paths]
    rows = finished.evaluation()["rows"]
    assert [row["queries"] for row in rows] == [4] * 4
    embeddings, labels = finished.saved("embeddings"), finished.saved("labels")
    assert_row(rows[0], evaluate(embeddings, labels, ks=KS, clustering=True, queries=queries))
    protocol = finished.evaluation()["protocol"]
    assert protocol == finished.facts["protocol"] == "csv-query-gallery 6/2"


def test_without_test_classes_those_held_out_judge_and_the_protocol_says_so(
    cars: Path, tmp_path: Path
) -> None:
    data = tmp_path / "cars"
    shutil.copytree(cars / "train", data / "train")
    finished = finished_run(tmp_path / "run", data, epochs=1, baseline=True)
    values = finished.evaluation()
    assert values["protocol"] == "folders 6/0, held-out training classes"
    assert finished.facts["protocol"] == values["protocol"]
    assert values["classes"] == ["car-4", "car-5"]
    assert {Path(path).parent.name for path in values["paths"]} == {"car-4", "car-5"}
    assert_row(
        values["rows"][0],
        evaluate(finished.saved("embeddings"), finished.saved("labels"), ks=KS),
    )
    assert values["rows"][-1]["name"] == "frozen backbone, whitened"
    said = "\n".join(finished.said)
    assert "Test (folders 6/0, held-out training classes), dscl, 4 values: R@1 " in said


@pytest.mark.parametrize("whitening", ["total", "within-class"])
def test_classes_that_judge_have_no_part_in_the_whitening(
    cars: Path, tmp_path: Path, whitening: str
) -> None:
    data = tmp_path / "cars"
    shutil.copytree(cars / "train", data / "train")
    finished = finished_run(
        tmp_path / "run", data, epochs=1, whitening=whitening, save_embeddings=True, baseline=True
    )
    train = finished.data().train
    learned = train.labels < 4

    def whitened(raw: torch.Tensor, kind: str, ridge: float) -> np.ndarray:
        known = raw[torch.from_numpy(learned)]
        if kind == "total":
            fitted = Whitening.fit(known, ridge=ridge)
        else:
            fitted = Whitening.fit_within(known, train.labels[learned], ridge=ridge)
        return unit(fitted.apply(raw).numpy())

    raw = torch.from_numpy(embedded(finished.trained(), finished.settings, train))
    expected = whitened(raw, whitening, finished.settings.whitening_ridge)
    # Cosines, as whitening leaves the signs of its axes open.
    found = np.concatenate([finished.saved("train_embeddings"), finished.saved("embeddings")])
    rows = np.concatenate([expected[learned], expected[~learned]])
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, rtol=0, atol=2e-5)
    assert np.array_equal(finished.saved("train_labels"), train.labels[learned])

    backbone = untrained(finished.settings).backbone
    features = torch.from_numpy(embedded(backbone, finished.settings, train))
    rows = whitened(features, "total", 0.1)[~learned]
    assert_row(finished.evaluation()["rows"][-1], evaluate(rows, train.labels[~learned], ks=KS))


def test_with_nothing_to_judge_by_a_run_ends_without_figures(cars: Path, tmp_path: Path) -> None:
    data = tmp_path / "cars"
    shutil.copytree(cars / "train", data / "train")
    finished = finished_run(
        tmp_path / "run", data, epochs=1, baseline=True, validation_classes=0, transductive=True
    )
    assert not finished.run.evaluation_folder.exists()
    assert finished.facts["metrics"] == {}
    assert (finished.run.path / "report.html").is_file()


# The baseline


def test_the_baseline_is_measured_once_and_kept_when_a_run_goes_on(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "run", cars, **{**EVERYTHING, "epochs": 1})
    said: list[str] = []
    with monkeypatch.context() as patch:
        # Training and test photos for the baseline are two passes, then comes the first step.
        patch.setattr(trainer, "build_network", interrupt_at([3], signal.SIGINT))
        with pytest.raises(Stopped):
            trainer.train(run, echo=said.append)
    assert len([line for line in said if line.startswith("Before training (folders 6/2)")]) == 1
    file = run.path / "baseline.json"
    kept = json.loads(file.read_text())
    kept["map_at_r"] = 0.125  # told from one that is measured again
    file.write_text(json.dumps(kept))
    finished = end(run)
    assert not [line for line in finished.said if line.startswith("Before training")]
    assert finished.evaluation()["rows"][-1] == kept


def test_features_of_the_frozen_backbone_are_gone_at_the_end(judged: Finished) -> None:
    assert {path.name for path in judged.run.path.iterdir()} == {
        "settings.json", "run.json", "metrics.jsonl", "baseline.json", "checkpoints",
        "tensorboard", "evaluation", "report.html",
    }  # fmt: skip


def test_features_in_a_cache_that_was_named_stay(cars: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    finished = finished_run(
        tmp_path / "run", cars, epochs=1, baseline=True, feature_cache=str(cache)
    )
    assert not (finished.run.path / "features").exists()
    kept = sorted(len(np.load(file)) for file in cache.rglob("features.npy"))
    assert kept == [2 * PER_CLASS, 6 * PER_CLASS]


# Stopping


def test_a_signal_while_the_model_is_exported_stops_the_run_and_leaves_no_model(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export._write_graph

    def ring(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(*arguments)

    run = open_run(tmp_path / "run", cars, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(export, "_write_graph", ring)
        with pytest.raises(Stopped):
            trainer.train(run, echo=lambda _: None)
    assert not run.model_folder.exists()
    assert end(run).facts["metrics"]["recall"]


# The report


def test_the_report_shows_every_row(judged: Finished) -> None:
    page = (judged.run.path / "report.html").read_text(encoding="utf-8")
    for row in judged.evaluation()["rows"]:
        assert row["name"] in page
    assert judged.said[-1] == f"Report: {judged.run.path / 'report.html'}"
