"""``dscl keys``: access keys for the service."""

from __future__ import annotations

import os
from pathlib import Path

import click

from service.keys import SCOPES, AccessKey, KeysInvalidError, new_key, parse_keys

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Make access keys for the service."""


@keys.command()
@click.option("--name", required=True, help="Whose key it is: the log names it so.")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="read",
    show_default=True,
    help="What it may do; each includes those before it.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add it to this file of keys, which a running service reads again by itself.",
)
def new(name: str, scope: str, file: Path | None) -> None:
    """Make a key and print it: this once, since only its SHA-256 is kept.

    Give the service its line in the file that DSCL_KEYS_FILE names, or in DSCL_KEYS.
    """
    key, kept = new_key(name, scope)
    if file is None:
        click.echo(f"The line for a file of keys, or for DSCL_KEYS: {kept.line()}", err=True)
    else:
        _append(file, kept)
        click.echo(f"{file} has its SHA-256. This is the key, shown only now:", err=True)
    click.echo(key)


def _append(file: Path, key: AccessKey) -> None:
    """Add a key to a file of keys, durably; an unusable file stays as it is.

    Raises:
        KeysInvalidError: the file cannot be read or written, is damaged, or is JSON.
    """
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if text.lstrip().startswith("["):
            raise KeysInvalidError(
                f"{file} is JSON, which this command does not change. Leave --file out and add "
                "what is printed yourself."
            )
        if text.strip():
            parse_keys(text, str(file))
        line = f"{key.line()}\n" if not text or text.endswith("\n") else f"\n{key.line()}\n"
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise KeysInvalidError(f"the file of keys {file}: {error.strerror}.") from error
