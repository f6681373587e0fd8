"""What ``dscl index build`` takes to embed by processes or a cluster, and ``embed-shard``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import click

from index.address import GalleryAddress
from index.bulk import ShardedEmbedder, default_work_folder
from index.command_options import FOLDER, resumable
from index.errors import InvalidArgumentError
from index.ray_runner import RayRunner
from index.shard_runner import ProcessRunner, ShardEmbedder

__all__ = ["Engine", "embed_shard", "engine_options", "open_bulk"]

Engine = Literal["threads", "processes", "ray"]

ENGINE_PARAMETERS = (
    click.option(
        "--engine",
        type=click.Choice(get_args(Engine)),
        default="threads",
        show_default=True,
        help="What embeds: threads of this process; processes of this machine; a Ray cluster "
        "(extra `ray`), whose machines all have photos and work folder at the same paths.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Threads, processes or, on a cluster, shards at a time.  [default: cores]",
    ),
    click.option(
        "--work",
        type=FOLDER,
        help="Where processes and ray keep shards until the gallery has all of them.  "
        "[default: beside the gallery, NAME.shards]",
    ),
    click.option(
        "--shard-size",
        type=click.IntRange(min=1),
        help="Photos of a shard, which a stop can cost.  [default: 1000, less for few photos]",
    ),
    click.option(
        "--gpus",
        type=float,
        help="GPUs of each shard on a Ray cluster, where ONNX Runtime has CUDA; 0.25 lets four "
        "share one.  [default: 0]",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="The head of the Ray cluster.  [default: RAY_ADDRESS, else this machine alone]",
    ),
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """What says who embeds, where and in which portions."""
    for parameter in reversed(ENGINE_PARAMETERS):
        command = parameter(command)
    return command


@contextmanager
def open_bulk(
    engine: Engine,
    *,
    gallery_path: GalleryAddress,
    work: Path | None,
    workers: int | None,
    shard_size: int | None,
    address: str | None,
    gpus: float | None,
) -> Iterator[ShardedEmbedder | None]:
    """What embeds, ready to; None for the threads of ``index.ingest.build``.

    Raises:
        InvalidArgumentError: an option that this engine has no use for.
        ShardError: Ray is not installed, or the cluster cannot be reached.
    """
    given = {"--work": work, "--shard-size": shard_size, "--address": address, "--gpus": gpus}
    of_ray = ["--address", "--gpus"]
    unused = {"threads": list(given), "processes": of_ray, "ray": []}[engine]
    for option in unused:
        if given[option] is not None:
            others = "--engine ray" if option in of_ray else "--engine processes or ray"
            raise InvalidArgumentError(
                f"{option} says nothing to engine {engine}: leave it out, or give {others}."
            )
    folder = default_work_folder(gallery_path) if work is None else work
    if engine == "threads":
        yield None
    elif engine == "processes":
        yield ShardedEmbedder(folder, ProcessRunner(workers), shard_size=shard_size)
    else:
        with RayRunner(address=address, workers=workers, gpus=gpus or 0.0) as runner:
            yield ShardedEmbedder(folder, runner, shard_size=shard_size)


@click.command("embed-shard")
@click.argument("work", type=FOLDER)
@click.argument("numbers", type=click.IntRange(min=0), nargs=-1, required=True)
def embed_shard(work: Path, numbers: tuple[int, ...]) -> None:
    """Embed shards of a work folder, by their NUMBERS from 0 on.

    For other schedulers, or to look at one shard alone. `dscl index build`, run again, takes over
    what is done.
    """
    embedder = ShardEmbedder(work)
    shards = [embedder.work.shard(number) for number in numbers]
    with resumable("Shards that are done are kept."):
        for shard in shards:
            embedded = embedder.embed(shard.number)
            was = f"embedded {embedded} photos" if embedded else "was done already"
            click.echo(f"Shard {shard.number}: {was}.")
