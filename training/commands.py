"""The ``dscl`` commands of this package: ``train``, ``export`` and ``data``."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from tqdm import tqdm

from index.errors import InvalidArgumentError
from index.images import ResizeMode
from training.settings import TrainSettings

PATH = click.Path(path_type=Path)


def _options() -> list[click.Parameter]:
    """One option for each field of ``TrainSettings``."""
    hints = get_type_hints(TrainSettings)
    return [_option(setting, hints[setting.name]) for setting in dataclasses.fields(TrainSettings)]


def _option(setting: dataclasses.Field[Any], hint: Any) -> click.Option:
    name = setting.name.replace("_", "-")
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    return click.Option(
        [f"--{name}/--no-{name}" if kind is bool else f"--{name}"],
        type=click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind,
        default=setting.default,
        show_default=setting.default not in (None, ""),
        help=setting.metadata["help"],
    )


def _echo(message: str) -> None:
    """Print above the progress bars; at once, also where the output is a log file."""
    tqdm.write(message)
    sys.stdout.flush()


@click.command(params=_options())
@click.option("--out", type=PATH, help="The run folder.  [default: runs/ and the time]")
@click.option("--resume", type=PATH, help="Continue this run folder with its own settings.")
def train(*, out: Path | None, resume: Path | None, **values: Any) -> None:
    """Train an embedding with DSCL on labelled photos, and export it.

    The data set is split by class: test classes are never seen in training, and judge the result.
    """
    from training.run import Run
    from training.stop import Stopped
    from training.trainer import train as run_training

    context = click.get_current_context()
    given = {
        name for name in [*values, "out"]
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }  # fmt: skip
    if resume is not None:
        run = Run.open(resume)
        kept = run.settings.to_dict() | {"out": None}
        other = [name for name in sorted(given) if kept[name] != context.params[name]]
        if other:
            raise InvalidArgumentError(
                f"--resume {resume} keeps the run's own settings; these differ: "
                + ", ".join(f"{name} (run: {kept[name]}, given: {context.params[name]})"
                            for name in other)
                + ". Leave them out, or start a new run."
            )  # fmt: skip
    else:
        if not values["data"]:
            raise click.UsageError("Missing option '--data', the labelled photos.")
        settings = TrainSettings(**values)
        run = Run.create(out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"), settings)
    for name, value in run.settings.to_dict().items():
        click.echo(f"  {name:<20}{value}")
    click.echo(f"Run folder: {run.path} (live plots: tensorboard --logdir {run.path})")
    try:
        run_training(run, echo=_echo)
    except Stopped as stopped:
        for note in getattr(stopped, "__notes__", []):
            click.echo(note, err=True)
        click.echo(f"Stopped. Continue with: dscl train --resume {run.path}", err=True)
        context.exit(130)


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
@click.option("--out", type=PATH, help="The model folder.  [required with --backbone]")
def export(run_path: Path | None, backbone: str | None, **options: Any) -> None:
    """Write a model folder: a run's last checkpoint, or a frozen backbone.

    With a frozen backbone, photos can be searched at once, without labels or training.
    """
    if (run_path is None) == (backbone is None):
        raise click.UsageError("Give either --backbone or --run.")
    if run_path is not None:
        from training.run import Run
        from training.trainer import finish, resume_network

        run = Run.open(run_path)
        finish(run, *resume_network(run, echo=click.echo), echo=click.echo)
        return
    if options["out"] is None:
        raise click.UsageError("Missing option '--out', the model folder to write.")
    if options["dim"] is not None and options["whiten_on"] is None:
        raise click.UsageError("--dim needs --whiten-on: it keeps the axes of largest variance.")
    from training.frozen import export_frozen

    assert backbone is not None
    card = export_frozen(backbone, **options)
    click.echo(
        f"Exported {options['out']}: {card.name}, {card.dim} values a vector ({card.sha256[:12]}…)."
    )


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
@click.option("--train-classes", help=TrainSettings.__dataclass_fields__["train_classes"]
              .metadata["help"])  # fmt: skip
@click.option("--crop-boxes", is_flag=True, help="Cars196: crop photos to their bounding boxes.")
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
    if as_json:
        facts = {"name": dataset.name, "protocol": dataset.protocol, "layout": dataset.layout}
        click.echo(json.dumps({**facts, **counts, "notes": dataset.notes}, indent=2))
        return
    click.echo(f"{dataset.name} · {dataset.protocol} · layout {dataset.layout}")
    for name, count in counts.items():
        click.echo(f"  {name:<6}{count['photos']} photos of {count['classes']} classes")
    for note in dataset.notes:
        click.echo(f"  {note}")
