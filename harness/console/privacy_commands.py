"""`harness explain` and `harness audit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.console.options import AsJson, Device, Jobs, LocalPlugins, Quiet, Scenarios, Select, Store


def explain(
    cell: Annotated[
        str,
        typer.Argument(
            metavar="CELL",
            help="A cell's id, its first digits, or AXIS=GLOB,... that only it matches, as for `run --select`.",
        ),
    ],
    store: Store = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show where a cell's privacy guarantee comes from: what creates, keeps or breaks it, and why.

    The cell must have been run. If several cells match, or none does, cells are listed with their ids.

    Example: harness explain 'defence=dp-sgd*,threat=none,seed=0' --store runs
    """
    from harness.console.arguments import stored_records
    from harness.console.chain import find_record, render_chain
    from harness.console.output import make_console, print_json

    record = find_record(stored_records(store), cell)
    if as_json:
        print_json({key: record.get(key) for key in ("id", "cell", "guarantee", "lineage", "flags")})
    else:
        render_chain(record, make_console())


def audit(
    scenarios: Scenarios,
    attack: Annotated[
        str, typer.Option(metavar="NAME", help="The audit: an attack of the privacy family.")
    ] = "audit",
    device: Device = "auto",
    jobs: Jobs = "auto",
    store: Store = Path("runs"),
    select: Select = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    plugins: LocalPlugins = None,
) -> None:
    """Audit every training of a scenario: plant canaries and derive a lower bound on epsilon from what leaks.

    Exit status: 0 no guarantee refuted, 1 some refuted or some audits failed, 2 bad input, 130 interrupted.

    Example: harness audit scenarios/privacy.yaml --select 'defence=dp-sgd*'
    """
    from harness.console.arguments import find_scenarios, parse_jobs
    from harness.console.audits import audit_scenario, render_audits
    from harness.console.outcomes import reason
    from harness.console.output import leave, make_console, print_json, run_values
    from harness.console.progress import make_observer
    from harness.contracts.privacy import VIOLATION
    from harness.scenario import load_many

    paths, workers = find_scenarios(scenarios), parse_jobs(jobs)
    loaded = [audit_scenario(scenario, attack) for scenario in load_many(paths)]

    from harness.engine import run as execute

    with make_observer(make_console(stderr=True), quiet=quiet) as observer:
        result = execute(
            loaded, device=device, jobs=workers, store=store, select=select or None, observer=observer
        )
    if as_json:
        print_json(run_values(result))
    refuted = sum(VIOLATION in record["flags"] for record in result.records)
    for name in dict.fromkeys(r["scenario"]["name"] for r in result.records) if not as_json else ():
        console = make_console()
        console.print(name, style="bold")
        render_audits([r for r in result.records if r["scenario"]["name"] == name], console)
    for record in result.records:
        if record["status"] != "scored":
            print(f"{record['status']}: {record['cell']['defence']}: {reason(record)}", file=sys.stderr)
    raise typer.Exit(leave(result, bad=bool(refuted)))
