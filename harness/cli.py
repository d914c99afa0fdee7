"""The `harness` command: parses, calls, prints. Every import that costs time is inside its command."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness import __version__
from harness.console.advice_commands import recommend
from harness.console.export_commands import export as export_group
from harness.console.figure_commands import picture, plot
from harness.console.group import HarnessGroup, NearMisses
from harness.console.machine import expect_value
from harness.console.options import (
    Address,
    Artifacts,
    AsJson,
    CheckData,
    Device,
    DryRun,
    Executor,
    Export,
    FailFast,
    Jobs,
    LocalPlugins,
    Named,
    OptionalKind,
    Out,
    Quiet,
    Scenarios,
    Select,
    ShardOption,
    Store,
    Timeout,
)
from harness.console.plugin_commands import plugin
from harness.console.privacy_commands import audit, explain
from harness.console.signals import ended_like_ctrl_c
from harness.console.starter_commands import init
from harness.console.store_commands import merge
from harness.console.surroundings import explained
from harness.errors import HarnessError, ScenarioError, from_interrupt, with_file
from harness.leaderboard.commands import leaderboard

app = typer.Typer(
    name="harness",
    cls=HarnessGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(leaderboard, name="leaderboard", cls=NearMisses)
app.add_typer(export_group, name="export", cls=NearMisses)
app.add_typer(plugin, name="plugin", cls=NearMisses)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"harness {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Score every combination of federated-learning defences, compressors, aggregators and attacks.

    Example: harness run scenarios/quickstart.yaml
    """


@app.command()
def run(
    scenarios: Scenarios,
    device: Device = "auto",
    jobs: Jobs = "auto",
    store: Store = Path("runs"),
    select: Select = None,
    dry_run: DryRun = False,
    fail_fast: FailFast = False,
    timeout: Timeout = None,
    shard: ShardOption = None,
    executor: Executor = "local",
    address: Address = "auto",
    artifacts: Artifacts = "objects",
    export: Export = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    plugins: LocalPlugins = None,
) -> None:
    """Train, compress, attack and score every combination that the store does not hold yet.

    An interrupted run resumes where it stopped. Exit status: 0 all scored; 1 some cells failed, none was
    applicable, or a scenario was skipped; 2 bad input; 130 interrupted by Ctrl-C or SIGTERM.

    Example: harness run scenarios/quickstart.yaml --select 'defence=dp-sgd*'
    On a Ray cluster: harness run scenarios/quickstart.yaml --executor ray --address auto
    One of eight parts: harness run scenarios/quickstart.yaml --shard 2/8 --store shard2
    """
    from harness.console.arguments import find_scenarios, parse_jobs
    from harness.console.output import count_of, leave, make_console, print_json, run_values
    from harness.console.progress import make_observer
    from harness.console.tables import render_leaderboard
    from harness.export import check_format
    from harness.export import export as write

    if timeout is not None and not timeout > 0:
        raise HarnessError(f"--timeout must be greater than 0 seconds, not {timeout:g}")
    if dry_run:
        return plan(
            scenarios, device=device, jobs=jobs, store=store, select=select, shard=shard, as_json=as_json
        )
    if export is not None:
        check_format(export)
    paths, workers = find_scenarios(scenarios), parse_jobs(jobs)
    with make_observer(make_console(stderr=True), quiet=quiet) as observer:
        from harness.engine import run as execute

        result = execute(
            paths, device=device, jobs=workers, store=store, select=select or None, fail_fast=fail_fast,
            timeout=timeout, observer=observer, shard=shard, executor=executor, address=address, artifacts=artifacts,
        )  # fmt: skip
    if as_json:
        print_json(run_values(result))
    else:
        console = make_console()
        render_leaderboard(result.records, console, planned=result.planned)
        computed, cached = sum(result.executed.values()), sum(result.cached.values())
        console.print(
            f"{count_of(computed, 'stage')} computed, {cached} taken from {result.store}", soft_wrap=True
        )
    status = leave(result, part=shard is not None)
    if export is not None:
        write(result.records, export)
    raise typer.Exit(status)


@app.command()
def plan(
    scenarios: Scenarios,
    device: Device = "auto",
    jobs: Jobs = "auto",
    store: Store = Path("runs"),
    select: Select = None,
    shard: ShardOption = None,
    as_json: AsJson = False,
    plugins: LocalPlugins = None,
) -> None:
    """Show what a run would do: cells, stages, what is in the store, estimated time.

    Example: harness plan scenarios/*.yaml --json
    """
    from harness.console.arguments import find_scenarios, parse_jobs
    from harness.console.output import make_console, print_json
    from harness.console.plan_table import render_plan

    paths, workers = find_scenarios(scenarios), parse_jobs(jobs)

    from harness.engine import plan as make_plan

    found = make_plan(
        paths, device=device, jobs=workers, store=store, select=select or None, shard=shard
    ).to_dict()
    if as_json:
        print_json(found)
    else:
        render_plan(found, make_console())
    for item in found.get("skipped") or ():
        print(f"skipped {with_file(item['scenario'], item['reason'])}", file=sys.stderr)
    raise typer.Exit(1 if found.get("skipped") else 0)


@app.command()
def validate(
    scenarios: Scenarios,
    data: CheckData = True,
    as_json: AsJson = False,
    plugins: LocalPlugins = None,
) -> None:
    """Check scenarios without running them; report every mistake with file, line and column.

    Combinations that make no sense are not mistakes: they are listed, unless --no-data is given, and `harness run`
    leaves them out. With --json, mistakes are printed as JSON too: `error` as text, and `problems`, each with `file`,
    `line`, `column` and `message`. Exit status: 0 all valid, 2 some are not.

    Example: harness validate scenarios/*.yaml --no-data
    """
    from harness.console.arguments import find_scenarios
    from harness.console.output import print_json
    from harness.scenario import check_data, load_many
    from harness.scenario_data import check_fit, check_installed, remarks
    from harness.scenario_plan import not_applicable

    loaded = load_many(find_scenarios(scenarios))
    mistakes = []
    notes: dict[str, list[str]] = {}
    for scenario in loaded:
        try:
            check_installed(scenario)
            if data:
                splits = check_data(scenario)
                check_fit(scenario, splits)
                notes[scenario.name] = remarks(scenario, splits)
        except HarnessError as error:
            mistakes.append(with_file(scenario.path, error))
    if mistakes:
        raise ScenarioError("\n".join(mistakes))
    refused = not_applicable(loaded) if data else {}
    if as_json:
        print_json(
            [
                {
                    "path": str(s.path),
                    "name": s.name,
                    "hash": s.hash(),
                    "not_applicable": refused.get(s.name, {}),
                    "notes": notes.get(s.name, []),
                }
                for s in loaded
            ]
        )
    else:
        for scenario in loaded:
            typer.echo(f"{scenario.path}: ok")
            for note in notes.get(scenario.name, ()):
                typer.echo(f"  note: {note}")
            for reason, count in refused.get(scenario.name, {}).items():
                typer.echo(f"  not applicable ×{count}: {reason}")


@app.command()
def schema(
    out: Out = None,
    plugins: LocalPlugins = None,
) -> None:
    """Print the JSON Schema of scenarios, including installed plugins, for editors.

    Example: harness schema --out scenario.schema.json
    """
    import json

    from harness.console.machine import prints_on_stderr
    from harness.console.output import print_json
    from harness.files import replacing
    from harness.schema import scenario_schema

    if out is None:
        with prints_on_stderr():
            print_json(scenario_schema())
        return
    text = json.dumps(scenario_schema(), indent=2) + "\n"
    try:
        if out.exists() and not out.is_file():  # a pipe or a terminal
            out.write_text(text, encoding="utf-8")
        else:
            with replacing(out.resolve()) as draft:  # a link stays one
                draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"--out {out}: {error.strerror or error}") from None
    typer.echo(f"wrote {out}")


for command in (picture, plot, explain, audit, merge, init, recommend):
    app.command()(command)


@app.command("list")
def list_plugins(
    context: typer.Context,
    kind: OptionalKind = None,
    as_json: AsJson = False,
    plugins: LocalPlugins = None,
) -> None:
    """List plugins by kind, with the package each comes from, and those that could not be loaded.

    Kinds: dataset, partitioner, model, defence, aggregator, compressor, attack, metric, tracker. Or narrower:
    pre-aggregator, model-compressor, update-compressor, evasion-attack, poisoning-attack, byzantine-attack,
    privacy-attack.

    Example: harness list attack
    """
    from harness.console.catalogue import keep_listing, kept_listing, listing_file
    from harness.console.listing import listing, render_list
    from harness.console.output import make_console, print_json
    from harness.kinds import kind_of

    kind, sort = (None, None) if kind is None else kind_of(kind)
    file = None if plugins else listing_file()
    found = None if file is None else kept_listing(file)
    disabled: list[Any] = []
    if found is None or (kind is not None and not any(plugin["kind"] == kind for plugin in found)):
        from harness.console.group import plugin_commands
        from harness.registry import registry

        plugin_commands(frozenset(context.find_root().command.commands))  # type: ignore[attr-defined]
        loaded = registry()
        if kind is not None:
            loaded.names(kind)  # raises where there is no such kind
        found, disabled = listing(loaded), loaded.disabled
        if file is not None and not disabled:
            keep_listing(file, found)
    shown = [p for p in found if kind in (None, p["kind"]) and sort in (None, p["group"])]
    if as_json:
        print_json({"plugins": shown, "disabled": [vars(item) for item in disabled]})
    else:
        render_list(shown, disabled, make_console())


@app.command()
def show(
    plugin: Named,
    as_json: AsJson = False,
    plugins: LocalPlugins = None,
) -> None:
    """Show one plugin: what it does, its parameters and bounds, its reference, its origin.

    Example: harness show defence dp-sgd
    """
    from harness.console.describe import describe
    from harness.console.named import find
    from harness.console.output import make_console, print_json
    from harness.console.pages import render_plugin

    page = describe(find(plugin))
    if as_json:
        print_json(page)
    else:
        render_plugin(page, make_console())


@app.command()
def doctor(context: typer.Context, store: Store = Path("runs"), as_json: AsJson = False) -> None:
    """Report this machine's versions, devices, plugins, data and free disk space; exit 1 if runs cannot work.

    Example: harness doctor
    """
    from harness.console.group import plugin_commands
    from harness.console.health import render_doctor
    from harness.console.output import make_console, print_json
    from harness.doctor import examine

    plugin_commands(frozenset(context.find_root().command.commands))  # type: ignore[attr-defined]
    report = examine(store)
    if as_json:
        print_json(report)
    else:
        render_doctor(report, make_console())
    raise typer.Exit(1 if report["problems"] else 0)


def main(arguments: list[str] | None = None) -> int:
    """The entry point: returns the exit status. Bad input is reported in plain text, without a traceback."""
    # Objects made by imports are not freed: at Python's own rate, searching them for garbage took a quarter of the
    # time to start.
    gc.set_threshold(50_000, 20, 50)
    expect_value(False)
    try:
        Path.cwd()  # raises where the folder is gone; MKL would end the process with a message about a library
        with ended_like_ctrl_c():
            app(arguments, prog_name="harness")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HarnessError as error:
        from harness.console.output import print_error

        print_error(error)
        return 2
    except OSError as error:
        said = explained(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 2
    except (Exception, KeyboardInterrupt) as error:
        if not from_interrupt(error):
            raise
        print("interrupted", file=sys.stderr)
        return 130
    return 0
