"""The ``dscl`` commands of this package: ``index``, ``search`` and ``evaluate``."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from index.catalog import Item
from index.errors import GalleryError, InvalidArgumentError, ItemNotFoundError
from index.gallery import Gallery, check_k, expect_model
from index.ingest import build as build_gallery
from index.model import Model
from index.photos import Photo, list_photos

FOLDER = click.Path(path_type=Path)
gallery_option = click.option(
    "--gallery", "gallery_path", type=FOLDER, required=True, help="The gallery folder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="Threads that decode and embed.  [default: cores]"
)

#: What ``dscl index remove`` takes for an id; anything else is a path.
ID = re.compile(r"[0-9]{1,19}")

#: Unreadable photos named in full; the rest are counted. ``--json`` lists all.
SHOWN = 10


@click.group()
def index() -> None:
    """Build and change a gallery."""


@index.command()
@click.option("--model", "model_path", type=FOLDER, required=True, help="The model folder.")
@click.option(
    "--images",
    type=FOLDER,
    required=True,
    help="A folder (subfolders become labels) or a CSV: path, optionally label, attributes.",
)
@gallery_option
@workers_option
@json_option
def build(
    model_path: Path, images: Path, gallery_path: Path, workers: int | None, as_json: bool
) -> None:
    """Embed photos into a gallery. Stopped and run again, it continues."""
    photos = list_photos(images)
    model = Model.load(model_path)
    with _open_or_create(gallery_path, model) as gallery:
        _build(gallery, photos, workers, as_json)


@index.command()
@gallery_option
@click.argument("images", type=FOLDER, nargs=-1, required=True)
@click.option("--label", help="Give these photos this label.")
@workers_option
@json_option
def add(
    gallery_path: Path, images: tuple[Path, ...], label: str | None, workers: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Add photos, folders or CSV files to an existing gallery."""
    photos = [photo for source in images for photo in list_photos(source)]
    if label is not None:
        photos = [dataclasses.replace(photo, label=label) for photo in photos]
    with Gallery.open(gallery_path, writable=True) as gallery:
        _build(gallery, photos, workers, as_json)


@index.command()
@gallery_option
@click.argument("items", nargs=-1, required=True)
def remove(gallery_path: Path, items: tuple[str, ...]) -> None:
    """Remove items by id or by the path of their photo. The photo files stay."""
    with Gallery.open(gallery_path, writable=True) as gallery:
        paths = {item: Path(item).resolve() for item in items if not ID.fullmatch(item)}
        known = gallery.ids_by_path(list(paths.values()))
        unknown = [item for item, path in paths.items() if path not in known]
        if unknown:
            raise ItemNotFoundError(f"not in the gallery: {', '.join(unknown[:5])}.")
        ids = [known[paths[item]] if item in paths else int(item) for item in items]
        gallery.remove(ids)
        click.echo(f"Removed {len(set(ids))}; {len(gallery)} items are left.")


@index.command()
@gallery_option
@json_option
def info(gallery_path: Path, as_json: bool) -> None:
    """Tell what a gallery holds."""
    with Gallery.open(gallery_path) as gallery:
        facts = gallery.info()
    if as_json:
        _print_json(dataclasses.asdict(facts))
        return
    click.echo(
        f"{facts.path}\n"
        f"  items   {facts.items} ({facts.labelled} with one of {facts.labels} labels)\n"
        f"  model   {facts.model} ({facts.model_sha256[:12]}…), {facts.dim} values a vector\n"
        f"  on disk {facts.bytes / 1e6:.1f} MB"
    )


@click.command()
@gallery_option
@click.option("-k", "--k", default=10, show_default=True, help="How many neighbours.")
@json_option
@click.argument("photo", type=FOLDER)
def search(gallery_path: Path, k: int, as_json: bool, photo: Path) -> None:
    """Find the items of a gallery nearest to PHOTO.

    The score is the cosine similarity in [-1, 1]; higher is nearer.
    """
    check_k(k)
    with Gallery.open(gallery_path) as gallery:
        query = gallery.model.embed(gallery.model.prepare(photo)[None])
        ids, scores = gallery.search(query, k)
        items = gallery.get(ids[0].tolist())
    hits = [_hit(item, score) for item, score in zip(items, scores[0].tolist(), strict=True)]
    if as_json:
        _print_json({"query": str(photo), "results": hits})
        return
    if not hits:
        click.echo("The gallery is empty: fill it with `dscl index add`.")
    for rank, hit in enumerate(hits, start=1):
        click.echo(f"{rank:>3}  {hit['score']:+.3f}  {hit['label'] or '–':<24}  {hit['image']}")


@click.command()
@gallery_option
@click.option("--k", "ks", default="1,2,4,8", show_default=True, help="Values of K, by commas.")
@click.option("--clustering", is_flag=True, help="Also NMI of a k-means clustering.")
@json_option
def evaluate(gallery_path: Path, ks: str, clustering: bool, as_json: bool) -> None:
    """Measure recall@K: every labelled item against all the others."""
    numbers = parse_ks(ks)
    with Gallery.open(gallery_path) as gallery:
        evaluation = gallery.evaluate(numbers, clustering=clustering)
    figures = dataclasses.asdict(evaluation.metrics)
    if as_json:
        _print_json(
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


def _open_or_create(path: Path, model: Model) -> Gallery:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return Gallery.create(path, model)
    gallery = Gallery.open(path, writable=True)
    try:
        expect_model(path, gallery.model.sha256, model)
    except GalleryError:
        gallery.close()
        raise
    return gallery


def _build(gallery: Gallery, photos: list[Photo], workers: int | None, as_json: bool) -> None:
    with tqdm(total=len(photos), unit="photo", desc="Indexing", disable=as_json or None) as bar:
        report = build_gallery(gallery, photos, workers=workers, progress=bar.update)
    if as_json:
        _print_json({**dataclasses.asdict(report), "items": len(gallery)})
        return
    click.echo(
        f"Added {report.added}, unchanged {report.unchanged}, skipped {len(report.skipped)}: "
        f"{len(gallery)} items in {gallery.path}"
    )
    for skipped in report.skipped[:SHOWN]:
        click.echo(f"  skipped {skipped.path}: {skipped.reason}", err=True)
    if len(report.skipped) > SHOWN:
        click.echo(f"  … and {len(report.skipped) - SHOWN} more (--json lists all)", err=True)


def _hit(item: Item, score: float) -> dict[str, Any]:
    return {
        "id": item.id,
        "score": round(score, 6),
        "label": item.label,
        "attributes": item.attributes,
        "image": str(item.image),
    }


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
