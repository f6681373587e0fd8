"""The ``dscl serve`` command."""

from __future__ import annotations

import errno
import itertools
import socket
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from index import Gallery
    from service.settings import Settings

#: Ports that ``--next-port`` tries before it gives up.
PORTS_TRIED = 100

#: Connections the system holds while all workers are busy or the gallery is being opened.
BACKLOG = 2048


@click.command()
@click.option(
    "--gallery", metavar="FOLDER|URL", help="The gallery: its folder, or milvus://HOST:PORT/NAME."
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 is any.  [default: 8000]")
@click.option("--next-port", is_flag=True, help="If the port is taken, use the next free one.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that search.  [default: 1]")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Search threads of each.  [default: the cores]"
)
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path),
    help="Access keys, made by `dscl keys new --file`; without any, this machine alone is served.",
)
@click.option("--insecure", is_flag=True, default=None, help="Serve other machines without keys.")
@click.option("--read-only", is_flag=True, default=None, help="Never change the gallery.")
@click.option("--access-log", is_flag=True, default=None, help="Log every request.")
def serve(next_port: bool, **given: object) -> None:
    """Serve a gallery over HTTP, with a page to search by photo.

    Each option, and each setting it prints, can also come from the environment: DSCL_GALLERY,
    DSCL_PORT, DSCL_MAX_UPLOAD_BYTES, … SIGHUP serves the gallery that is in the folder's place
    now; Ctrl-C and SIGTERM let requests end.
    """
    settings = _settings({name: value for name, value in given.items() if value is not None})
    listener = listen(settings.host, settings.port, next_port=next_port)
    url = _url(listener)
    _print_settings(settings, url)
    serve_one = _serve_in_one_process if settings.workers == 1 else _serve_in_several
    serve_one(settings, listener, url)


def _serve_in_one_process(settings: Settings, listener: socket.socket, url: str) -> None:
    # Not at the top of the module: `dscl serve --help` should not wait for them.
    from index.memory import return_freed_memory
    from service.app import create_app
    from service.server import Server

    return_freed_memory()
    server = Server(create_app(settings), settings)
    engine = server.engine

    def when_opened(opened: Future[Gallery]) -> None:
        if opened.exception() is None:
            gallery = opened.result()
            card = gallery.model.card
            _print_ready(url, len(gallery), card.name, card.sha256)
        else:
            server.should_exit = True

    engine.opened.add_done_callback(when_opened)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        click.echo("Stopped.")
    if engine.opened.done() and (error := engine.opened.exception()) is not None:
        raise error


def _serve_in_several(settings: Settings, listener: socket.socket, url: str) -> None:
    from service.supervisor import Ready, supervise

    def when_ready(ready: Ready) -> None:
        _print_ready(url, ready.items, ready.model_name, ready.model_sha256)

    supervise(settings, listener, when_ready)
    click.echo("Stopped.")


def listen(host: str, port: int, *, next_port: bool) -> socket.socket:
    """A socket that listens on ``port``, or with ``next_port`` on the first free one from there.

    Raises:
        click.ClickException: no such address, no permission, or all ports tried are taken.
    """
    tries = PORTS_TRIED if next_port else 1
    for candidate in itertools.islice(range(port, 65536), tries):
        try:
            listener = socket.create_server(
                (host, candidate),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                backlog=BACKLOG,
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise click.ClickException(
                    f"cannot listen on {host} port {candidate}: {error.strerror or error}."
                ) from error
            continue
        if candidate != port:
            click.echo(f"Port {port} is taken: using {candidate}.")
        return listener
    if next_port:
        raise click.ClickException(
            f"all ports from {port} to {candidate} on {host} are taken: choose another --port."
        )
    raise click.ClickException(
        f"port {port} on {host} is taken: choose another --port, or let --next-port use the next "
        "free one."
    )


def _settings(given: dict[str, object]) -> Settings:
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks the types
    except ValidationError as error:
        complaints = []
        for each in error.errors():
            message = each["msg"].removeprefix("Value error, ")
            name = ".".join(map(str, each["loc"]))
            complaints.append(f"{name} (DSCL_{name.upper()}): {message}" if name else message)
        raise click.ClickException("; ".join(complaints)) from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _print_settings(settings: Settings, url: str) -> None:
    click.echo(f"{url}: opening the gallery")
    shown = settings.model_dump(exclude={"role", "state_folder"})
    for name, value in shown.items():
        click.echo(f"  {name:<18} {value}")


def _print_ready(url: str, items: int, model: str, sha256: str) -> None:
    click.echo(
        f"Ready at {url}: {items:,} items, model {model} ({sha256[:12]}…), interface at {url}/docs"
    )
