"""``dscl search``: in a gallery on this machine, or with ``--url`` through a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from index.address import GalleryAddress
from index.command_options import GALLERY, search_options
from index.commands import print_hits
from index.commands import search as search_gallery

__all__ = ["search"]


@click.command()
@click.option(
    "--gallery",
    "gallery_path",
    type=GALLERY,
    metavar="FOLDER|URL",
    help="The gallery: its folder, or milvus://HOST:PORT/NAME.",
)
@click.option("--url", help="In its place a running service, such as http://127.0.0.1:8000.")
@click.option(
    "--key", envvar="DSCL_KEY", help="Access key, where the service asks for one.  [env: DSCL_KEY]"
)
@search_options
@click.pass_context
def search(
    context: click.Context,
    gallery_path: GalleryAddress | None,
    url: str | None,
    key: str | None,
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
    if (gallery_path is None) == (url is None):
        raise click.UsageError("Give either --gallery or --url.")
    if url is None:
        context.invoke(
            search_gallery,
            gallery_path=gallery_path,
            k=k,
            where=where,
            threshold=threshold,
            group_by=group_by,
            offset=offset,
            as_json=as_json,
            photo=photo,
        )
        return
    # Not at the top: a search without --url should not wait for it.
    from service.client import Client

    with Client(url, key=key) as client:
        found = client.search(
            photo, k=k, where=where, threshold=threshold, group_by=group_by, offset=offset
        )
    hits = [
        {
            "score": round(hit.score, 6),
            "id": hit.id,
            "sku": hit.sku,
            "label": hit.label,
            "attributes": hit.attributes,
            "image": f"{url.rstrip('/')}{hit.image_url}",
        }
        for hit in found.results
    ]
    print_hits(photo, hits, offset=offset, as_json=as_json)
