"""The ``dscl`` commands of this package: ``train``, ``export`` and ``data``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from tqdm import tqdm

from index.errors import InvalidArgumentError
from index.images import ResizeMode
from training.fields import setting_fields
from training.options import (
    Origin,
    TrainCommand,
    describe,
    origins,
    preset_options,
    setting_options,
    typed_arguments,
    typed_command,
)
from training.settings import Embedding, TrainSettings

if TYPE_CHECKING:
    from training.run import Run

PATH = click.Path(path_type=Path)


def _echo(message: str) -> None:
    """Print above the progress bars; at once, also where the output is a log file."""
    tqdm.write(message)
    sys.stdout.flush()


@click.command(cls=TrainCommand, params=setting_options())
@preset_options
@click.option("--out", type=PATH, help="The run folder.  [default: runs/ and the time]")
@click.option("--resume", type=PATH, help="Continue this run folder with its own settings.")
@click.option("--nproc", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes on this machine that train together, a GPU each.")  # fmt: skip
def train(
    *, preset: str | None, out: Path | None, resume: Path | None, nproc: int, **values: Any
) -> None:
    """Train an embedding on labelled photos, and export it.

    The data set is split by class: test classes are never seen in training, and judge the result.
    Settings come from the command line, else from the preset, else from the defaults below; the
    word default in place of a value takes back the preset's.
    """
    from training.launch import launch, launched

    # Before torch is imported, which takes seconds.
    settings = _settings(values, preset) if resume is None else None
    if resume is None and out is None and launched():
        raise click.UsageError("Missing option '--out': all processes need to know the place.")

    from training.run import Run
    from training.stop import Stopped
    from training.trainer import train as run_training

    context = click.get_current_context()
    sources = origins(context)
    if settings is not None:
        run = Run(out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"), settings)
    else:
        assert resume is not None
        run = Run.open(resume)
        run.settings = _resumed_settings(run, context.params, sources)
        sources = dict.fromkeys(sources, "run")
    if nproc > 1 and not launched():
        place = [] if resume is not None else ["--out", str(run.path)]
        context.exit(launch(nproc, ["-m", "training", *typed_arguments(context), *place]))

    # Under a launcher, one process of several makes the run folder and speaks.
    main = not launched() or os.environ.get("RANK") == "0"
    if main:
        if resume is None:
            Run.create(run.path, run.settings, command=typed_command(context), preset=preset)
        click.echo(describe(run.settings, sources))
        click.echo(f"Run folder: {run.path} (live plots: tensorboard --logdir {run.path})")
    try:
        run_training(run, echo=_echo)
    except Stopped as stopped:
        if main:
            for note in getattr(stopped, "__notes__", []):
                click.echo(note, err=True)
            click.echo(f"Stopped. Continue with: dscl train --resume {run.path}", err=True)
        context.exit(130)


def _settings(values: dict[str, Any], preset: str | None) -> TrainSettings:
    if not values["data"]:
        raise click.UsageError("Missing option '--data', the labelled photos.")
    try:
        return TrainSettings(**values)
    except InvalidArgumentError as error:
        if preset is None:
            raise
        raise InvalidArgumentError(f"{error} (With --preset {preset}.)") from error


def _resumed_settings(
    run: Run, given: Mapping[str, Any], sources: Mapping[str, Origin]
) -> TrainSettings:
    """The run's own settings, with what was given of those that do not change the result.

    Raises:
        InvalidArgumentError: the command line or a preset contradicts the run.
    """
    kept = run.settings.to_dict() | {"out": run.path}
    other = [name for name in sorted(kept)
             if sources[name] != "default" and kept[name] != given[name]]  # fmt: skip
    free = run.settings.may_change_on_resume
    refused = [
        f"{name} (run: {kept[name]}, "
        f"{'preset' if sources[name] == 'preset' else 'given'}: {given[name]})"
        for name in other
        if name not in free
    ]
    if refused:
        raise InvalidArgumentError(
            f"--resume {run.path} keeps the run's own settings; these differ: "
            f"{', '.join(refused)}. Leave them out, or start a new run."
        )
    return dataclasses.replace(run.settings, **{name: given[name] for name in other})


@click.command()
@click.option("--run", "run_path", type=PATH, help="Export a training run's last checkpoint.")
@click.option("--backbone", help="Export a backbone without training it.")
@click.option("--weights", default="imagenet", show_default=True,
              help="imagenet, none, or the path of a state dict.")  # fmt: skip
@click.option("--whiten-on", type=PATH, help="Photos (labels are not needed) to whiten with.")
@click.option("--dim", type=int, help="With --whiten-on: keep this many dimensions.")
@click.option("--whitening-ridge", default=0.1, show_default=True, help="Damps the whitening.")
@click.option("--size", type=int, help="Side of the input in pixels.  [default: the backbone's]")
@click.option("--resize", type=click.Choice(get_args(ResizeMode)), default="squash",
              show_default=True, help="How a photo comes to a square.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="For --weights none.")
@click.option("--int8", is_flag=True,
              help="Also in int8: faster on a CPU, less exact; says how much.")  # fmt: skip
@click.option("--embedding", type=click.Choice(get_args(Embedding)),
              help="With --run: index this, rather than what the run says.")  # fmt: skip
@click.option("--feature-power", type=float, help="With --run: as of dscl train.")
@click.option("--mirror/--no-mirror", default=None, help="With --run: as of dscl train.")
@click.option("--out", type=PATH, help="The model folder.  [required with --backbone]")
def export(
    run_path: Path | None,
    backbone: str | None,
    int8: bool,
    embedding: Embedding | None,
    feature_power: float | None,
    mirror: bool | None,
    **options: Any,
) -> None:
    """Write a model folder: a run's last checkpoint, or a frozen backbone.

    With a frozen backbone, photos can be searched at once, without labels or training. Of a run,
    model, figures and report are replaced.
    """
    if (run_path is None) == (backbone is None):
        raise click.UsageError("Give either --backbone or --run.")
    changes: dict[str, Any] = {
        "embedding": embedding, "feature_power": feature_power, "mirror": mirror
    }  # fmt: skip
    changes = {name: value for name, value in changes.items() if value is not None}
    if run_path is not None:
        from training.finish import finish
        from training.memory import keep_freed_memory
        from training.preparation import resume_network
        from training.run import Run

        keep_freed_memory()
        run = Run.open(run_path)
        run.settings = dataclasses.replace(run.settings, **changes)
        finish(run, *resume_network(run, echo=click.echo), int8=int8, echo=click.echo)
        run.keep_settings()
        return
    if changes:
        raise click.UsageError("--embedding, --feature-power and --mirror go with --run.")
    if options["out"] is None:
        raise click.UsageError("Missing option '--out', the model folder to write.")
    if options["dim"] is not None and options["whiten_on"] is None:
        raise click.UsageError("--dim needs --whiten-on: it keeps the axes of largest variance.")
    if int8 and options["whiten_on"] is None:
        raise click.UsageError("--int8 needs --whiten-on: it is calibrated on those photos.")
    from training.frozen import export_frozen

    assert backbone is not None
    card = export_frozen(backbone, int8=int8, **options)
    click.echo(
        f"Exported {options['out']}: {card.name}, {card.dim} values a vector ({card.sha256[:12]}…)."
    )
    if int8:
        cosine = card.precisions["int8"].metrics["cosine"]
        click.echo(f"Added int8: mean cosine similarity to fp32 is {cosine:.3f}.")


def _help(setting: str) -> str:
    return next(field.help for field in setting_fields() if field.name == setting)


@click.group()
def data() -> None:
    """Make and look at data sets."""


@data.command()
@click.option("--out", type=PATH, required=True, help="A new folder.")
@click.option("--classes", default=40, show_default=True, help="Models of car.")
@click.option("--test-classes", type=int, help="How many of them go to test/.  [default: half]")
@click.option("--per-class", default=30, show_default=True, help="Photos of each.")
@click.option("--size", default=192, show_default=True, help="Longer side in pixels.")
@click.option("--seed", default=0, show_default=True)
def render(out: Path, **options: Any) -> None:
    """Draw cars: class folders in train/ and test/."""
    from training.render import render_dataset

    total = options["classes"] * options["per_class"]
    with tqdm(total=total, unit="photo", desc="Drawing", disable=None) as bar:
        render_dataset(out, **options, progress=lambda done, total: bar.update())
    click.echo(f"Drew {total} photos of {options['classes']} models of car into {out}.")


@data.command()
@click.argument("path", type=PATH)
@click.option("--train-classes", help=_help("train_classes"))
@click.option("--crop-boxes", is_flag=True, help=_help("crop_boxes"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: Path, train_classes: str | None, crop_boxes: bool, as_json: bool) -> None:
    """Tell how a data set is laid out and split."""
    from training.data import load_dataset

    dataset = load_dataset(path, train_classes=train_classes, crop_boxes=crop_boxes)
    parts = {"train": dataset.train, "test": dataset.test}
    counts = {
        name: {"photos": len(photos), "classes": len(photos.classes)}
        for name, photos in parts.items()
        if photos is not None
    }
    if dataset.queries is not None:
        counts["test"]["queries"] = int(dataset.queries.sum())
    if as_json:
        facts = {"name": dataset.name, "protocol": dataset.protocol, "layout": dataset.layout}
        click.echo(json.dumps({**facts, **counts, "notes": dataset.notes}, indent=2))
        return
    click.echo(f"{dataset.name} · {dataset.protocol} · layout {dataset.layout}")
    for name, count in counts.items():
        queries = f", {count['queries']} queries to the others" if "queries" in count else ""
        click.echo(f"  {name:<6}{count['photos']} photos of {count['classes']} classes{queries}")
    for note in dataset.notes:
        click.echo(f"  {note}")
