"""`harness export`: what leaves the harness for deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

export = typer.Typer(
    name="export",
    no_args_is_help=True,
    help="Export one cell of a scenario as an app for another system.\n\n"
    "Example: harness export flower scenarios/quickstart.yaml --cell 3f2a --out winner",
)


@export.callback()
def _root() -> None:
    """Makes `flower` a subcommand even while it is the only one."""


@export.command()
def flower(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A YAML file.")],
    cell: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="The cell's id, its first digits, or axis values that only this cell has, e.g. 'defence=none,seed=0'.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")],
) -> None:
    """Write a Flower app that trains exactly one cell, in simulation (`flwr run DIR`) or on SuperNodes.

    The app's README has the commands for both, with TLS and node authentication. Cells with an attack on training
    are not exported.

    Example: harness export flower scenarios/quickstart.yaml --cell 3f2a --out winner
    """
    from harness.flower.export import export as write
    from harness.scenario import load

    written = write(load(scenario), cell, out)
    for note in written.notes:
        typer.echo(note)
    typer.echo(
        f"wrote {out}: {written.cell.axes['defence']} · {written.cell.axes['aggregator']}; see {out / 'README.md'}"
    )
