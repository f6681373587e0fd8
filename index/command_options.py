"""What the commands of this package share: options, output, and how they are stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from index.address import GalleryAddress, parse_address
from index.errors import FilterError, InvalidArgumentError
from index.tuning import Progress

__all__ = [
    "FOLDER",
    "GALLERY",
    "building_bar",
    "counting_bar",
    "gallery_folder_option",
    "gallery_option",
    "json_option",
    "parse_object",
    "print_json",
    "resumable",
    "search_options",
    "where_option",
    "workers_option",
]

FOLDER = click.Path(path_type=Path)

#: The shell's status for a command that Ctrl-C ended.
STOPPED = 130


class _Gallery(click.ParamType[GalleryAddress]):
    """A gallery's folder, or its address on Milvus."""

    name = "gallery"

    def __init__(self, *, folders_only: bool = False) -> None:
        self._folders_only = folders_only

    def convert(
        self,
        value: str | GalleryAddress,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> GalleryAddress:
        address = parse_address(value)
        if self._folders_only and not isinstance(address, Path):
            command = "" if ctx is None else f"`dscl index {ctx.info_name}`"
            raise InvalidArgumentError(
                f"{command} is for gallery folders, and {address} is on Milvus, which sees to its "
                f"own files. `dscl gallery copy {address} FOLDER` makes a folder of it."
            )
        return address


GALLERY = _Gallery()

gallery_option = click.option(
    "--gallery",
    "gallery_path",
    type=GALLERY,
    required=True,
    metavar="FOLDER|URL",
    help="The gallery: its folder, or milvus://HOST:PORT/NAME.",
)
gallery_folder_option = click.option(
    "--gallery",
    "gallery_path",
    type=_Gallery(folders_only=True),
    required=True,
    metavar="FOLDER",
    help="The gallery folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="Threads that work.  [default: cores]"
)


def _parse_where(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        return parse_object("--where", text)
    except InvalidArgumentError as error:
        raise FilterError(str(error)) from error


where_option = click.option(
    "--where",
    callback=_parse_where,
    metavar="JSON",
    help='Only items that match, such as \'{"make": "BMW", "year": {"gte": 2010}}\'.',
)

SEARCH_PARAMETERS = (
    click.option("-k", "--k", default=10, show_default=True, help="How many neighbours."),
    where_option,
    click.option("--threshold", type=float, help="Leave out scores below this."),
    click.option("--group-by", metavar="FIELD", help="Only the best of each value, such as label."),
    click.option("--offset", default=0, show_default=True, help="Leave out the first so many."),
    json_option,
    click.argument("photo", type=FOLDER),
)


def search_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a search by photo takes, wherever the gallery is."""
    for parameter in reversed(SEARCH_PARAMETERS):
        command = parameter(command)
    return command


def parse_object(option: str, text: str) -> dict[str, Any]:
    """A JSON object from the command line.

    Raises:
        InvalidArgumentError: not JSON, or not an object; names ``option``.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{option} is {text!r}, which is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(
            f'{option} is {text!r}: expected a JSON object, such as \'{{"make": "BMW"}}\'.'
        )
    return value


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def counting_bar(what: str, unit: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told (how many just now, how many in all)."""
    with tqdm(unit=unit, desc=what, disable=as_json or None) as bar:

        def tell(count: int, total: int) -> None:
            bar.total = total
            bar.update(count)

        yield tell


@contextmanager
def building_bar(as_json: bool) -> Iterator[Progress]:
    """A progress bar that is told the stage and the share that is done."""
    with tqdm(
        total=100, desc="Index", disable=as_json or None, bar_format="{desc}: {percentage:3.0f} %"
    ) as bar:

        def tell(stage: str, share: float) -> None:
            bar.set_description_str(f"Index: {stage}", refresh=False)
            bar.update(100 * share - bar.n)

        yield tell


@contextmanager
def resumable(hint: str) -> Iterator[None]:
    """Turn Ctrl-C into one line that says what is there and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Stopped. {hint}", err=True)
        raise click.exceptions.Exit(STOPPED) from None
