"""The ``dscl gallery`` commands: galleries as a whole, wherever they are."""

from __future__ import annotations

import dataclasses

import click

from index.address import GalleryAddress
from index.command_options import GALLERY, counting_bar, json_option, print_json, resumable
from index.copying import copy_gallery

__all__ = ["gallery"]


@click.group()
def gallery() -> None:
    """Copy galleries between folders and Milvus."""


@gallery.command()
@click.argument("source", type=GALLERY, metavar="FROM")
@click.argument("target", type=GALLERY, metavar="TO")
@json_option
def copy(source: GalleryAddress, target: GalleryAddress, as_json: bool) -> None:
    """Copy a gallery, each a folder or milvus://HOST:PORT/NAME. Run again, it continues.

    Ids, labels, attributes and vectors stay the same. Photos that the gallery keeps itself go with
    it; on Milvus they need a store: milvus://HOST:PORT/NAME?store=FOLDER-OR-URL.
    """
    with (
        resumable("The copy is unfinished; the same command goes on with it."),
        counting_bar("Copying", "item", as_json) as bar,
    ):
        report = copy_gallery(source, target, progress=bar)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    lost = f", {report.missing_photos} photos were missing" * bool(report.missing_photos)
    click.echo(
        f"Copied {report.copied} items and {report.photos} photos{lost}: {report.items} items in "
        f"{target}"
    )
