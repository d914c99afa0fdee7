"""`harness plugin check`: the conformance report of one plugin."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from harness.console.options import AsJson, LocalPlugins, Named
from harness.errors import PluginError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.registry import Entry
    from harness.testing import Report

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def check(
    plugin: Named,
    parameters: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--with", metavar="YAML", help="Parameters to check it with, such as '{f: 2}'; default: its own."
        ),
    ] = None,
    as_json: AsJson = False,
    plugins: LocalPlugins = None,
) -> None:
    """Check that a plugin keeps the contract of its kind; says what to change where it does not.

    The same checks for tests: harness.testing. Exit status: 0 all passed, 1 some failed, 2 bad input.

    Example: harness plugin check aggregator krum --with '{f: 2}'
    """
    from harness.console.named import find
    from harness.console.output import make_console, print_json
    from harness.testing import check_plugin

    entry = find(plugin)
    tried: Any = entry.plugin if parameters is None else entry.plugin.create(_mapping(parameters))
    progress = make_console(stderr=True)
    shown = progress.status(f"checking {entry.plugin.name}") if progress.is_terminal else nullcontext()
    with shown as status:

        def tell(done: int, total: int, name: str) -> None:
            if status is not None:
                status.update(f"checking {entry.plugin.name}: {done}/{total} {name}")

        report = check_plugin(tried, tell)
    if as_json:
        print_json(values(report, entry))
    else:
        render(report, entry, make_console())
    raise typer.Exit(0 if report.passed else 1)


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


def render(report: Report, entry: Entry, console: Console) -> None:
    """One row a check: what it asks, or, where it did not pass, what to change or why it was not made.

    What failed comes last: a terminal shows the end of what was printed.
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
    for result in sorted(
        report.results, key=lambda result: ("passed", "skipped", "failed").index(result.status)
    ):
        text = Text(result.message or result.description, style="" if result.message else "dim")
        table.add_row(Text(result.check), Text(result.status, style=STYLES[result.status]), text)
    console.print(table)
    counts = [f"{report.count(s)} {s}" for s in STYLES if report.count(s)]
    console.print(Text(", ".join(counts), style="green" if report.passed else "bold red"))
