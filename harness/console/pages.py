"""`harness show`: one plugin's page."""

from __future__ import annotations

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.numerals import short

AXIS = {"defence": "defences", "aggregator": "aggregators", "compressor": "compressors", "attack": "attacks"}
LISTS = {**AXIS, "metric": "metrics", "tracker": "trackers"}


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
    """Joins each plain paragraph that is too wide into one line; lists and indented blocks stay as they are."""
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
        return short(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
