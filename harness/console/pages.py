"""`harness list` and `harness show`."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.console.describe import describe, summary
from harness.contracts.base import KINDS
from harness.registry import Disabled, Registry

AXIS = {"defence": "defences", "aggregator": "aggregators", "compressor": "compressors", "attack": "attacks"}
LISTS = {**AXIS, "metric": "metrics", "tracker": "trackers"}


def listing(registry: Registry, kind: str | None = None) -> list[dict[str, Any]]:
    """One dictionary a plugin, by kind and name."""
    return [
        {
            "kind": entry.plugin.kind,
            "name": entry.plugin.name,
            "aliases": list(entry.plugin.aliases),
            "group": group(entry.plugin),
            "distribution": entry.distribution,
            "version": entry.version,
            "summary": summary(entry.plugin),
        }
        for each in ([kind] if kind else KINDS)
        for entry in registry.entries(each)
    ]


def group(plugin: Any) -> str:
    """An attack's family, what a compressor acts on, `pre` for a pre-aggregator."""
    if plugin.kind == "attack":
        return str(plugin.family)
    if plugin.kind == "compressor":
        return str(plugin.acts_on)
    return "pre" if getattr(plugin, "pre", False) else ""


def render_list(plugins: list[dict[str, Any]], disabled: list[Disabled], console: Console) -> None:
    """A table by kind; below, what could not be loaded and why."""
    foreign = len({plugin["distribution"] for plugin in plugins}) > 1
    for kind in dict.fromkeys(plugin["kind"] for plugin in plugins):
        own = [plugin for plugin in plugins if plugin["kind"] == kind]
        grouped = any(plugin["group"] for plugin in own)
        rows = []
        for plugin in sorted(own, key=lambda p: (p["group"], p["name"])):
            group = [plugin["group"]] if grouped else []
            package = [f"{plugin['distribution']} {plugin['version']}"] if foreign else []
            rows.append([plugin["name"], *group, *package, plugin["summary"]])
        styles = ["", *(["cyan"] if grouped else []), *(["dim"] if foreign else []), ""]
        console.print(Text(kind, style="bold"))
        console.print(_columns(rows, styles, console.width), soft_wrap=True)
    if len({(p["distribution"], p["version"]) for p in plugins}) == 1:
        console.print(Text(f"all from {plugins[0]['distribution']} {plugins[0]['version']}", style="dim"))
    render_disabled(disabled, console)


def _columns(rows: list[list[str]], styles: list[str], width: int) -> Text:
    """Rows of text below each other, the last column wrapped into what is left of the width.

    Rich's tables measure and wrap every cell, which took a fifth of the time of `harness list`.
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
    """One line a disabled plugin, with the reason."""
    for item in disabled:
        where = f"{item.distribution} {item.version}, entry point {item.name!r}"
        console.print(Text(f"disabled: {where}: {item.reason}", style="red"))


def render_plugin(page: dict[str, Any], console: Console) -> None:
    """One plugin's page."""
    also = f"  (also: {', '.join(page['aliases'])})" if page["aliases"] else ""
    console.print(Text.assemble((f"{page['kind']} {page['name']}", "bold"), also))
    console.print(Padding(Text(reflowed(page["documentation"], console.width - 2)), (1, 0, 1, 2)))
    if page["parameters"]:
        console.print(_parameters(page["parameters"]))
        console.print()
    for name, score in page["scores"].items():
        measured = ", measured on this machine" if score["measured"] else ""
        arrow = {"higher": "higher is better", "lower": "lower is better", "none": "neither way is better"}
        unit = f" in {score['unit']}" if score["unit"] else ""
        text = f"score {name}{unit}: {arrow[score['direction']]}{measured}"
        console.print(Text(f"{text}. {score['description']}" if score["description"] else text))
    for name, value in page["facts"].items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else _yaml(value)
        console.print(Text(f"{name.replace('_', ' ')}: {shown}"))
    reference = page["reference"]
    if reference:
        year = str(reference["year"] or "")
        parts = [reference["authors"], reference["title"], reference["venue"]]
        parts += [] if year in reference["venue"] else [year]
        console.print(Text("reference: " + ". ".join(str(part).rstrip(".") for part in parts if part)))
        if reference["url"]:
            console.print(Text(f"           {reference['url']}"), soft_wrap=True)
    console.print(Text(f"package: {page['distribution']} {page['version']}"))
    console.print(Text(f"source: {page['source']}"), soft_wrap=True)
    console.print(Text(f"in a scenario: {usage(page)}"), soft_wrap=True)


def reflowed(text: str, width: int) -> str:
    """Paragraphs of plain prose as one line each if they are too wide; indented blocks stay as they are."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        prose = not any(line.startswith((" ", "- ", "* ")) for line in lines)
        too_wide = any(len(line) > width for line in lines)
        paragraphs.append(" ".join(lines) if prose and too_wide else paragraph)
    return "\n\n".join(paragraphs)


def usage(page: dict[str, Any]) -> str:
    """A line of YAML that uses the plugin."""
    kind, text = page["kind"], page["example"]
    spec = text if text == page["name"] else f"{{{text}}}"
    if kind in LISTS:
        return f"{LISTS[kind]}: [{text if text == page['name'] else spec}]"
    key = {"partitioner": "partition"}.get(kind, kind)
    return f"{key}: {spec}"


def _parameters(parameters: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("parameter", no_wrap=True)
    for name in ("type", "default", "bounds", "description"):
        table.add_column(name, overflow="fold")
    for p in parameters:
        default = "required" if p["required"] else _yaml(p["default"])
        table.add_row(*map(Text, (p["name"], p["type"], default, p["bounds"], p["description"])))
    return table


def _yaml(value: Any) -> str:
    """A short form of a plain value, as YAML would have it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


__all__ = ["describe", "group", "listing", "render_disabled", "render_list", "render_plugin", "usage"]
