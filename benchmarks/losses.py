"""DSCL against the best losses of pytorch-metric-learning, on the same photos at the same cost.

    python benchmarks/losses.py tune --data cars196 --weights mobilenet_v2-imagenet.pth
    python benchmarks/losses.py compare --data cars196 --weights mobilenet_v2-imagenet.pth

Every run has the same backbone, d, resolution, augmentation, schedule, number of photos and
threads, and the same export; only the loss, its batches and its rates differ. ``tune`` tries three
settings of every loss on training classes held out, and keeps the best by the mean of R@1 of
features and head, and square roots of the features where they are better; ``compare`` trains with
these on the whole training half, with several seeds, and judges on the test classes. Runs that are
done are kept, so both can be stopped and started again. ``tune`` writes losses_tuning.json,
``compare`` losses.json and losses.svg, and both print a table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from serving import DSCL

from index.files import replace_folder
from training.data import load_dataset
from training.sampler import ClassBalancedBatches, plan_batch

KINDS = ("features", "head")
TUNING = "losses_tuning.json"

#: What all runs share, but data, weights, epochs and seed. Activations of a whole batch are kept,
#: so that no loss pays for a second forward pass.
COMMON = {
    "backbone": "mobilenet_v2",
    "dim": 128,
    "size": 160,
    "train-size": 128,
    "freeze-until": "features.7",
    "activations-mb": 9900,
    "validation-classes": 0,
}

#: The peers' usual batches, 32 classes × 4 photos in one pass; in DSCL's they lose.
SMALL_BATCHES = {"batch-size": 128, "images-per-class": 4, "chunk-size": 128, "lr": 2e-3}
PROXIES = SMALL_BATCHES | {"proxy-lr": 2e-2}

#: Smaller crops and twice the colours: against overfitting.
STRONG = {"min-area": 0.15, "color": 0.4}

#: What is indexed of the features.
POWER = {"feature-power": 0.5}

#: What each peer is tried with. Higher rates lost 4 to 8 points in an earlier round.
TRIALS: tuple[dict[str, Any], ...] = (
    {"backbone-lr": 2e-4},
    {"backbone-lr": 1e-4},
    {"backbone-lr": 2e-4} | STRONG,
)

#: What ``tune`` chooses from: as many settings for each loss, around what earlier trials found
#: good. DSCL's batches hold every class.
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "dscl": [
        {"images-per-class": 8, "backbone-lr": 5e-4},
        {"images-per-class": 8, "backbone-lr": 8e-4},
        {"images-per-class": 8, "backbone-lr": 5e-4} | STRONG,
    ],
    "proxy-anchor": [PROXIES | trial for trial in TRIALS],
    "multi-similarity": [SMALL_BATCHES | trial for trial in TRIALS],
    "triplet": [SMALL_BATCHES | trial for trial in TRIALS],
    "arcface": [PROXIES | trial for trial in TRIALS],
}

#: Of the training classes, those that judge in ``tune``: the last in the order of their names.
HELD_OUT = 28

#: Photos that a run learns from for each class that trains, about.
PHOTOS_PER_CLASS = 184


@dataclass(frozen=True)
class Task:
    """One training run: a loss with its settings, on a data set."""

    name: str
    loss: str
    own: dict[str, Any]
    seed: int
    data: Path
    train_classes: int | None  #: None: as the data set splits itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("tune", "compare"))
    parser.add_argument(
        "--data", type=Path, required=True, help="class folders in train/ and test/"
    )
    parser.add_argument("--weights", type=Path, required=True, help="state dict of MobileNetV2")
    parser.add_argument("--photos-per-class", type=int, default=PHOTOS_PER_CLASS)
    parser.add_argument("--seeds", default="0,1,2", help="of compare")
    parser.add_argument("--losses", default=",".join(CANDIDATES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--runs", type=Path, default=Path("runs/losses"), help="run folders")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    {"tune": tune, "compare": compare}[arguments.step](arguments)


def tune(arguments: argparse.Namespace) -> None:
    """Choose each loss's settings on classes held out of the training half."""
    losses = arguments.losses.split(",")
    data = arguments.data / "train"
    halves = load_dataset(data)
    assert halves.test is not None  # class folders without a split are split in halves
    learning = len(halves.train.classes) + len(halves.test.classes) - HELD_OUT
    # Setting by setting, so that the losses take turns on a machine that others use too
    tasks = [
        Task(f"tune-{loss}-{number}", loss, CANDIDATES[loss][number], 0, data, learning)
        for number in range(len(TRIALS))
        for loss in losses
    ]
    results = run_all(tasks, arguments)
    chosen = {}
    for loss in losses:
        mine = [
            (statistics.mean(100 * pick(result["rows"], kind)["recall"]["1"] for kind in KINDS), i)
            for i, result in enumerate(results)
            if tasks[i].loss == loss
        ]
        best = max(mine)[1]
        # The features' power changes nothing else, so it is chosen by them, after the training.
        raised = replace(tasks[best], own=tasks[best].own | POWER)
        tasks.append(raised)
        results.append(judged_again(tasks[best], raised, arguments))
        features = [pick(results[i]["rows"], "features")["recall"]["1"] for i in (best, -1)]
        chosen[loss] = tasks[best].own if features[0] >= features[1] else raised.own
    save(arguments, TUNING, tasks, results, {"held_out_classes": HELD_OUT, "chosen": chosen})
    print("| loss | settings | features R@1, MAP@R | head R@1, MAP@R | chosen |")
    print("|---|---|---|---|---|")
    for task, result in zip(tasks, results, strict=True):
        rows = [pick(result["rows"], kind) for kind in KINDS]
        figures = " | ".join(
            f"{100 * row['recall']['1']:.1f}, {100 * row['map_at_r']:.1f}" for row in rows
        )
        tried = f"K = {task.own['images-per-class']}, backbone rate {task.own['backbone-lr']:g}"
        tried += ", strong augmentation" if STRONG.items() <= task.own.items() else ""
        tried += ", square roots of features" if POWER.items() <= task.own.items() else ""
        star = "yes" if chosen[task.loss] == task.own else ""
        print(f"| {task.loss} | {tried} | {figures} | {star} |")


def compare(arguments: argparse.Namespace) -> None:
    """Train every loss with its chosen settings, and judge on the test classes."""
    losses = arguments.losses.split(",")
    tuning = arguments.out / TUNING
    if not tuning.exists():
        raise SystemExit(f"{tuning} is missing: run `python benchmarks/losses.py tune …` first.")
    chosen = json.loads(tuning.read_text())["chosen"]
    tasks = [
        Task(f"{loss}-{seed}", loss, chosen[loss], seed, arguments.data, None)
        for seed in map(int, arguments.seeds.split(","))
        for loss in losses
    ]
    results = run_all(tasks, arguments)
    table = summarise(losses, results)
    save(arguments, "losses.json", tasks, results, {"summary": table})
    plot(table, arguments.out / "losses.svg")
    show(table)


def run_all(tasks: list[Task], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of every task, in order; several run side by side."""
    with ThreadPoolExecutor(arguments.jobs) as pool:
        return list(pool.map(lambda task: run(task, arguments), tasks))


def judged_again(task: Task, raised: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of what ``task`` has learned, exported with other settings."""
    folder = run_folder(task, arguments)
    copy = folder.with_name(f"{folder.name}-power")
    if not copy.exists():
        with replace_folder(copy) as fresh:
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
            options = [f"--{key}={value}" for key, value in POWER.items()]
            subprocess.run(
                [sys.executable, *DSCL, "export", "--run", str(fresh), *options],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                check=True,
            )
    return outcome(raised, copy, photos_of(task, arguments)[1])


def save(
    arguments: argparse.Namespace,
    name: str,
    tasks: list[Task],
    results: list[dict[str, Any]],
    more: dict[str, Any],
) -> None:
    """Write what was run, how, and what came of it."""
    report = {
        "command": f"python {' '.join(Path(argument).name for argument in sys.argv)}",
        "common": COMMON,
        "photos_per_class": arguments.photos_per_class,
        "runs": [
            {"settings": task.own} | result for task, result in zip(tasks, results, strict=True)
        ],
    } | more
    (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def run(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training run; its figures, and what it cost."""
    (epochs, photos), own = photos_of(task, arguments), with_batch(task)
    folder = run_folder(task, arguments)
    costs = folder / "costs.json"
    if not costs.exists():
        options = COMMON | own | {"epochs": epochs, "seed": task.seed}
        command = [sys.executable, "-m", "training", "--loss", task.loss, "--out", str(folder)]
        command += ["--data", str(task.data), "--weights", str(arguments.weights)]
        if task.train_classes is not None:
            command += ["--train-classes", str(task.train_classes)]
        # Of the backbone before training: the same for all
        command += ["--feature-cache", str(arguments.runs / "features")]
        for key, value in options.items():
            command += [f"--{key}", str(value)]
        resume = [sys.executable, "-m", "training", "--resume", str(folder)]
        started = folder.exists()
        began = time.monotonic()
        log = folder.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                resume if started else command,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
            )
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed, see {log}")
        cost = {
            "wall_s": time.monotonic() - began,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "whole": not started,
        }
        costs.write_text(json.dumps(cost))
    return outcome(task, folder, photos)


def outcome(task: Task, folder: Path, photos: int) -> dict[str, Any]:
    """What a run folder says."""
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    recalls = (f"{row['name']} {100 * row['recall']['1']:.1f}" for row in evaluation["rows"])
    print(f"{folder.name}, R@1: {'; '.join(recalls)}", file=sys.stderr, flush=True)
    return {
        "loss": task.loss,
        "seed": task.seed,
        "photos": photos,
        "protocol": evaluation["protocol"],
        "rows": evaluation["rows"],
        "images_per_s": statistics.median(
            line["images_per_s"] for line in metrics if line["images_per_s"]
        ),
        **json.loads((folder / "costs.json").read_text()),
    }


def run_folder(task: Task, arguments: argparse.Namespace) -> Path:
    """Where a run lies."""
    folder: Path = arguments.runs / f"{task.name}-{photos_of(task, arguments)[0]}"
    return folder


def train_labels(task: Task) -> NDArray[np.int64]:
    """The classes of the photos that a run learns from."""
    train_classes = None if task.train_classes is None else str(task.train_classes)
    return load_dataset(task.data, train_classes=train_classes).train.labels


def with_batch(task: Task) -> dict[str, Any]:
    """A task's own settings; where they name no batch, it holds every class."""
    classes = len(np.unique(train_labels(task)))
    return {"batch-size": classes * task.own["images-per-class"]} | task.own


def photos_of(task: Task, arguments: argparse.Namespace) -> tuple[int, int]:
    """Epochs of a run, and the photos in them all."""
    labels = train_labels(task)
    classes = len(np.unique(labels))
    return whole_epochs(with_batch(task), labels, arguments.photos_per_class * classes)


def whole_epochs(own: dict[str, Any], labels: NDArray[np.int64], photos: int) -> tuple[int, int]:
    """Epochs that come nearest to the photos of a run, and how many photos these are.

    An epoch visits every photo, and fills up batches with others: by how many depends on the batch.
    """
    classes, images = plan_batch(own["batch-size"], own["images-per-class"], len(np.unique(labels)))
    sampler = ClassBalancedBatches(
        labels, classes_per_batch=classes, images_per_class=images, seed=0
    )
    epoch = len(sampler) * classes * images
    epochs = max(1, round(photos / epoch))
    return epochs, epochs * epoch


def summarise(losses: list[str], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over the seeds, for the head and for the features."""
    table = []
    for loss in losses:
        runs = [result for result in results if result["loss"] == loss]
        for kind in KINDS:
            rows = [pick(result["rows"], kind) for result in runs]
            recalls = {k: [100 * row["recall"][k] for row in rows] for k in ("1", "2", "4", "8")}
            table.append(
                {
                    "loss": loss,
                    "embedding": kind,
                    "seeds": len(runs),
                    "recall": {k: statistics.mean(values) for k, values in recalls.items()},
                    "recall_1_low": min(recalls["1"]),
                    "recall_1_high": max(recalls["1"]),
                    "map_at_r": statistics.mean(100 * row["map_at_r"] for row in rows),
                    "photos": runs[0]["photos"],
                    # Of runs that were not stopped and resumed
                    "cpu_s": statistics.median(
                        [run["cpu_s"] for run in runs if run["whole"]] or [math.nan]
                    ),
                }
            )
    return table


def pick(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The row of the trained features or of the head."""
    found = [
        row for row in rows[:2] if ("backbone features" in row["name"]) == (kind == "features")
    ]
    return found[0]


def show(table: list[dict[str, Any]]) -> None:
    print("| loss | embedding | seeds | R@1 (range) | R@2 | R@4 | R@8 | MAP@R | photos | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for line in sorted(table, key=lambda line: (line["embedding"], -line["recall"]["1"])):
        recall = line["recall"]
        print(
            f"| {line['loss']} | {line['embedding']} | {line['seeds']} | {recall['1']:.1f} "
            f"({line['recall_1_low']:.1f} … {line['recall_1_high']:.1f}) | {recall['2']:.1f} | "
            f"{recall['4']:.1f} | {recall['8']:.1f} | {line['map_at_r']:.1f} | "
            f"{line['photos']:,} | {line['cpu_s']:.0f} |"
        )


def plot(table: list[dict[str, Any]], path: Path) -> None:
    """R@1 of each loss with the spread of its seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, kind, title in zip(
        axes, ("features", "head"), ("backbone features", "head, d = 128"), strict=True
    ):
        lines = sorted(
            (line for line in table if line["embedding"] == kind),
            key=lambda line: line["recall"]["1"],
        )
        middles = [line["recall"]["1"] for line in lines]
        errors = [
            [m - line["recall_1_low"] for m, line in zip(middles, lines, strict=True)],
            [line["recall_1_high"] - m for m, line in zip(middles, lines, strict=True)],
        ]
        colors = ["#c2410c" if line["loss"] == "dscl" else "#64748b" for line in lines]
        axis.bar(range(len(lines)), middles, yerr=errors, color=colors, capsize=4)
        axis.set_xticks(range(len(lines)), [line["loss"] for line in lines], rotation=20)
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    low = min(line["recall_1_low"] for line in table)
    axes[0].set_ylim(max(0, 10 * (low // 10) - 10), None)
    axes[0].set_ylabel("recall@1, %")
    figure.savefig(path)


if __name__ == "__main__":
    main()
