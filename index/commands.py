"""The ``dscl`` commands that fill, change and search a gallery.

Those that look after one are in ``index.care_commands``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
from tqdm import tqdm

from index.address import GalleryAddress
from index.approximate import RequestedKind
from index.bulk_commands import Engine, embed_shard, engine_options, open_bulk
from index.care_commands import CARE_COMMANDS
from index.command_options import (
    FOLDER,
    building_bar,
    gallery_option,
    json_option,
    parse_object,
    print_json,
    resumable,
    search_options,
    where_option,
    workers_option,
)
from index.errors import GalleryError, InvalidArgumentError, ItemNotFoundError
from index.gallery import Gallery, IndexInfo, check_k, expect_model, is_there
from index.ingest import BuildReport, BulkEmbedder
from index.ingest import build as build_gallery
from index.items import KEEP, Item
from index.model import Model
from index.photos import Photo, list_photos
from index.runtimes import Precision
from index.tuning import check_target

__all__ = ["evaluate", "index", "parse_ks", "print_hits", "search"]

#: How items are named on the command line.
ID = re.compile(r"[0-9]{1,19}")
SKU_PREFIX = "sku:"
ITEM_HELP = "An item is named by its id, by sku:NAME, or by the path of its photo."

GOES_ON = "What was embedded is stored; the same command goes on."
SHARDS_GO_ON = "Shards that are done are kept; the same command goes on."

#: Unreadable photos named in full; the rest are counted. ``--json`` lists all.
SHOWN = 10

precision_option = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="What photos are embedded in.  [default: the gallery's; fp32 for a new one]",
)
kind_option = click.option(
    "--index",
    "kind",
    type=click.Choice(get_args(RequestedKind)),
    help="The kind of index.  [default: the gallery's; auto for a new one]",
)
recall_option = click.option(
    "--recall",
    type=float,
    help="Share of the 10 nearest that the index is to find.  "
    "[default: the gallery's; 0.99 for a new one]",
)
duplicates_option = click.option(
    "--skip-duplicates", is_flag=True, help="Leave out photos that are byte for byte another one."
)


@click.group()
def index() -> None:
    """Build, change and look after a gallery."""


for command in CARE_COMMANDS:
    index.add_command(command)
index.add_command(embed_shard)


@index.command()
@click.option("--model", "model_path", type=FOLDER, required=True, help="The model folder.")
@click.option(
    "--images",
    type=FOLDER,
    required=True,
    help="A folder (subfolders become labels) or a CSV: path, optionally label, sku, attributes.",
)
@gallery_option
@precision_option
@kind_option
@recall_option
@duplicates_option
@click.option("--prune", is_flag=True, help="Remove items from that folder whose photo is gone.")
@engine_options
@json_option
def build(
    model_path: Path,
    images: Path,
    gallery_path: GalleryAddress,
    precision: Precision | None,
    kind: RequestedKind | None,
    recall: float | None,
    skip_duplicates: bool,
    prune: bool,
    engine: Engine,
    workers: int | None,
    work: Path | None,
    shard_size: int | None,
    address: str | None,
    gpus: float | None,
    as_json: bool,
) -> None:
    """Embed photos into a gallery. Stopped and run again, it continues.

    Photos that have not changed are not read again; what a CSV says about them is taken over. The
    gallery is the same whichever engine embeds.
    """
    if recall is not None:
        check_target(recall)
    photos = list_photos(images)
    with (
        resumable(GOES_ON if engine == "threads" else SHARDS_GO_ON),
        open_bulk(
            engine,
            gallery_path=gallery_path,
            work=work,
            workers=workers,
            shard_size=shard_size,
            address=address,
            gpus=gpus,
        ) as bulk,
        _open_or_create(
            gallery_path, model_path, precision=precision, kind=kind, recall=recall
        ) as gallery,
    ):
        report = _fill(
            gallery,
            photos,
            workers if bulk is None else None,
            as_json,
            skip_duplicates=skip_duplicates,
            prune=prune,
            bulk=bulk,
        )
        now = gallery.info().index
        wanted = (now.target_recall if recall is None else recall, kind or now.requested)
        if wanted != (now.target_recall, now.requested):
            gallery.tune(wanted[0], kind=wanted[1])
        _tell(gallery, report, as_json)


@index.command()
@gallery_option
@click.argument("images", type=FOLDER, nargs=-1, required=True)
@click.option("--label", help="Give these photos this label.")
@click.option("--sku", help="Your own name for the item; with one photo. Replaces the item of it.")
@duplicates_option
@workers_option
@json_option
def add(
    gallery_path: GalleryAddress,
    images: tuple[Path, ...],
    label: str | None,
    sku: str | None,
    skip_duplicates: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Add photos, folders or CSV files to an existing gallery."""
    photos = [photo for source in images for photo in list_photos(source)]
    if sku is not None and len(photos) != 1:
        raise InvalidArgumentError(
            f"--sku {sku} names one item, and these are {len(photos)} photos: add them one by one, "
            "or by a CSV with the columns path and sku."
        )
    if label is not None:
        photos = [
            dataclasses.replace(photo, label=label, stated=photo.stated | {"label"})
            for photo in photos
        ]
    if sku is not None:
        photos = [
            dataclasses.replace(photo, external_id=sku, stated=photo.stated | {"sku"})
            for photo in photos
        ]
    with resumable(GOES_ON), Gallery.open(gallery_path, writable=True) as gallery:
        report = _fill(gallery, photos, workers, as_json, skip_duplicates=skip_duplicates)
        _tell(gallery, report, as_json)


@index.command(epilog=ITEM_HELP)
@gallery_option
@click.argument("item")
@click.option("--label", help="The new label; '' for none.")
@click.option("--sku", help="The new sku; '' for none.")
@click.option(
    "--attributes",
    metavar="JSON",
    help='Attributes to set; null takes one away: \'{"year": 2010, "colour": null}\'.',
)
@json_option
def update(
    gallery_path: GalleryAddress,
    item: str,
    label: str | None,
    sku: str | None,
    attributes: str | None,
    as_json: bool,
) -> None:
    """Change what is known about an item; its photo and its id stay."""
    if label is None and sku is None and attributes is None:
        raise InvalidArgumentError("nothing to update: give --label, --sku or --attributes.")
    changes = {} if attributes is None else parse_object("--attributes", attributes)
    with Gallery.open(gallery_path, writable=True) as gallery:
        [item_id] = _ids(gallery, [item])
        gallery.update(
            item_id,
            label=KEEP if label is None else label or None,
            external_id=KEEP if sku is None else sku or None,
            attributes=changes,
        )
        [updated] = gallery.get([item_id])
    if as_json:
        print_json(_fields(updated))
        return
    described = "".join(
        f", {name} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in updated.attributes.items()
    )
    click.echo(
        f"Item {updated.id}: label {updated.label or '–'}, sku {updated.external_id or '–'}"
        f"{described}"
    )


@index.command(epilog=ITEM_HELP)
@gallery_option
@click.argument("items", nargs=-1, required=True)
def remove(gallery_path: GalleryAddress, items: tuple[str, ...]) -> None:
    """Remove items. The photo files stay."""
    with Gallery.open(gallery_path, writable=True) as gallery:
        ids = _ids(gallery, items)
        gallery.remove(ids)
        click.echo(f"Removed {len(set(ids))}; {len(gallery)} items are left.")


@index.command()
@gallery_option
@click.option(
    "--recall", type=float, required=True, help="Share of the 10 nearest that searches are to find."
)
@click.option("--kind", type=click.Choice(get_args(RequestedKind)), help="Change the kind, too.")
@json_option
def tune(
    gallery_path: GalleryAddress, recall: float, kind: RequestedKind | None, as_json: bool
) -> None:
    """Say how much the index is to find, and measure that on the gallery's own vectors."""
    with (
        resumable("The index is as it was."),
        Gallery.open(gallery_path, writable=True) as gallery,
        building_bar(as_json) as building,
    ):
        tuned = gallery.tune(recall, kind=kind, progress=building)
    if as_json:
        print_json(dataclasses.asdict(tuned))
        return
    click.echo(_described(tuned))


@index.command()
@gallery_option
@json_option
def info(gallery_path: GalleryAddress, as_json: bool) -> None:
    """Tell what a gallery holds."""
    with Gallery.open(gallery_path) as gallery:
        facts = gallery.info()
    if as_json:
        print_json(dataclasses.asdict(facts))
        return
    click.echo(
        f"{facts.path}\n"
        f"  items   {facts.items} ({facts.labelled} with one of {facts.labels} labels)\n"
        f"  model   {facts.model} ({facts.model_sha256[:12]}…), {facts.dim} values a vector, "
        f"{facts.precision}\n"
        f"  index   {_described(facts.index)}"
    )
    if facts.bytes is not None:
        click.echo(f"  on disk {facts.bytes / 1e6:.1f} MB")


@click.command()
@gallery_option
@search_options
def search(
    gallery_path: GalleryAddress,
    k: int,
    where: dict[str, Any] | None,
    threshold: float | None,
    group_by: str | None,
    offset: int,
    as_json: bool,
    photo: Path,
) -> None:
    """Find the items of a gallery nearest to PHOTO.

    The score is the cosine similarity in [-1, 1]; higher is nearer.
    """
    check_k(k)
    with Gallery.open(gallery_path) as gallery:
        query = gallery.model.embed(gallery.model.prepare(photo)[None])
        ids, scores = gallery.search(
            query, k, where=where, threshold=threshold, group_by=group_by, offset=offset
        ).row(0)
        items = gallery.get(ids.tolist())
        empty = gallery.count() == 0
    hits = [
        {"score": round(score, 6), **_fields(item)}
        for item, score in zip(items, scores.tolist(), strict=True)
    ]
    if empty and not as_json:
        click.echo("The gallery is empty: fill it with `dscl index add`.")
        return
    print_hits(photo, hits, offset=offset, as_json=as_json)


def print_hits(photo: Path, hits: list[dict[str, Any]], *, offset: int, as_json: bool) -> None:
    """Print what was found, nearest first: each hit has at least score, label and image."""
    if as_json:
        print_json({"query": str(photo), "results": hits})
        return
    if not hits:
        click.echo("No item is like that: loosen --where, --threshold or --offset.")
    for rank, hit in enumerate(hits, start=offset + 1):
        click.echo(f"{rank:>3}  {hit['score']:+.3f}  {hit['label'] or '–':<24}  {hit['image']}")


@click.command()
@gallery_option
@click.option("--k", "ks", default="1,2,4,8", show_default=True, help="Values of K, by commas.")
@where_option
@click.option("--as-searched", is_flag=True, help="Rank as searches do, not exactly.")
@click.option("--clustering", is_flag=True, help="Also NMI of a k-means clustering.")
@json_option
def evaluate(
    gallery_path: GalleryAddress,
    ks: str,
    where: dict[str, Any] | None,
    as_searched: bool,
    clustering: bool,
    as_json: bool,
) -> None:
    """Measure recall@K: every labelled item against all the others."""
    numbers = parse_ks(ks)
    with Gallery.open(gallery_path) as gallery:
        evaluation = gallery.evaluate(
            numbers, where=where, exact=not as_searched, clustering=clustering
        )
    figures = dataclasses.asdict(evaluation.metrics)
    if as_json:
        print_json(
            {**figures, "protocol": evaluation.protocol, "unlabelled": evaluation.unlabelled}
        )
        return
    for k, value in evaluation.metrics.recall.items():
        click.echo(f"recall@{k:<6}{100 * value:6.1f} %")
    click.echo(f"R-precision  {100 * evaluation.metrics.r_precision:6.1f} %")
    click.echo(f"MAP@R        {100 * evaluation.metrics.map_at_r:6.1f} %")
    if evaluation.metrics.nmi is not None:
        click.echo(f"NMI          {100 * evaluation.metrics.nmi:6.1f} %")
    left_out = f", {evaluation.metrics.skipped} alone in their class" * bool(
        evaluation.metrics.skipped
    ) + f", {evaluation.unlabelled} without a label" * bool(evaluation.unlabelled)
    click.echo(f"{evaluation.metrics.queries} queries{left_out} · {evaluation.protocol}")


def parse_ks(text: str) -> tuple[int, ...]:
    """``"1,2,4"`` → (1, 2, 4).

    Raises:
        InvalidArgumentError: not whole numbers by commas, or out of range.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgumentError(
            f"--k is {text!r}: expected whole numbers by commas, such as 1,2,4,8."
        ) from None
    for number in numbers:
        check_k(number)
    return numbers


def _open_or_create(
    path: GalleryAddress,
    model_path: Path,
    *,
    precision: Precision | None,
    kind: RequestedKind | None,
    recall: float | None,
) -> Gallery:
    if not is_there(path):
        return Gallery.create(
            path,
            Model.load(model_path, precision=precision or "fp32"),
            index_kind=kind or "auto",
            target_recall=0.99 if recall is None else recall,
        )
    gallery = Gallery.open(path, writable=True)
    try:
        own = gallery.model.precision
        if precision not in (None, own):
            raise GalleryError(
                f"gallery {path} holds vectors in {own}, not in {precision}, and they do not mix. "
                "Leave --precision out, or build a new gallery."
            )
        expect_model(path, gallery.model.sha256, Model.load(model_path, precision=own))
    except BaseException:
        gallery.close()
        raise
    return gallery


def _fill(
    gallery: Gallery,
    photos: list[Photo],
    workers: int | None,
    as_json: bool,
    *,
    skip_duplicates: bool,
    prune: bool = False,
    bulk: BulkEmbedder | None = None,
) -> BuildReport:
    with tqdm(total=len(photos), unit="photo", desc="Indexing", disable=as_json or None) as bar:
        report = build_gallery(
            gallery,
            photos,
            workers=workers,
            skip_duplicates=skip_duplicates,
            prune=prune,
            progress=bar.update,
            bulk=bulk,
        )
    gallery.settle()
    return report


def _tell(gallery: Gallery, report: BuildReport, as_json: bool) -> None:
    if as_json:
        print_json({**dataclasses.asdict(report), "items": len(gallery)})
        return
    counts = [f"Added {report.added}", f"unchanged {report.unchanged}"]
    counts += [f"updated {report.updated}"] * bool(report.updated)
    counts += [f"removed {report.removed}"] * bool(report.removed)
    counts += [f"duplicates {len(report.duplicates)}"] * bool(report.duplicates)
    counts += [f"skipped {len(report.skipped)}"]
    click.echo(f"{', '.join(counts)}: {len(gallery)} items in {gallery.path}")
    lines = [f"skipped {each.path}: {each.reason}" for each in report.skipped]
    lines += [f"duplicate {each.path} is {each.same_as}" for each in report.duplicates]
    for line in lines[:SHOWN]:
        click.echo(f"  {line}", err=True)
    if len(lines) > SHOWN:
        click.echo(f"  … and {len(lines) - SHOWN} more (--json lists all)", err=True)


def _ids(gallery: Gallery, names: Sequence[str]) -> list[int]:
    """The ids of items as the command line names them."""
    skus = {name: name.removeprefix(SKU_PREFIX) for name in names if name.startswith(SKU_PREFIX)}
    paths = {
        name: Path(name).resolve() for name in names if name not in skus and not ID.fullmatch(name)
    }
    by_sku = gallery.ids_by_external(list(skus.values()))
    by_path = gallery.ids_by_path(list(paths.values()))
    unknown = [name for name in skus if skus[name] not in by_sku]
    unknown += [name for name in paths if paths[name] not in by_path]
    if unknown:
        raise ItemNotFoundError(f"not in the gallery: {', '.join(unknown[:5])}.")
    return [
        by_sku[skus[name]] if name in skus else by_path[paths[name]] if name in paths else int(name)
        for name in names
    ]


def _fields(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "sku": item.external_id,
        "label": item.label,
        "attributes": item.attributes,
        "image": str(item.image),
    }


def _described(index: IndexInfo) -> str:
    if index.kind == "flat":
        return "flat: every search is exact"
    measured = "not measured" if index.recall is None else f"{index.recall:.4f} measured"
    return f"{index.kind}, recall@10 {measured}, {index.target_recall:g} wanted"
