"""Reports: figures as the run's files have them, marks as brute force has them, nothing foreign."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from index.metrics import evaluate
from tests.photos import write_photo
from training.report import ReportError, write_comparison, write_report
from training.report.charts import Bars, Cloud, Line, grouped_bars, line_chart, scatter, ticks
from training.report.command import report
from training.report.embedding_map import map_embeddings, sample
from training.report.neighbours import best, class_recalls, rank, worst
from training.report.record import read_run
from training.report.thumbnails import SIDE

#: A name that would end an attribute, open a tag or start an entity, were it not escaped.
HOSTILE = """<script>alert('1')</script> & "quoted" </title>"""

CLASSES = ["audi", HOSTILE, "volvo"]
PER_CLASS = 5
PROTOCOL = "folders 3/3 <b>"

PARTS = ("run.json", "metrics.jsonl", "evaluation")


def embedding(seed: int, n: int, d: int = 6) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def figures(name: str, embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> Any:
    metrics = vars(evaluate(embeddings, labels, clustering=True)).copy()
    metrics["recall"] = {str(k): value for k, value in metrics["recall"].items()}
    return {"name": name, **metrics}


def write_run(folder: Path, *, seed: int = 0, loss: str = "dscl", floor: bool = True) -> Path:
    """A run folder as training leaves it behind."""
    labels = np.repeat(np.arange(len(CLASSES)), PER_CLASS)
    embeddings = embedding(seed, len(labels))
    paths = [
        write_photo(folder / "photos" / str(label) / f"{i}.jpg", i)
        for i, label in enumerate(labels)
    ]
    (folder / "settings.json").write_text(
        json.dumps({"backbone": "small_cnn", "dim": 6, "epochs": 3, "seed": seed, "loss": loss,
                    "size": None, "flip": True, "weights": HOSTILE})
    )  # fmt: skip
    (folder / "run.json").write_text(
        json.dumps({"command": f"dscl train --out {HOSTILE}", "started": "2026-11-24T21:14:09",
                    "versions": {"torch": "2.15.0"}, "device": "cpu", "preset": "demo",
                    "platform": "Linux"})
    )  # fmt: skip
    lines = [
        {"epoch": epoch, "loss": 0.5 / epoch, "random_level": 0.875 if floor else None,
         "images_per_s": 31.25, "recall": {"1": 0.1 * epoch, "2": 0.2 * epoch}, "map_at_r": 0.05}
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "evaluation").mkdir()
    trained = figures("dscl", embeddings, labels)
    rows = [
        trained,
        figures("frozen backbone, whitened", embedding(seed + 1, len(labels)), labels),
        {**trained, "name": "dscl, transductive (normalised spectral clustering)", "nmi": None},
    ]
    (folder / "evaluation/evaluation.json").write_text(
        json.dumps({"protocol": PROTOCOL, "classes": CLASSES, "rows": rows, "boxes": None,
                    "paths": [str(path) for path in paths]})
    )  # fmt: skip
    np.save(folder / "evaluation/embeddings.npy", embeddings)
    np.save(folder / "evaluation/labels.npy", labels)
    return folder


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside, spaces folded."""
        return " ".join(self.raw.split())

    @property
    def raw(self) -> str:
        return "".join(c if isinstance(c, str) else c.raw for c in self.children)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def all(self, tag: str, kind: str | None = None) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and (kind is None or kind in child.classes):
                    found.append(child)
                found += child.all(tag, kind)
        return found


class Page(HTMLParser):
    """A page as a tree; fails on tags that are not closed in order."""

    VOID = ("meta", "img", "link", "br", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.here = self.root = Element("", {})
        self.feed(path.read_text(encoding="utf-8"))
        assert self.here is self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(element)
        if tag not in self.VOID:
            self.here = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.here.children.append(Element(tag, dict(attrs), self.here))  # type: ignore[arg-type]

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.here.tag, f"</{tag}> closes <{self.here.tag}>"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.children.append(data)


def table(page: Page, caption: str) -> list[list[str]]:
    """Rows of cells of the table with this caption."""
    [found] = [t for t in page.root.all("table") if t.all("caption")[0].text == caption]
    return [
        [cell.text for cell in row.children if isinstance(cell, Element)]
        for row in found.all("tbody")[0].all("tr")
    ]


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    assert write_report(run) == run / "report.html"
    return Page(run / "report.html")


# The page of a run


def test_figures_are_those_of_the_evaluation(run: Path, page: Page) -> None:
    rows = json.loads((run / "evaluation/evaluation.json").read_text())["rows"]
    assert table(page, "Figures of each embedding") == [
        [
            row["name"],
            *(percent(row["recall"][k]) for k in ("1", "2", "4", "8")),
            *(percent(row[name]) for name in ("r_precision", "map_at_r", "nmi")),
            str(row["queries"]),
            str(row["skipped"]),
        ]
        for row in rows
    ]
    [headline] = page.root.all("dl", "headline")
    shown = [dd.text for dd in headline.all("dd")]
    trained, frozen = (percent(row["recall"]["1"]) for row in rows[:2])
    gain = f"{float(trained) - float(frozen):+.1f}".replace("-", "−")
    assert shown == [f"{trained} %", f"{frozen} %", f"{gain} points"]


def test_figures_of_epochs_are_those_of_the_metrics(run: Path, page: Page) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert table(page, "All figures by epoch") == [
        [
            str(line["epoch"]),
            f"{line['loss']:.4f}",
            "0.8750",
            percent(line["recall"]["1"]),
            percent(line["recall"]["2"]),
            "5.0",
            "31.2",
        ]
        for line in lines
    ]
    titles = [title.text for svg in page.root.all("svg", "plot") for title in svg.all("title")]
    assert "dscl, epoch 2: 0.25" in titles
    assert "random embedding, epoch 3: 0.875" in titles
    assert "R@2, epoch 3: 60.0 %" in titles


def test_settings_and_versions_are_all_there(page: Page) -> None:
    assert table(page, "Settings") == [
        ["backbone", "small_cnn"],
        ["dim", "6"],
        ["epochs", "3"],
        ["seed", "0"],
        ["loss", "dscl"],
        ["size", "–"],
        ["flip", "yes"],
        ["weights", HOSTILE],
    ]
    facts = {
        fact.all("dt")[0].text: fact.all("dd")[0].text
        for facts in page.root.all("dl", "facts")
        for fact in facts.all("div")
    }
    assert facts == {
        "Loss": "dscl",
        "Epochs": "3 of 3",
        "Seed": "0",
        "Preset": "demo",
        "Device": "cpu",
        "Machine": "Linux",
        "Started": "2026-11-24 21:14",
        "torch": "2.15.0",
    }


def test_photo_rows_are_those_of_brute_force(run: Path, page: Page) -> None:
    embeddings = np.load(run / "evaluation/embeddings.npy").astype(np.float64)
    labels = np.load(run / "evaluation/labels.npy")
    files = [f"{label}/{i}.jpg" for i, label in enumerate(labels)]
    order = {}
    first = {}
    for q in range(len(labels)):
        others = sorted(
            (i for i in range(len(labels)) if i != q), key=lambda i: -embeddings[q] @ embeddings[i]
        )
        order[files[q]] = [(files[i], labels[i] == labels[q]) for i in others]
        first[files[q]] = next(r for r, i in enumerate(others, 1) if labels[i] == labels[q])

    strips = page.root.all("ol", "strip")
    assert len(strips) == 6 + len(CLASSES)  # the best are one of each class
    shown = []
    for strip in strips:
        query, *answers = strip.all("li", "photo")
        [name] = [image.attributes["title"] for image in query.all("img")]
        shown.append(name)
        marks = [
            (answer.all("img")[0].attributes["title"], "right" in answer.classes)
            for answer in answers
            if "late" not in answer.classes
        ]
        assert marks == order[name][:8]
        for answer in answers:
            sign = "✓" if "right" in answer.classes else "✗"
            assert [mark.text for mark in answer.all("span", "mark")] == [sign]
            assert ("wrong" in answer.classes) == (sign == "✗")
        late = [answer.all("img")[0].attributes["title"] for answer in strip.all("li", "late")]
        assert late == ([order[name][first[name] - 1][0]] if first[name] > 8 else [])
    assert [first[name] for name in shown[:6]] == sorted(first.values(), reverse=True)[:6]


def test_class_recalls_are_those_of_brute_force(run: Path, page: Page) -> None:
    embeddings = np.load(run / "evaluation/embeddings.npy")
    labels = np.load(run / "evaluation/labels.npy")
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -2)
    hits = labels[similarity.argmax(1)] == labels
    recalls = {name: hits[labels == i].mean() for i, name in enumerate(CLASSES)}
    rows = table(page, "Recall@1 by class")
    assert {row[0]: row[2] for row in rows} == {
        name: percent(recall) for name, recall in recalls.items()
    }
    assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows)
    assert [row[3] for row in rows] == [str(PER_CLASS)] * len(CLASSES)


def test_the_map_has_every_photo_in_its_class(page: Page) -> None:
    [chart] = page.root.all("svg", "map")
    dots = chart.all("path", "dots")
    assert sorted(path.all("title")[0].text for path in dots) == sorted(CLASSES)
    assert [path.attributes["d"].count("M") for path in dots] == [PER_CLASS] * len(CLASSES)


def test_hostile_names_stay_text(run: Path, page: Page) -> None:
    text = (run / "report.html").read_text()
    assert "<script>alert" not in text
    assert text.count("</title>") == len(page.root.all("title"))
    assert f"dscl train --out {HOSTILE}" in page.root.all("pre")[0].text
    assert PROTOCOL in page.root.all("p", "lead")[0].text
    assert page.root.all("b") == []
    names = {photo.all("span", "class")[0].text for photo in page.root.all("li", "photo")}
    assert names == {"Query", *CLASSES}


def test_pages_fetch_nothing(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", seed=3)
    write_report(run)
    for path in (write_report(other), write_comparison([run, other], tmp_path / "all.html")):
        text = path.read_text()
        assert re.findall(r"""\ssrc="(?!data:image/jpeg;base64,)""", text) == []
        assert not re.search(r"<(link|iframe|object|embed|base)\b", text)
        own = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", text)
        assert not re.search(r"https?:|[\"'(]//|@import|url\(|fetch|import", own)


def test_thumbnails_are_small_and_named(page: Page) -> None:
    images = page.root.all("img")
    assert images
    for image in images:
        data = base64.b64decode(image.attributes["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == "JPEG"
            assert max(picture.size) <= SIDE
        assert any(name in image.attributes["alt"] for name in CLASSES)


def test_tables_have_headers_and_headings_descend_one_by_one(page: Page) -> None:
    for found in page.root.all("table"):
        assert all(th.attributes.get("scope") in ("col", "row") for th in found.all("th"))
        assert all(row.all("th") for row in found.all("tr"))

    def headings(element: Element) -> list[int]:
        levels = []
        for child in element.children:
            if isinstance(child, Element):
                levels += [int(child.tag[1])] if re.fullmatch("h[1-6]", child.tag) else []
                levels += headings(child)
        return levels

    levels = headings(page.root)
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_only_the_exported_embedding_is_set_off(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    file = folder / "evaluation/evaluation.json"
    rows = json.loads(file.read_text())["rows"]
    change_json(file, rows=[rows[0], rows[0] | {"name": "dscl, features"}, *rows[1:]])
    page = Page(write_report(folder))
    kinds = [row.attributes["class"] for row in page.root.all("table")[1].all("tr")[1:]]
    assert kinds == ["trained", "other", "frozen", "transductive"]


# Runs that lack something


@pytest.mark.parametrize("kept", [(), ("metrics.jsonl",), ("run.json", "evaluation")])
def test_a_run_shows_what_there_is(run: Path, tmp_path: Path, kept: tuple[str, ...]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for part in PARTS:
        if part not in kept:
            (shutil.rmtree if part == "evaluation" else Path.unlink)(copy / part)
    page = Page(write_report(copy))
    text = page.root.text
    assert ("There is no evaluation yet." in text) == ("evaluation" not in kept)
    assert ("No epoch is done yet." in text) == (kept == ())
    assert ("This run has no epochs" in text) == (kept == ("run.json", "evaluation"))
    assert ("The run did not record its versions." in text) == ("run.json" not in kept)
    assert bool(page.root.all("img")) == ("evaluation" in kept)
    assert table(page, "Settings")


def test_without_saved_embeddings_the_figures_remain(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "evaluation/embeddings.npy").unlink()
    page = Page(write_report(copy))
    assert len(table(page, "Figures of each embedding")) == 3
    assert "No embeddings were saved with this run" in page.root.text
    assert page.root.all("img") == []


def test_a_line_that_is_being_written_is_not_read(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    assert [epoch.epoch for epoch in read_run(copy).epochs] == [1, 2, 3]


def test_a_loss_without_a_floor_shows_none(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run", loss="proxy-anchor", floor=False))
    page = Page(path)
    assert page.root.all("g", "reference") == []
    assert "random embedding" not in page.root.text


def test_recall_over_epochs_is_missing_without_held_out_classes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text(
        '{"epoch": 1, "loss": 0.5, "random_level": 0.8, "images_per_s": null}\n'
    )
    page = Page(write_report(folder))
    assert "Not measured: no training classes were held out" in page.root.text
    assert table(page, "All figures by epoch") == [["1", "0.5000", "0.8000", "–"]]


def test_vanished_photos_leave_a_placeholder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    before = len(Page(write_report(folder)).root.all("img"))
    (folder / "photos/0/0.jpg").unlink()
    shutil.rmtree(folder / "photos/2")
    page = Page(write_report(folder))
    gone = page.root.all("span", "gone")
    assert gone
    assert len(page.root.all("img")) + len(gone) == before
    assert any("No such file" in span.attributes["title"] for span in gone)


def test_boxes_cut_the_photos(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    n = len(CLASSES) * PER_CLASS
    change_json(folder / "evaluation/evaluation.json", boxes=[[0, 0, 20, 40]] * n)
    image = Page(write_report(folder)).root.all("img")[0]
    data = base64.b64decode(image.attributes["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (20, 40)


def test_answers_come_from_the_gallery_where_the_protocol_has_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    queries = np.arange(len(CLASSES) * PER_CLASS) % PER_CLASS < 2
    np.save(folder / "evaluation/queries.npy", queries)
    page = Page(write_report(folder))
    asked = {f"{i // PER_CLASS}/{i}.jpg" for i in np.flatnonzero(queries)}
    photos = page.root.all("li", "photo")
    for photo in photos:
        [image] = photo.all("img")
        assert (image.attributes["title"] in asked) == ("query" in photo.classes)
    assert [row[3] for row in table(page, "Recall@1 by class")] == ["2"] * len(CLASSES)
    assert f"among {np.count_nonzero(~queries)} photos" in page.root.text


def test_a_class_of_one_photo_is_no_query(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    labels = np.repeat(np.arange(3), PER_CLASS)
    labels[labels == 2] = 1
    labels[-1] = 2
    np.save(folder / "evaluation/labels.npy", labels)
    page = Page(write_report(folder))
    assert {row[0] for row in table(page, "Recall@1 by class")} == set(CLASSES[:2])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"nowhere is no folder.*dscl train --out"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ReportError, match=r"holds no settings.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("settings.json", "{", r"settings.json is damaged"),
        ("settings.json", "[]", r"settings.json holds a list"),
        ("metrics.jsonl", "{}\n", r"metrics.jsonl is damaged.*KeyError: 'epoch'"),
        ("evaluation/evaluation.json", '{"rows": []}', r"evaluation.json has no rows"),
        ("evaluation/evaluation.json", '{"rows": [{"name": "x"}]}', r"KeyError: 'recall'"),
        ("evaluation/embeddings.npy", "no array", r"embeddings.npy is damaged"),
    ],
)
def test_a_damaged_file_is_named(
    run: Path, tmp_path: Path, file: str, content: str, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / file).write_text(content)
    with pytest.raises(ReportError, match=message):
        write_report(copy)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("labels", np.zeros(4, np.int64), r"labels.npy has shape \[4\].*15 photos"),
        ("labels", np.full(15, 3), r"labels outside 0 … 2"),
        ("embeddings", np.ones((15,), np.float32), r"embeddings.npy has shape \[15\]"),
        ("queries", np.ones(3, np.bool_), r"queries.npy has shape \[3\]"),
    ],
)
def test_arrays_of_another_run_are_refused(
    run: Path, tmp_path: Path, name: str, array: NDArray[Any], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    np.save(copy / f"evaluation/{name}.npy", array)
    with pytest.raises(ReportError, match=message):
        write_report(copy)


# Rankings


@pytest.mark.parametrize("split", [False, True])
def test_rankings_are_those_of_brute_force(split: bool) -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 12, 90)
    # Few dimensions and a class far from itself: first right answers come early and very late.
    embeddings = embedding(6, 90, 3)
    queries = rng.random(90) < 0.4 if split else None
    ranking = rank(embeddings, labels, queries, k=5)

    asked = np.arange(90) if queries is None else np.flatnonzero(queries)
    expected = []
    for q in asked.tolist():
        gallery = [i for i in range(90) if i != q and (queries is None or not queries[i])]
        gallery.sort(key=lambda i: np.square(embeddings[q].astype(float) - embeddings[i]).sum())
        right = [bool(labels[i] == labels[q]) for i in gallery]
        if any(right):
            total = sum(right)
            precisions = [sum(right[: i + 1]) / (i + 1) for i in range(total) if right[i]]
            first = right.index(True)
            expected.append((q, gallery[:5], right[:5], first + 1, gallery[first],
                             sum(precisions) / total))  # fmt: skip
    assert ranking.queries.tolist() == [row[0] for row in expected]
    assert ranking.neighbours.tolist() == [row[1] for row in expected]
    assert ranking.right.tolist() == [row[2] for row in expected]
    assert ranking.first_rank.tolist() == [row[3] for row in expected]
    assert ranking.first_right.tolist() == [row[4] for row in expected]
    assert ranking.average_precision == pytest.approx([row[5] for row in expected], abs=1e-12)
    assert ranking.first_rank.max() > np.bincount(labels).max()  # the first search ends before

    metrics = evaluate(embeddings, labels, queries=queries)
    assert ranking.average_precision.mean() == pytest.approx(metrics.map_at_r)
    recalls = class_recalls(ranking, labels)
    hits = sum(recall.recall * recall.queries for recall in recalls)
    assert hits / len(ranking) == pytest.approx(metrics.recall[1])
    for recall in recalls:
        answers = [labels[row[1][0]] for row in expected if labels[row[0]] == recall.label]
        wrong = [answer for answer in answers if answer != recall.label]
        if wrong:
            assert recall.mistakes == max(wrong.count(label) for label in wrong)
            assert wrong.count(recall.mistaken_for) == recall.mistakes
        else:
            assert recall.mistaken_for is None

    last = worst(ranking, 4)
    assert ranking.first_rank[last].tolist() == sorted(ranking.first_rank, reverse=True)[:4]
    top = best(ranking, labels, 4)
    by_class = {
        label: ranking.average_precision[labels[ranking.queries] == label].max()
        for label in labels[ranking.queries]
    }
    assert ranking.average_precision[top].tolist() == sorted(by_class.values(), reverse=True)[:4]


def test_a_small_gallery_ends_with_no_neighbour() -> None:
    labels = np.array([0, 0, 1])
    ranking = rank(embedding(0, 3), labels, k=4)
    assert ranking.queries.tolist() == [0, 1]
    assert (ranking.neighbours >= 0).sum(1).tolist() == [2, 2]
    assert not ranking.right[ranking.neighbours < 0].any()


# The map


def test_the_sample_is_even_over_classes() -> None:
    labels = np.repeat(np.arange(4), [500, 500, 12, 3])
    chosen = sample(labels, most=100)
    assert len(chosen) <= 100
    assert np.all(np.diff(chosen) > 0)
    assert np.bincount(labels[chosen]).tolist() == [25, 25, 12, 3]
    assert sample(labels, most=2000).tolist() == list(range(1015))


def test_the_sample_keeps_classes_whole_where_they_are_many() -> None:
    labels = np.repeat(np.arange(1000), 5)
    chosen = sample(labels, most=100)
    assert np.unique(labels[chosen], return_counts=True)[1].tolist() == [5] * 20


@pytest.mark.parametrize("d", [1, 2, 8])
def test_the_map_keeps_classes_apart_and_repeats(d: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 12)
    centres = np.zeros((2, d))
    centres[:, 0] = 1, -1
    rows = (centres[labels] + 0.05 * rng.normal(size=(24, d))).astype(np.float32)
    places = map_embeddings(rows)
    assert places.shape == (24, 2)
    assert places.min() == 0
    assert places.max() <= 1
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(24)
    assert np.all(labels[distances.argmin(1)] == labels)
    assert np.array_equal(places, map_embeddings(rows))


# Charts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.29, 0.84, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (12, 97, [0, 20, 40, 60, 80, 100]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (2, 2, [1.8, 1.9, 2.0, 2.1, 2.2]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks_are_round_and_span_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def heights(svg: str) -> list[float]:
    return [float(height) for height in re.findall(r'<rect[^>]* height="([0-9.]+)"', svg)]


def test_bars_are_as_high_as_their_values() -> None:
    svg = grouped_bars(
        [Bars(name="a", values=[1.0, 0.25]), Bars(name="b", values=[0.5, None])],
        groups=["R@1", "R@2"],
        label="x",
    )
    full, half, quarter = heights(svg)
    assert half / full == pytest.approx(0.5, abs=0.001)
    assert quarter / full == pytest.approx(0.25, abs=0.001)


def test_lines_leave_gaps_where_values_are_missing() -> None:
    svg = line_chart(
        [Line(name="a", values=[1.0, None, 2.0, float("nan"), 3.0, 4.0])],
        xs=[1, 2, 3, 4, 5, 6],
        label="x",
        x_label="epoch",
    )
    [path] = re.findall(r'<path d="([^"]+)"', svg)
    assert re.sub(r"[0-9. ]", "", path) == "MMML"
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
    assert points[0][1] > points[1][1] > points[2][1] > points[3][1]  # y grows downwards
    assert points[1][0] - points[0][0] == pytest.approx(2 * (points[3][0] - points[2][0]), abs=0.2)


def test_charts_escape_names() -> None:
    for svg in (
        line_chart([Line(name=HOSTILE, values=[1.0])], xs=[1], label=HOSTILE, x_label=HOSTILE),
        grouped_bars([Bars(name=HOSTILE, values=[1.0])], groups=[HOSTILE], label=HOSTILE),
        scatter([Cloud(name=HOSTILE, points=[(0.5, 0.5)])], label=HOSTILE),
    ):
        assert "<script" not in svg
        assert '"quoted"' not in svg


# Several runs


@pytest.fixture
def runs(run: Path, tmp_path: Path) -> list[Path]:
    second = write_run(tmp_path / "second", seed=1, loss="proxy-anchor", floor=False)
    stopped = write_run(tmp_path / "stopped", seed=2)
    shutil.rmtree(stopped / "evaluation")
    return [run, second, stopped]


def test_a_comparison_has_each_run_and_only_settings_that_differ(
    runs: list[Path], tmp_path: Path
) -> None:
    page = Page(write_comparison(runs, tmp_path / "compare.html"))
    assert table(page, "What differs") == [
        ["seed", "0", "1", "2"],
        ["loss", "dscl", "proxy-anchor", "dscl"],
    ]
    rows = table(page, "Runs")
    assert [row[0] for row in rows] == ["first", "second", "stopped"]
    records = [read_run(folder) for folder in runs]
    assert [row[6] for row in rows] == [
        percent(record.evaluation.trained.recall[1]) if record.evaluation else "–"
        for record in records
    ]
    figures = table(page, "Figures of each run")
    assert [row[0] for row in figures[::3]] == ["first dscl", "second dscl"]
    losses = page.root.all("svg", "plot")[1]
    lines = [g for g in losses.all("g", "line") if "reference" not in g.classes]
    assert len(lines) == 3
    assert len(losses.all("g", "reference")) == 2
    assert "do not compare" not in page.root.all("header")[0].text
    assert "values of different losses (dscl, proxy-anchor) do not compare" in page.root.text


def test_a_comparison_links_the_reports(run: Path, runs: list[Path], tmp_path: Path) -> None:
    write_report(run)
    folder = tmp_path / "pages"
    folder.mkdir()
    page = Page(write_comparison(runs, folder / "compare.html"))
    [link] = page.root.all("a")
    assert (folder / link.attributes["href"]).resolve() == (run / "report.html").resolve()


def test_different_protocols_are_warned_of(runs: list[Path], tmp_path: Path) -> None:
    change_json(runs[1] / "evaluation/evaluation.json", protocol="another 3/3")
    page = Page(write_comparison(runs, tmp_path / "compare.html"))
    [notice] = page.root.all("p", "notice")
    assert notice.text.startswith("These figures do not compare.")
    assert PROTOCOL in notice.text
    assert "another 3/3" in notice.text


def test_a_comparison_that_cannot_be_written_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="name at least two"):
        write_comparison(runs[:1], tmp_path / "compare.html")
    with pytest.raises(ReportError, match="pages is no folder"):
        write_comparison(runs, tmp_path / "pages" / "compare.html")


# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(report, [str(argument) for argument in arguments])


def test_the_command_prints_what_it_wrote(run: Path) -> None:
    (run / "report.html").unlink(missing_ok=True)
    result = invoke(run)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(run / "report.html")]
    assert (run / "report.html").is_file()


def test_the_command_compares_several(runs: list[Path], tmp_path: Path) -> None:
    change_json(runs[1] / "evaluation/evaluation.json", protocol="another 3/3")
    out = tmp_path / "out.html"
    result = invoke(*runs, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [*(str(run / "report.html") for run in runs), str(out)]
    assert f"Warning: figures of different protocols do not compare: another 3/3, {PROTOCOL}." in (
        result.stderr
    )


def test_the_command_writes_nothing_when_one_is_no_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    result = invoke(folder, tmp_path / "nowhere")
    assert isinstance(result.exception, ReportError)
    assert not (folder / "report.html").exists()
    assert invoke().exit_code == 2


def test_a_network_that_embeds_all_photos_alike_has_a_map_too() -> None:
    alike = np.full((12, 8), 8**-0.5, np.float32)
    for rows in (alike, np.zeros_like(alike)):
        places = map_embeddings(rows)
        assert places.shape == (12, 2)
        assert np.isfinite(places).all()
