"""`harness list`: the installed plugins, one line each. Its imports are light, as it is what people run first."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from harness.registry import Disabled, Registry


def listing(registry: Registry) -> list[dict[str, Any]]:
    """One dictionary per plugin, sorted by kind and name."""
    from harness.console.describe import summary
    from harness.extras import to_install
    from harness.kinds import KINDS

    return [
        {
            "kind": entry.plugin.kind,
            "name": entry.plugin.name,
            "aliases": list(entry.plugin.aliases),
            "group": group(entry.plugin),
            "distribution": entry.distribution,
            "version": entry.version,
            "summary": summary(entry.plugin),
            "to_install": to_install(entry.plugin.extras),
        }
        for kind in KINDS
        for entry in registry.entries(kind)
    ]


def group(plugin: Any) -> str:
    """An attack's family, what a compressor acts on, `pre` for a pre-aggregator, else nothing."""
    if plugin.kind == "attack":
        return str(plugin.family)
    if plugin.kind == "compressor":
        return str(plugin.acts_on)
    return "pre" if getattr(plugin, "pre", False) else ""


def render_list(plugins: list[dict[str, Any]], disabled: list[Disabled], console: Console) -> None:
    """A table for each kind, with what a plugin still needs installed; below, what could not be loaded and why."""
    foreign = len({plugin["distribution"] for plugin in plugins}) > 1
    for kind in dict.fromkeys(plugin["kind"] for plugin in plugins):
        own = [plugin for plugin in plugins if plugin["kind"] == kind]
        grouped = any(plugin["group"] for plugin in own)
        rows = []
        for plugin in sorted(own, key=lambda p: (p["group"], p["name"])):
            group = [plugin["group"]] if grouped else []
            package = [f"{plugin['distribution']} {plugin['version']}"] if foreign else []
            lacking = f" Cannot be used yet: {plugin['to_install']}" * bool(plugin["to_install"])
            rows.append([plugin["name"], *group, *package, plugin["summary"] + lacking])
        styles = ["", *(["cyan"] if grouped else []), *(["dim"] if foreign else []), ""]
        console.print(Text(kind, style="bold"))
        console.print(_columns(rows, styles, console.width), soft_wrap=True)
    if len({(p["distribution"], p["version"]) for p in plugins}) == 1:
        console.print(Text(f"all from {plugins[0]['distribution']} {plugins[0]['version']}", style="dim"))
    render_disabled(disabled, console)


def _columns(rows: list[list[str]], styles: list[str], width: int) -> Text:
    """Rows in aligned columns, the last one wrapped to the width that is left.

    Not a table of Rich's: those measure and wrap every cell, which took a fifth of the time of `harness list`.
    """
    sizes = [max(cell_len(row[i]) for row in rows) for i in range(len(styles) - 1)]
    sizes[0] = max(sizes[0], 12)
    left = 2 + sum(size + 2 for size in sizes)
    text = Text()
    for row in rows:
        text.append("  ")
        for cell, style, size in zip(row, styles, sizes, strict=False):
            text.append(set_cell_size(cell, size) + "  ", style)
        summary = textwrap.wrap(row[-1], max(20, width - left), break_on_hyphens=False) or [""]
        text.append(f"\n{' ' * left}".join(summary) + "\n")
    return text


def render_disabled(disabled: list[Disabled], console: Console) -> None:
    """One line per disabled plugin, with the reason."""
    for item in disabled:
        where = f"{item.distribution} {item.version}, entry point {item.name!r}"
        console.print(Text(f"disabled: {where}: {item.reason}", style="red"))
