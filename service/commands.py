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

#: Seconds a silent connection is kept, and seconds that running requests have at the end.
KEEP_ALIVE_S = 15
GRACE_S = 10


@click.command()
@click.option("--gallery", type=click.Path(path_type=Path), help="The gallery folder.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 is any.  [default: 8000]")
@click.option("--next-port", is_flag=True, help="If the port is taken, use the next free one.")
@click.option("--workers", type=click.IntRange(min=1), help="Search threads.  [default: cores]")
@click.option("--insecure", is_flag=True, default=None, help="Allow a host others can reach.")
@click.option("--access-log", is_flag=True, default=None, help="Log every request.")
def serve(next_port: bool, **given: object) -> None:
    """Serve a gallery over HTTP, with a page to search by photo.

    Each option, and each setting it prints, can also come from the environment: DSCL_GALLERY,
    DSCL_PORT, DSCL_MAX_UPLOAD_BYTES, …
    """
    settings = _settings({name: value for name, value in given.items() if value is not None})
    listener = listen(settings.host, settings.port, next_port=next_port)
    # Not at the top of the module: `dscl serve --help` should not wait for them.
    import uvicorn

    from service.app import create_app

    app = create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_level="info" if settings.access_log else "warning",
            access_log=settings.access_log,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    opened: Future[Gallery] = app.state.engine.opened

    def when_opened(opened: Future[Gallery]) -> None:
        if opened.exception() is None:
            _print_ready(opened.result(), _url(listener))
        else:
            server.should_exit = True

    opened.add_done_callback(when_opened)
    _print_settings(settings, _url(listener))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        click.echo("Stopped.")
    if opened.done() and (error := opened.exception()) is not None:
        raise error


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
    for name, value in settings.model_dump().items():
        click.echo(f"  {name:<16} {value}")


def _print_ready(gallery: Gallery, url: str) -> None:
    card = gallery.model.card
    click.echo(
        f"Ready at {url}: {len(gallery):,} items, model {card.name} ({card.sha256[:12]}…), "
        f"interface at {url}/docs"
    )
