"""The report of one run: ``report.html`` in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from index.files import write_atomically
from training.data import Photos
from training.report.charts import Bars, Cloud, Line, grouped_bars, hue, line_chart, scatter
from training.report.embedding_map import LEAST, map_embeddings, sample
from training.report.html import percent, render, setting_text
from training.report.neighbours import (
    ClassRecall,
    Ranking,
    best,
    class_recalls,
    rank,
    worst,
)
from training.report.record import Embedded, Epoch, Evaluation, Figures, RunRecord, read_run
from training.report.thumbnails import Thumbnail, Thumbnails

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE = "report.html"

#: Photo rows of each kind, and neighbours in a row.
ROWS, NEIGHBOURS = 6, 8

#: Classes that are listed by name; an evaluation may have thousands.
CLASSES = 200


def write_report(run_folder: Path) -> Path:
    """Write (again) the report of a run, whether it is done, under way or stopped.

    Returns:
        The page: one file that opens from disk, without network.

    Raises:
        ReportError: not a run folder, or a file in it is damaged.
        InvalidArgumentError: the saved embeddings hold NaN or infinity.
    """
    run = read_run(run_folder)
    evaluation = run.evaluation
    page = render(
        "run.html.jinja",
        run=run,
        headline=None if evaluation is None else _headline(evaluation),
        loss_chart=_loss_chart(run) if run.epochs else None,
        recall_chart=_recall_chart(run.epochs),
        bars=None if evaluation is None else _recall_bars(evaluation.rows),
        figure_rows=[] if evaluation is None else [(None, row) for row in evaluation.rows],
        photos=_photos(evaluation),
        settings=[(name, setting_text(value)) for name, value in run.settings.items()],
    )
    path = run_folder / REPORT_FILE
    write_atomically(path, page)
    return path


@dataclass(frozen=True, kw_only=True)
class _Headline:
    """Recall at the least K beside that of the frozen backbone, in percent as they are shown."""

    k: int
    recall: str
    frozen: str | None
    gain: str | None


def _headline(evaluation: Evaluation) -> _Headline:
    trained, frozen = evaluation.trained, evaluation.frozen
    k = min(trained.recall)
    recall = percent(trained.recall[k])
    if frozen is None or k not in frozen.recall:
        return _Headline(k=k, recall=recall, frozen=None, gain=None)
    before = percent(frozen.recall[k])
    # Of the rounded figures, so that a reader's own subtraction agrees.
    gain = f"{float(recall) - float(before):+.1f}".replace("-", "−")
    return _Headline(k=k, recall=recall, frozen=before, gain=gain)


# Charts


def _loss_chart(run: RunRecord) -> Markup:
    levels = [epoch.random_level for epoch in run.epochs]
    lines = [Line(name=run.loss, values=[epoch.loss for epoch in run.epochs])]
    if any(level is not None for level in levels):
        lines.append(Line(name="random embedding", values=levels, color=None, reference=True))
    xs = [epoch.epoch for epoch in run.epochs]
    return line_chart(lines, xs=xs, label="Loss by epoch", x_label="epoch")


def _recall_chart(epochs: list[Epoch]) -> Markup | None:
    measured = [epoch for epoch in epochs if epoch.recall]
    if not measured:
        return None
    ks = sorted({k for epoch in measured for k in epoch.recall})
    lines = [
        Line(name=f"R@{k}", values=[epoch.recall.get(k) for epoch in measured], color=color)
        for color, k in enumerate(ks)
    ]
    return line_chart(
        lines,
        xs=[epoch.epoch for epoch in measured],
        label="Recall on held-out classes by epoch",
        x_label="epoch",
        percent=True,
    )


def _recall_bars(rows: list[Figures]) -> Markup:
    ks = sorted({k for row in rows for k in row.recall})
    bars = [
        Bars(
            name=row.name,
            values=[row.recall.get(k) for k in ks],
            color=None if row.kind == "frozen" else position,
            hollow=row.kind == "transductive",
        )
        for position, row in enumerate(rows)
    ]
    return grouped_bars(bars, groups=[f"R@{k}" for k in ks], label="Recall@K of each embedding")


# Photos


@dataclass(frozen=True, kw_only=True)
class _Photo:
    """A photo as it stands in a row."""

    thumbnail: Thumbnail
    file: str
    name: str  #: of its class
    rank: int | None = None  #: None for a query
    right: bool = False
    similarity: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A query, its neighbours, and its first right answer where that is not among them."""

    query: _Photo
    neighbours: list[_Photo]
    first_right: _Photo | None
    first_rank: int
    average_precision: float


@dataclass(frozen=True, kw_only=True)
class _Named:
    """Recall@1 of a class, with names."""

    name: str
    figures: ClassRecall
    mistaken_for: str | None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A class in the legend of the map."""

    number: int
    style: str
    name: str
    photos: int


@dataclass(frozen=True, kw_only=True)
class _Map:
    """The map of the embedding."""

    chart: Markup
    shown: int  #: photos on it
    entries: list[_Entry]  #: the first ``CLASSES`` classes
    more: int  #: how many others there are


@dataclass(frozen=True, kw_only=True)
class _Photos:
    """What the saved embeddings show, besides figures."""

    total: int
    gallery: int
    worst: list[_Row]
    best: list[_Row]
    classes: list[_Named]  #: the worst ``CLASSES``, worst first
    more_classes: int  #: how many others there are
    map: _Map | None


def _photos(evaluation: Evaluation | None) -> _Photos | None:
    if evaluation is None or evaluation.embedded is None:
        return None
    embedded = evaluation.embedded
    labels, queries = embedded.labels, embedded.queries
    ranking = rank(embedded.embeddings, labels, queries, k=NEIGHBOURS)
    rows = _Rows(evaluation, embedded, ranking)
    recalls = class_recalls(ranking, labels)
    names = evaluation.classes
    n = len(labels)
    return _Photos(
        total=n,
        gallery=n - 1 if queries is None else int((~queries).sum()),
        worst=[rows.at(i) for i in worst(ranking, ROWS)],
        best=[rows.at(i) for i in best(ranking, labels, ROWS)],
        classes=[
            _Named(
                name=names[figures.label],
                figures=figures,
                mistaken_for=None if figures.mistaken_for is None else names[figures.mistaken_for],
            )
            for figures in recalls[:CLASSES]
        ],
        more_classes=max(0, len(recalls) - CLASSES),
        map=_map(embedded, names) if n >= LEAST else None,
    )


class _Rows:
    """Turns queries of a ranking into photo rows."""

    def __init__(self, evaluation: Evaluation, embedded: Embedded, ranking: Ranking) -> None:
        self._photos = Photos(
            paths=tuple(evaluation.paths),
            labels=embedded.labels,
            classes=tuple(evaluation.classes),
            boxes=evaluation.boxes,
        )
        self._thumbnails = Thumbnails(self._photos)
        self._embeddings = embedded.embeddings
        self._ranking = ranking

    def at(self, i: np.int64) -> _Row:
        ranking = self._ranking
        query = int(ranking.queries[i])
        first_rank = int(ranking.first_rank[i])
        found = [int(item) for item in ranking.neighbours[i] if item >= 0]
        return _Row(
            query=self._photo(query),
            neighbours=[
                self._answer(query, item, rank=position + 1, right=bool(ranking.right[i, position]))
                for position, item in enumerate(found)
            ],
            first_right=None
            if first_rank <= len(found)
            else self._answer(query, int(ranking.first_right[i]), rank=first_rank, right=True),
            first_rank=first_rank,
            average_precision=float(ranking.average_precision[i]),
        )

    def _photo(self, item: int) -> _Photo:
        return self._answer(item, item, rank=None, right=True)

    def _answer(self, query: int, item: int, *, rank: int | None, right: bool) -> _Photo:
        photos = self._photos
        return _Photo(
            thumbnail=self._thumbnails[item],
            file="/".join(photos.paths[item].parts[-2:]),
            name=photos.classes[photos.labels[item]],
            rank=rank,
            right=right,
            similarity=float(self._embeddings[query] @ self._embeddings[item]),
        )


def _map(embedded: Embedded, names: list[str]) -> _Map:
    shown = sample(embedded.labels)
    places = map_embeddings(embedded.embeddings[shown])
    labels = embedded.labels[shown]
    present = np.unique(labels)
    clouds = [
        Cloud(name=names[label], points=_points(places[labels == label])) for label in present
    ]
    return _Map(
        chart=scatter(clouds, label="Map of the embedding: near photos look alike to the model"),
        shown=len(shown),
        entries=[
            _Entry(number=i, style=hue(i), name=cloud.name, photos=len(cloud.points))
            for i, cloud in enumerate(clouds[:CLASSES])
        ],
        more=max(0, len(clouds) - CLASSES),
    )


def _points(places: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in places]
