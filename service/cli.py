"""``dscl``: mounts each package's commands and imports them only when they are called.

So ``dscl serve`` and ``dscl search`` never load torch, and run where it is not installed.
"""

from __future__ import annotations

import importlib
import sys

import click

from index.errors import DsclError

#: Command → module:object, and the line that ``dscl --help`` shows without importing it.
COMMANDS = {
    "train": ("training.commands:train", "Train an embedding and export it."),
    "export": ("training.commands:export", "Export a frozen backbone, without training."),
    "report": ("training.report.command:report", "Show a run as a page, or compare runs."),
    "data": ("training.commands:data", "Make and look at data sets."),
    "index": ("index.commands:index", "Build and change a gallery."),
    "gallery": ("index.gallery_commands:gallery", "Copy galleries between folders and Milvus."),
    "search": ("service.client_commands:search", "Find the items nearest to a photo."),
    "evaluate": ("index.commands:evaluate", "Measure recall@K of a gallery."),
    "keys": ("service.key_commands:keys", "Make access keys for the service."),
    "serve": ("service.commands:serve", "Serve a gallery over HTTP, with a page."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if not module.startswith("training"):
                raise
            raise click.ClickException(
                f"`dscl {cmd_name}` needs {error.name}, which is not installed: "
                "pip install 'dscl-retrieval[train]'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dscl-retrieval", message="%(version)s")
def dscl() -> None:
    """Car image retrieval: train, export, index, serve, evaluate."""


def main() -> None:
    """Entry point: a mistake in the input prints one line and exits with status 1."""
    try:
        dscl.main(standalone_mode=True)
    except DsclError as error:
        click.secho(f"Error: {error}", err=True, fg="red")
        sys.exit(1)
