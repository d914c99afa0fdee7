"""`harness plugin check`: the conformance reports of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from harness.console.options import AsJson, LocalPlugins
from harness.errors import PluginError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from harness.registry import Entry
    from harness.testing import Report

ORDER = ("passed", "skipped", "failed")
STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def check(
    plugins_named: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] NAME...",
            help="Names, aliases or package/name. Put the kind before a name that several kinds share.",
        ),
    ],
    parameters: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--with",
            metavar="YAML",
            help="Parameters to check it with, such as '{f: 2}'; default: the plugin's defaults.",
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Show only the checks that failed.")] = False,
    as_json: AsJson = False,
    plugins: LocalPlugins = None,
) -> None:
    """Check that plugins keep the contract of their kind, and say what to change where they do not.

    Tests can run the same checks through harness.testing. With --json, one plugin's report is an object, several
    are a list. Exit status: 0 all passed, 1 some failed, 2 bad input.

    Example: harness plugin check aggregator krum --with '{f: 2}'
    """
    from harness.console.named import find_all
    from harness.console.output import make_console, print_json

    entries = find_all(plugins_named)
    if parameters is not None and len(entries) > 1:
        raise PluginError(
            f"--with {parameters!r}: parameters are for one plugin, but {len(entries)} are named"
        )
    given = None if parameters is None else _mapping(parameters)
    reports = []
    for entry in entries:
        reports.append(_checked(entry, entry.plugin if given is None else entry.plugin.create(given)))
        if not as_json:
            render(reports[-1], entry, make_console(), ("failed",) if failed else ORDER)
    if as_json:
        found = [values(*pair) for pair in zip(reports, entries, strict=True)]
        print_json(found if len(found) > 1 else found[0])
    elif len(entries) > 1:
        render_verdicts(reports, entries, make_console())
    raise typer.Exit(0 if all(report.passed for report in reports) else 1)


def _checked(entry: Entry, tried: Any) -> Report:
    """Checks a plugin, with progress on a terminal."""
    from harness.console.output import make_console
    from harness.testing import check_plugin

    progress = make_console(stderr=True)
    shown = progress.status(f"checking {entry.plugin.name}") if progress.is_terminal else nullcontext()
    with shown as status:

        def tell(done: int, total: int, name: str) -> None:
            if status is not None:
                status.update(f"checking {entry.plugin.name}: {done}/{total} {name}")

        return check_plugin(tried, tell)


def _mapping(text: str) -> dict[str, Any]:
    from harness.yaml_loader import parse

    document = parse(text)
    if document.problems:
        raise PluginError(f"--with {text!r}: {document.problems[0].message}")
    if not isinstance(document.data, dict):
        raise PluginError(f"--with {text!r}: parameters are a mapping such as '{{f: 2}}'")
    return document.data


def values(report: Report, entry: Entry) -> dict[str, Any]:
    """The report as plain values."""
    from dataclasses import asdict

    return {
        "kind": report.kind, "family": report.family, "name": report.name,
        "distribution": entry.distribution, "version": entry.version,
        "passed": report.count("passed"), "failed": report.count("failed"), "skipped": report.count("skipped"),
        "checks": [asdict(result) for result in report.results],
    }  # fmt: skip


def render(report: Report, entry: Entry, console: Console, shown: Sequence[str] = ORDER) -> None:
    """One row per check: what it asks or, if it did not pass, what to change or why it was skipped.

    Failures come last: a terminal shows the end of what was printed. shown: the results whose checks have a row.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = f"{report.family} {report.name}, {entry.distribution} {entry.version}"
    console.print(Text(title, style="bold"))
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("check", overflow="fold", max_width=30)
    table.add_column("result", no_wrap=True)
    table.add_column("what it asks, or what to change", overflow="fold")
    results = [result for result in report.results if result.status in shown]
    for result in sorted(results, key=lambda result: ORDER.index(result.status)):
        text = Text(result.message or result.description, style="" if result.message else "dim")
        table.add_row(Text(result.check), Text(result.status, style=STYLES[result.status]), text)
    if results:
        console.print(table)
    console.print(_counts(report))


def render_verdicts(reports: Sequence[Report], entries: Sequence[Entry], console: Console) -> None:
    """One row per plugin, with how many of its checks passed, failed and were skipped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("plugin", "package", "checks"):
        table.add_column(name, overflow="fold")
    for report, entry in zip(reports, entries, strict=True):
        table.add_row(
            f"{report.family} {report.name}", f"{entry.distribution} {entry.version}", _counts(report)
        )
    console.print()
    console.print(table)


def _counts(report: Report) -> Text:
    from rich.text import Text

    counts = [f"{report.count(s)} {s}" for s in STYLES if report.count(s)]
    return Text(", ".join(counts), style="green" if report.passed else "bold red")
