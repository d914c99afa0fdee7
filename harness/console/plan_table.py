"""The table of what a run would do."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console.output import count_of, duration

REASONS = 20  # shown of why cells are not applicable: the most frequent ones


def render_plan(plan: dict[str, Any], console: Console) -> None:
    """What a run would do: cells by scenario, stages by kind, what is cached, and the estimate."""
    if plan.get("shard"):
        console.print("shard {index} of {count}: {cells} of {of} cells".format(**plan["shard"]))
    cells = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    cells.add_column("scenario", overflow="fold")
    for header in ("cells", "to score", "in the store", "not applicable"):
        cells.add_column(header, justify="right")
    reasons: Counter[str] = Counter()
    for scenario in plan["scenarios"]:
        counts = Counter(cell["status"] for cell in scenario["cells"])
        numbers = (len(scenario["cells"]), counts["ready"], counts["cached"], counts["not-applicable"])
        cells.add_row(Text(scenario["name"]), *map(str, numbers))
        reasons.update(str(c.get("reason")) for c in scenario["cells"] if c["status"] == "not-applicable")
    console.print(cells)
    console.print()
    stages = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    stages.add_column("stages")
    for header in ("total", "in the store", "to compute"):
        stages.add_column(header, justify="right")
    for kind, count in plan["stages"].items():
        stages.add_row(kind, str(count["total"]), str(count["cached"]), str(count["total"] - count["cached"]))
    console.print(stages)
    console.print()
    for text, count in reasons.most_common(REASONS):
        console.print(Text(f"not applicable ×{count}: {text}"))
    if len(reasons) > REASONS:
        console.print(Text(f"… and {len(reasons) - REASONS} other reasons; --json lists all"))
    seconds = plan.get("estimate_seconds")
    about = "unknown until a similar stage has run" if seconds is None else f"about {duration(seconds)}"
    jobs = count_of(plan.get("jobs", 1), "job")
    where = f" on {count_of(plan['gpus'], 'GPU')}" if plan.get("gpus") else ""
    console.print(Text(f"time: {about}, with {jobs}{where}"))
