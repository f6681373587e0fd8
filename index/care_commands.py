"""The ``dscl index`` commands that look after a gallery: check, compact, snapshot, migrate, …

What they do lives in ``care``, ``migrate``, ``duplicates`` and ``transfer``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from index.address import GalleryAddress
from index.care import check as check_gallery
from index.care import compact as compact_gallery
from index.care import restore as restore_gallery
from index.care import snapshot as take_snapshot
from index.command_options import (
    FOLDER,
    building_bar,
    counting_bar,
    gallery_folder_option,
    gallery_option,
    json_option,
    print_json,
    resumable,
    workers_option,
)
from index.duplicates import DEFAULT_THRESHOLD, find_duplicates
from index.errors import GalleryError
from index.gallery import Gallery
from index.migrate import migrate as migrate_gallery
from index.model import Model
from index.runtimes import Precision
from index.transfer import export_header, export_items, import_items

__all__ = ["CARE_COMMANDS"]

#: Findings and groups printed in full; the rest are counted. ``--json`` lists all.
SHOWN = 20


@click.command()
@gallery_folder_option
@click.option("--photos", is_flag=True, help="Read every photo and compare its checksum.")
@workers_option
@json_option
def check(gallery_path: Path, photos: bool, workers: int | None, as_json: bool) -> None:
    """Look for damage and lost photos; exits with 1 if there is any. Changes nothing."""
    with resumable("Nothing was changed."), counting_bar("Checking", "item", as_json) as bar:
        report = check_gallery(gallery_path, photos=photos, workers=workers, progress=bar)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        lines = [f"problem  {each.message}" for each in report.problems]
        lines += [f"note     {each.message}" for each in report.notes]
        _print_some(lines)
        click.echo(
            f"{report.items} items: {len(report.problems)} problems, {len(report.notes)} notes"
        )
    if report.problems:
        raise click.exceptions.Exit(1)


@click.command()
@gallery_folder_option
@json_option
def compact(gallery_path: Path, as_json: bool) -> None:
    """Build the index anew and give unused disk space back. Searches go on meanwhile."""
    with resumable("The gallery is whole."), building_bar(as_json) as building:
        before, after = compact_gallery(gallery_path, progress=building)
    if as_json:
        print_json({"bytes_before": before, "bytes_after": after})
        return
    click.echo(f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now")


@click.command()
@gallery_folder_option
@click.argument("target", type=FOLDER)
def snapshot(gallery_path: Path, target: Path) -> None:
    """Copy the gallery as it is now to TARGET, which is a gallery itself.

    It may be searched and changed meanwhile.
    """
    with resumable("There is no copy."):
        take_snapshot(gallery_path, target)
    click.echo(f"{target} is a copy of {gallery_path}; `dscl index restore` brings it back.")


@click.command()
@gallery_folder_option
@click.argument("source", type=FOLDER)
def restore(gallery_path: Path, source: Path) -> None:
    """Bring the gallery back to the state of the snapshot SOURCE.

    Whoever searches it goes on, and finds the restored state at the next search. Where there is no
    gallery, it is made.
    """
    with resumable("The gallery is whole: as it was, or restored."):
        restore_gallery(gallery_path, source)
    click.echo(f"{gallery_path} is as {source} was.")


@click.command()
@gallery_option
@click.option("--model", "model_path", type=FOLDER, required=True, help="The new model's folder.")
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp32",
    show_default=True,
    help="What photos are embedded in.",
)
@click.option(
    "--skip-missing", is_flag=True, help="Go without items whose photo is gone or has changed."
)
@workers_option
@json_option
def migrate(
    gallery_path: GalleryAddress,
    model_path: Path,
    precision: Precision,
    skip_missing: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Embed all photos again with another model, beside the gallery, and swap.

    The gallery is searched and may be changed meanwhile. Stopped and run again, it continues. A
    process that has the gallery open, such as `dscl serve`, goes on with the old model until it is
    started again.
    """
    model = Model.load(model_path, precision=precision)
    with (
        resumable("The gallery is as it was; the same command goes on."),
        counting_bar("Embedding", "photo", as_json) as bar,
        building_bar(as_json) as building,
    ):
        report = migrate_gallery(
            gallery_path,
            model,
            skip_missing=skip_missing,
            workers=workers,
            progress=bar,
            building=building,
        )
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    click.echo(
        f"{report.items} items are of model {model.card.name} now, {len(report.removed)} are gone. "
        f"The gallery as it was is {report.former}: delete it when you need it no more. Start "
        "again what serves the gallery."
    )


@click.command()
@gallery_option
@click.option(
    "--threshold",
    type=float,
    default=DEFAULT_THRESHOLD,
    show_default=True,
    help="Cosine similarity that makes two photos near-identical.",
)
@json_option
def duplicates(gallery_path: GalleryAddress, threshold: float, as_json: bool) -> None:
    """List groups of near-identical photos."""
    with Gallery.open(gallery_path) as gallery:
        with (
            resumable("Nothing was changed."),
            counting_bar("Comparing", "item", as_json) as bar,
        ):
            groups = find_duplicates(gallery, threshold=threshold, progress=bar)
        images = [[str(item.image) for item in gallery.get(group.ids)] for group in groups]
    if as_json:
        print_json(
            [
                {**dataclasses.asdict(group), "images": paths}
                for group, paths in zip(groups, images, strict=True)
            ]
        )
        return
    _print_some(
        [
            "\n".join(
                [f"{len(group.ids)} photos, similarity from {group.least:.3f}"]
                + [
                    f"  {item_id:>8}  {path}"
                    for item_id, path in zip(group.ids, paths, strict=True)
                ]
            )
            for group, paths in zip(groups, images, strict=True)
        ]
    )
    click.echo(f"{len(groups)} groups, {sum(len(group.ids) for group in groups)} photos")


@click.command("export")
@gallery_folder_option
@click.argument("target", type=FOLDER)
def export_command(gallery_path: Path, target: Path) -> None:
    """Write items with their vectors to TARGET.

    NAME.parquet becomes a Parquet file, any other name a folder with vectors.npy and items.jsonl.
    """
    with (
        resumable(f"{target} was not written."),
        counting_bar("Exporting", "item", as_json=False) as bar,
    ):
        count = export_items(gallery_path, target, progress=bar)
    click.echo(f"{count} items in {target}")


@click.command("import")
@gallery_folder_option
@click.option("--model", "model_path", type=FOLDER, help="Make the gallery, with this model.")
@click.argument("source", type=FOLDER)
@json_option
def import_command(
    gallery_path: Path, model_path: Path | None, source: Path, as_json: bool
) -> None:
    """Add the items of an export, vectors included; no photo is read.

    SOURCE is checked wholly before anything is stored. Stopped and run again, it continues.
    """
    if gallery_path.exists():
        opened = Gallery.open(gallery_path, writable=True)
    elif model_path is not None:
        header = export_header(source)
        model = Model.load(model_path, precision=header.precision)
        header.expect_model(source, model)
        opened = Gallery.create(gallery_path, model)
    else:
        raise GalleryError(f"{gallery_path} does not exist: name its --model to make it.")
    with (
        resumable("What was stored stays; the same command goes on."),
        opened as gallery,
        counting_bar("Importing", "row", as_json) as bar,
    ):
        report = import_items(gallery, source, progress=bar)
        gallery.settle()
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    click.echo(f"Added {report.added}, unchanged {report.unchanged}")


def _print_some(texts: list[str]) -> None:
    for text in texts[:SHOWN]:
        click.echo(text)
    if len(texts) > SHOWN:
        click.echo(f"… and {len(texts) - SHOWN} more (--json lists all)")


@click.command("map")
@gallery_folder_option
@click.option("--anew", is_flag=True, help="Lay all items out again, though few have come.")
@json_option
def map_command(gallery_path: Path, anew: bool, as_json: bool) -> None:
    """Draw the map of the gallery that its page shows: look-alikes next to one another.

    Where few items have come since the last map, they are put into it. Others search and change the
    gallery meanwhile.
    """
    with (
        resumable("The map is as it was."),
        Gallery.open(gallery_path) as gallery,
        tqdm(desc="Map", disable=as_json or None, bar_format="{desc}: {percentage:3.0f} %") as bar,
    ):

        def tell(done: int, total: int, stage: str) -> None:
            bar.total = total
            bar.set_description_str(f"Map: {stage}", refresh=False)
            bar.update(done - bar.n)

        drawn = gallery.draw_map(anew=anew, progress=tell)
    facts = {"points": len(drawn.ids), "items": drawn.items, "created": drawn.created.isoformat()}
    if as_json:
        print_json(facts)
        return
    click.echo(f"{len(drawn.ids)} of {drawn.items} items are on the map of {gallery_path}")


CARE_COMMANDS = (
    check,
    compact,
    snapshot,
    restore,
    migrate,
    duplicates,
    map_command,
    export_command,
    import_command,
)
