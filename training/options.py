"""The options of ``dscl train``: made from ``TrainSettings``, filled by a preset, printed back.

What is typed goes before the preset, and the preset before the default. The command itself lives in
``training.commands``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Literal

import click
from click.core import ParameterSource

from training.fields import SettingField, sections, setting_fields
from training.presets import list_presets, load_preset
from training.settings import TrainSettings

__all__ = [
    "DEFAULT",
    "Origin",
    "SettingOption",
    "TrainCommand",
    "describe",
    "origins",
    "preset_options",
    "setting_options",
    "typed_arguments",
    "typed_command",
]

Origin = Literal["command line", "preset", "run", "default"]

#: Typed in place of a value, takes back what the preset says.
DEFAULT = "default"

_ARGUMENTS = "training.options.arguments"


class SettingOption(click.Option):
    """The option of one field of ``TrainSettings``."""

    def __init__(self, field: SettingField) -> None:
        super().__init__(
            [f"{field.option}/--no-{field.option[2:]}" if field.kind is bool else field.option],
            type=click.Choice(field.choices) if field.choices else field.kind,
            default=field.default,
            show_default=field.default not in (None, ""),
            help=field.help,
        )
        self.field = field

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Read the word ``default`` as the setting's own, which may be ``None``."""
        if value == DEFAULT:
            return self.field.default
        return super().type_cast_value(ctx, value)


class TrainCommand(click.Command):
    """A command whose help groups the settings by section, and that remembers what was typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep ``args`` for ``typed_arguments``: click keeps only what it makes of them."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options of the run first, then each section of the settings."""
        blocks: dict[str, list[tuple[str, str]]] = {name: [] for name in ["Run", *sections()]}
        for item in self.get_params(ctx):
            record = item.get_help_record(ctx)
            if record is not None:
                name = item.field.section if isinstance(item, SettingOption) else "Run"
                blocks[name].append(record)
        for name, records in blocks.items():
            with formatter.section(name):
                formatter.write_dl(records)


def setting_options() -> list[click.Parameter]:
    """One option for each field of ``TrainSettings``, in their order."""
    return [SettingOption(field) for field in setting_fields()]


def preset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with ``--preset`` and ``--list-presets``."""
    listing = click.option(
        "--list-presets",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_presets,
        help="Name the presets that come with this release, and exit.",
    )
    # Eager: it must be known before the options that it fills in.
    preset = click.option(
        "--preset",
        is_eager=True,
        callback=_fill_in,
        metavar="NAME|PATH",
        help="Take settings from this preset, or from a TOML file; options go before it.",
    )
    return preset(listing(command))


def _fill_in(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not ctx.resilient_parsing:
        ctx.default_map = load_preset(value)
    return value


def _print_presets(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        for name, summary in list_presets():
            click.echo(f"  {name:<20}{summary}")
        ctx.exit()


def origins(ctx: click.Context) -> dict[str, Origin]:
    """Where the value of each of the command's parameters comes from."""
    named: dict[ParameterSource | None, Origin] = {
        ParameterSource.COMMANDLINE: "command line",
        ParameterSource.DEFAULT_MAP: "preset",
    }
    return {name: named.get(ctx.get_parameter_source(name), "default") for name in ctx.params}


def typed_arguments(ctx: click.Context) -> list[str]:
    """The arguments of a ``TrainCommand`` as they were typed."""
    return list(ctx.meta[_ARGUMENTS])


def typed_command(ctx: click.Context) -> str:
    """The whole command as it was typed, quoted for a shell."""
    return f"{ctx.command_path} {shlex.join(typed_arguments(ctx))}".rstrip()


def describe(settings: TrainSettings, origins: Mapping[str, Origin]) -> str:
    """Every setting by section: option, value and where the value comes from."""
    lines = []
    for section, fields in sections().items():
        lines.append(section)
        for field in fields:
            shown = _shown(getattr(settings, field.name))
            lines.append(f"  {field.option:<22}{shown:<22}  {origins[field.name]}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value or "–"
    return "–" if value is None else json.dumps(value)
