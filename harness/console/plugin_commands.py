"""`harness plugin`: what authors of plugins use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.console.check_command import check

plugin = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make a plugin package, and check that plugins keep their contract.\n\n"
    "Example: harness plugin new aggregator my-rule",
)


@plugin.command()
def new(
    kind: Annotated[
        str,
        typer.Argument(
            help="dataset, partitioner, model, defence, aggregator, pre-aggregator, model-compressor, "
            "update-compressor, evasion-attack, poisoning-attack, byzantine-attack, privacy-attack, metric or tracker."
        ),
    ],
    name: Annotated[
        str, typer.Argument(help="Name of the package, its folder and the plugin, such as my-rule.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the package's folder goes.")] = Path(),
) -> None:
    """Write a pip package with a small working method, its tests, a scenario and CI.

    Existing files are never overwritten.

    Example: harness plugin new byzantine-attack my-attack
    """
    from harness.console.output import count_of
    from harness.plugin_kit.names import names_of
    from harness.plugin_kit.scaffold import KINDS, address, next_commands, scaffold

    folder = scaffold(kind, name, out)
    names = names_of(name)
    typer.echo(f"wrote {folder}: {count_of(sum(p.is_file() for p in folder.rglob('*')), 'file')}")
    if (own := address(kind, names)) != names.name:
        typer.echo(
            f"note: the {KINDS[kind]} {names.name!r} exists already; scenarios must say {own}, as this package's does"
        )
    typer.echo("next:")
    for command in next_commands(folder, kind, names):
        typer.echo(f"  {command}")


plugin.command()(check)
