"""`harness picture` and `harness plot`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.console.options import LocalPlugins, Store

Text = Optional[str]  # noqa: UP045


def picture(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A YAML file with a backdoor threat.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The image to write.")] = Path("triggers.png"),
    count: Annotated[int, typer.Option(min=1, max=100, help="Test images per attack.")] = 8,
    plugins: LocalPlugins = None,
) -> None:
    """Draw a scenario's backdoors: test images without and with the trigger, and the difference.

    Example: harness picture scenarios/byzantine-fashion.yaml --out triggers.png
    """
    from harness.console.picture import draw, strips
    from harness.scenario import load

    found = strips(load(scenario), count)
    draw(found, out)
    typer.echo(f"wrote {out}: {len(found)} backdoor{'s' if len(found) > 1 else ''}")


def plot(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A YAML file that has been run.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="The figure to write: .pdf, .png or .svg; default: KIND.svg."),
    ] = None,
    store: Store = Path("runs"),
    kind: Annotated[
        str, typer.Option("--figure", metavar="KIND", help="curves, pareto, heatmap, ranks or table.")
    ] = "curves",
    x: Annotated[
        Text, typer.Option(metavar="QUANTITY", help="pareto: the horizontal axis; default: accuracy.")
    ] = None,
    y: Annotated[
        Text,
        typer.Option(
            metavar="QUANTITY", help="pareto: the vertical axis; ranks: what is compared; default: robust."
        ),
    ] = None,
    by: Annotated[
        Text,
        typer.Option(metavar="AXIS", help="ranks: defence, aggregator or compressor; default: defence."),
    ] = None,
    plugins: LocalPlugins = None,
) -> None:
    """Draw a scenario's results, ready for a paper.

    curves: accuracy under attack against the radius, for attacks run at two or more radii; bands span the seeds;
    a hollow marker means that gradient masking is suspected, that the model predicts one class for every test image,
    or that a seed is missing. pareto: two quantities of every configuration, with the Pareto front. heatmap: accuracy
    of uncompressed models, by aggregator and attack on training. ranks: a critical-difference diagram. table: the table
    of `harness run`, 80 columns wide, as SVG.

    Cells that were scored before a setting of the file changed, such as its rounds, are left out, and told.

    Quantities: accuracy, robust, byzantine, backdoor, mia, inversion, inversion_gain, epsilon, audited, size, uplink,
    and scores that contributed plugins declare.

    Example: harness plot scenarios/quickstart.yaml --figure pareto --x accuracy --y robust --out pareto.pdf
    """
    from harness.console.arguments import stored_records
    from harness.console.figures import SHARED, check_kind, draw_heatmap, draw_pareto, draw_ranks
    from harness.console.output import count_of
    from harness.errors import HarnessError
    from harness.evaluation.masking import flagged
    from harness.grid import cells
    from harness.leaderboard.official import mixed_code
    from harness.leaderboard.other_code import records_of_other_code
    from harness.records import other_settings
    from harness.registry import registry
    from harness.scenario import load

    check_kind(kind, x=x, y=y, by=by)
    out = out or Path(f"{kind}.svg")
    x, y, by = x or "accuracy", y or "robust", by or "defence"
    loaded = load(scenario)
    order = {cell.id: place for place, cell in enumerate(cells(loaded))}
    stored = stored_records(store, loaded.name)
    other = {id: names for id, names in other_settings(stored, loaded).items() if id in order}
    found = [record for record in stored if record["id"] in order and record["id"] not in other]
    found = flagged(sorted(found, key=lambda record: order[record["id"]]))
    command = shlex.join(["harness", "run", scenario, "--store", str(store)])
    settings = ", ".join(dict.fromkeys(name for names in other.values() for name in names))
    if not found:
        because = f" as it is now: {settings} changed" if other else ""
        raise HarnessError(
            f"the store {store} holds no cell of {loaded.name}{because}; run it first: {command}"
        )
    if other:
        cells_left = count_of(len(other), "cell")
        print(
            f"note: left out: {cells_left} scored before {settings} changed; run them: {command}",
            file=sys.stderr,
        )
    with registry().seeing(loaded.files):
        notes = mixed_code(found) or records_of_other_code(found)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if kind == "pareto":
        told = draw_pareto(found, out, loaded.name, x, y).said
    elif kind == "heatmap":
        told = count_of(draw_heatmap(found, out, loaded.name), "panel")
    elif kind == "ranks":
        test = draw_ranks(found, out, loaded.name, by, y)
        blocks = count_of(test.blocks, "block") + f" and {test.dropped} left out" * bool(test.dropped)
        told = f"{blocks}, {test.test.capitalize()} p = {test.p:.2g}; {SHARED}"
    elif kind == "table":
        from harness.console.table_picture import draw_table

        told = draw_table(found, out, f"harness run {scenario}")
    else:
        from harness.console.curves import curves, draw_curves

        panels = curves(found)
        draw_curves(panels, out, loaded.name)
        told = count_of(len(panels), "panel")
    typer.echo(f"wrote {out}: {told}")
