"""`harness merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.console.options import AsJson, Quiet, folder


def merge(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE...", help="Folders of results, e.g. of shards.")
    ],
    into: Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="The store to create or extend.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Merge stores that were filled separately, e.g. by `run --shard`, into one.

    Results that several stores share are kept once. Results that contradict each other are not taken: their cells
    and stores are named, and a run on the merged store computes them again. Exit status: 0 all merged, 1 there were
    contradictions or damaged files, 2 bad input.

    Example: harness merge shard1 shard2 shard3 --into runs
    """
    from dataclasses import asdict

    from harness.console.output import count_of, make_console, print_json
    from harness.merge import merge as join

    console = make_console(stderr=True)
    with console.status("comparing") if console.is_terminal and not quiet else _Silent() as status:
        report = join(stores, into, lambda done, total, name: status.update(f"files {done}/{total}"))
    if as_json:
        print_json(asdict(report))
    else:
        typer.echo(
            f"{count_of(report.stores, 'store')} into {into}: {count_of(report.cells, 'cell')}, "
            f"{report.new_cells} of them new, {report.overlapping} identical in several stores; "
            f"{count_of(report.stages, 'stage')} and {count_of(report.files, 'file')} "
            f"({report.bytes / 1e6:.1f} MB) added"
        )
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for text in report.damaged:
        print(f"damaged: {text}", file=sys.stderr)
    for text in report.conflicts:
        print(f"conflict, not taken: {text}", file=sys.stderr)
    raise typer.Exit(1 if report.conflicts or report.damaged else 0)


class _Silent:
    """Stands in for a console's status and shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, text: str) -> None:
        pass
