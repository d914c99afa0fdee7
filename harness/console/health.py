"""`harness doctor`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

GB = 1e9


def render_doctor(report: dict[str, Any], console: Console) -> None:
    """The report of harness.doctor.examine, problems last."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(report):
        table.add_row(name, Text(text))
    console.print(table)
    for text in report["warnings"]:
        console.print(Text(f"warning: {text}", style="yellow"))
    for text in report["problems"]:
        console.print(Text(f"problem: {text}", style="red"))
    if not report["problems"]:
        console.print(Text("ready to run", style="green"))


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    torch, data, store = report["torch"], report["data"], report["store"]
    lines = [
        ("harness", report["harness"]),
        ("python", f"{report['python']} ({report['executable']})"),
        ("system", report["platform"]),
        ("torch", f"{torch['version'] or 'missing'}, CUDA {torch['cuda'] or 'not built in'}"),
    ]
    for index, device in enumerate(torch["devices"]):
        memory = f"{device['memory_bytes'] / GB:.0f} GB"
        lines.append(
            (f"cuda:{index}", f"{device['name']}, {memory}, compute capability {device['capability']}")
        )
    if not torch["devices"]:
        lines.append(("cuda", "no device; runs use the CPU"))
    memory = report["memory_bytes"]
    lines.append(("cpu", f"{report['cores']} cores" + (f", {memory / GB:.1f} GB memory" if memory else "")))
    lines.append(
        ("libraries", ", ".join(f"{name} {version}" for name, version in report["libraries"].items()))
    )
    for extra, state in report["extras"].items():
        missing = ", ".join(state["missing"])
        text = "complete" if state["complete"] else f"without {missing}; pip install 'psr-harness[{extra}]'"
        lines.append((f"extra {extra}", text))
    counts = ", ".join(f"{kind} {count}" for kind, count in report["plugins"]["counts"].items())
    lines.append(("plugins", counts or "none"))
    if data["path"] is None:
        found = "not set; it names the folder that relative data paths are looked up in"
    elif not data["exists"]:
        found = f"{data['path']}: not a folder"
    else:
        more = data["count"] - len(data["found"])
        found = f"{data['path']}: {', '.join(data['found']) or 'empty'}" + (
            f" and {more} more" if more > 0 else ""
        )
    lines.append(("HARNESS_DATA", found))
    state = "" if store["exists"] else " (made by the first run)"
    lines.append(("store", f"{store['path']}{state}, {store['free_bytes'] / GB:.1f} GB free"))
    return lines
