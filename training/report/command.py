"""The command ``dscl report``."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("runs", metavar="RUN…", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default="compare.html", show_default=True,
              help="With several runs: the page that compares them.")  # fmt: skip
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write report.html into run folders; of several runs, also a comparison.

    A page is one file that opens from disk. Runs may be under way or stopped: their pages have
    what there is.
    """
    # Here rather than above: `dscl report --help` need not import what draws.
    from training.report.comparison_page import protocols, write_comparison
    from training.report.record import read_run
    from training.report.run_page import write_report

    # All are read before the first page is written, so that a wrong name changes nothing.
    found = protocols([read_run(run) for run in runs])
    for run in runs:
        click.echo(write_report(run))
    if len(runs) == 1:
        return
    click.echo(write_comparison(runs, out))
    if len(found) > 1:
        click.echo(
            f"Warning: figures of different protocols do not compare: {', '.join(found)}.", err=True
        )
