"""The comparison of several runs: one page beside their reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from index.files import write_atomically
from training.report.charts import Bars, Line, grouped_bars, line_chart
from training.report.html import render, setting_text
from training.report.record import Epoch, ReportError, RunRecord, read_run
from training.report.run_page import REPORT_FILE

__all__ = ["protocols", "write_comparison"]


def write_comparison(run_folders: Sequence[Path], path: Path) -> Path:
    """Write a page that compares runs: figures, curves, and the settings in which they differ.

    Args:
        run_folders: at least two; their reports, where they lie, are linked.
        path: the page to write.

    Raises:
        ReportError: fewer than two, not a run folder, a damaged file, or no folder for the page.
    """
    if len(run_folders) < 2:
        raise ReportError(f"a comparison of {len(run_folders)} runs: name at least two.")
    if not path.absolute().parent.is_dir():
        raise ReportError(f"{path.parent} is no folder: name a page in a folder that exists.")
    runs = [read_run(folder) for folder in run_folders]
    names = _names(runs)
    evaluated = [
        (name, run.evaluation) for name, run in zip(names, runs, strict=True) if run.evaluation
    ]
    ks = sorted({k for _, evaluation in evaluated for k in evaluation.trained.recall})
    page = render(
        "comparison.html.jinja",
        runs=[
            _Run(name=name, record=run, link=_link(run, path))
            for name, run in zip(names, runs, strict=True)
        ],
        protocols=protocols(runs),
        losses=sorted({run.loss for run in runs}),
        rows=[(name, row) for name, evaluation in evaluated for row in evaluation.rows],
        ks=ks,
        bars=_bars(names, runs, ks) if ks else None,
        loss_chart=_loss_chart(names, runs),
        recall_chart=_recall_chart(names, runs),
        differences=_differences(runs),
    )
    write_atomically(path, page)
    return path


def protocols(runs: Sequence[RunRecord]) -> list[str]:
    """The protocols by which runs were judged; the figures of more than one do not compare."""
    return sorted({run.evaluation.protocol for run in runs if run.evaluation is not None})


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run as the page lists it."""

    name: str
    record: RunRecord
    link: str | None  #: to its report


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Folder names, or whole paths where two folders have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _link(run: RunRecord, page: Path) -> str | None:
    report = run.path / REPORT_FILE
    if not report.is_file():
        return None
    return Path(os.path.relpath(report, page.absolute().parent)).as_posix()


def _bars(names: Sequence[str], runs: Sequence[RunRecord], ks: Sequence[int]) -> Markup:
    bars = [
        Bars(
            name=name,
            values=[run.evaluation.trained.recall.get(k) for k in ks],
            color=position,
        )
        for position, (name, run) in enumerate(zip(names, runs, strict=True))
        if run.evaluation is not None
    ]
    return grouped_bars(bars, groups=[f"R@{k}" for k in ks], label="Recall@K of each run")


def _loss_chart(names: Sequence[str], runs: Sequence[RunRecord]) -> Markup | None:
    xs = _epochs(runs, lambda epoch: epoch.loss)
    if not xs:
        return None
    lines = []
    for position, (name, run) in enumerate(zip(names, runs, strict=True)):
        losses = {epoch.epoch: epoch.loss for epoch in run.epochs}
        levels = {epoch.epoch: epoch.random_level for epoch in run.epochs}
        lines.append(Line(name=name, values=[losses.get(x) for x in xs], color=position))
        if any(level is not None for level in levels.values()):
            lines.append(
                Line(
                    name=f"{name}, random embedding",
                    values=[levels.get(x) for x in xs],
                    color=position,
                    reference=True,
                    listed=False,
                )
            )
    return line_chart(lines, xs=xs, label="Loss of each run by epoch", x_label="epoch")


def _recall_chart(names: Sequence[str], runs: Sequence[RunRecord]) -> Markup | None:
    xs = _epochs(runs, lambda epoch: epoch.recall.get(1))
    if not xs:
        return None
    lines = []
    for position, (name, run) in enumerate(zip(names, runs, strict=True)):
        recalls = {epoch.epoch: epoch.recall.get(1) for epoch in run.epochs}
        if any(recall is not None for recall in recalls.values()):
            values = [recalls.get(x) for x in xs]
            lines.append(Line(name=name, values=values, color=position))
    return line_chart(
        lines, xs=xs, label="Recall@1 of each run by epoch", x_label="epoch", percent=True
    )


def _epochs(runs: Sequence[RunRecord], figure: Callable[[Epoch], float | None]) -> list[int]:
    """The epochs in which any run has this figure."""
    return sorted({e.epoch for run in runs for e in run.epochs if figure(e) is not None})


def _differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings and versions in which the runs are not all alike, with the value of each run."""
    settings = [
        (name, [_setting(run, name) for run in runs])
        for name in dict.fromkeys(name for run in runs for name in run.settings)
    ]
    versions = [
        (f"version of {name}", [run.versions.get(name, "not recorded") for run in runs])
        for name in sorted({name for run in runs for name in run.versions})
    ]
    return [(name, values) for name, values in settings + versions if len(set(values)) > 1]


def _setting(run: RunRecord, name: str) -> str:
    return setting_text(run.settings[name]) if name in run.settings else "not there"
