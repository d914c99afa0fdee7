"""The final table of a run, and what a plan holds. Both fit the console's width."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console import guarantees
from harness.console.contributed import shown_quantities
from harness.console.output import count_of, duration, packed, short_labels
from harness.console.pooling import AXES, Quantity, Row, Value, best, pool
from harness.errors import place_of
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.diverged import FLAG as UNANSWERED
from harness.evaluation.unscored import FLAG as UNSCORED
from harness.evaluation.unscored import undefined
from harness.leaderboard.columns import part_tested, signs

ARROWS = {"higher": "↑", "lower": "↓"}
# Where the console is narrow, these columns go first.
EXPENDABLE = ("uplink", "size", "inversion", "mia", "backdoor", "byzantine", "audited", "epsilon", "robust")
NARROWEST = 22  # of the configuration column
WIDEST = 44
ROWS = 60  # of a table: more would not be read
REASONS = 3  # of each outcome
PLANNED_REASONS = 20
# A line each on how many cells have them: no mark would tell of it where a column, or every attack, is concerned.
FLAGGED = {
    CONSTANT: "constant predictions ×{count}: the model predicts one class for every test image",
    UNANSWERED: "NaN predictions ×{count}: the model has diverged and has no answer to some test image, which counts "
    "as a wrong one",
    UNSCORED: "attacks without a score ×{count}: no metric of the scenario is about what the attack found, "
    "or it is NaN",
}


def render_leaderboard(records: Sequence[dict[str, Any]], console: Console, planned: int = 0) -> None:
    """One table a scenario, one row a configuration, pooled over seeds; then what failed and why.

    planned: how many cells there would be records of, had the run not ended before.
    """
    scenarios: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        scenarios.setdefault(str(record["scenario"]["name"]), []).append(record)
    for name, own in scenarios.items():
        _scenario(name, own, console)
    _outcomes(records, console, planned)


def _scenario(name: str, records: Sequence[dict[str, Any]], console: Console) -> None:
    columns = shown_quantities(records)
    rows = [row for row in pool(records, columns) if row.values]
    seeds = {record["cell"].get("seed") for record in records}
    console.print(Text.assemble((name, "bold"), f"  ({count_of(len(seeds), 'seed')})"))
    if not rows:
        console.print("  no configuration has a score")
        return
    varying = varying_axes([row.axes for row in rows])
    quantities = [q for q in columns if any(q.key in row.values for row in rows)]
    dropped: list[Quantity] = []
    winners = {q.key: best(rows, q) for q in quantities}
    every, kept = len(rows), _readable(len(rows), winners)
    rows = [rows[position] for position in kept]
    while len(quantities) > 1 and _width(rows, quantities) + NARROWEST > console.width:
        spare = min(quantities, key=_worth)
        quantities.remove(spare)
        dropped.append(spare)
    room = min(WIDEST, max(NARROWEST, console.width - _width(rows, quantities)))
    # A label wraps between axes only: each part must fit on a line of its own, after "/ ".
    names = short_labels([row.axes[i] for row in rows for i in varying], room - 2)
    header, *labels = (
        packed([parts[0], *(f" / {part}" for part in parts[1:])], room)
        for parts in ([AXES[i] for i in varying], *([names[row.axes[i]] for i in varying] for row in rows))
    )
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column("\n".join(header), no_wrap=True)
    for quantity in quantities:
        table.add_column(Text(_header(quantity), justify="right"), justify="right", no_wrap=True)
    for position, lines, row in zip(kept, labels, rows, strict=True):
        cells = [
            Text.assemble(*_show(row.values.get(q.key), q, bold=position in winners[q.key]), justify="right")
            for q in quantities
        ]
        table.add_row(Text("\n".join(lines)), *cells)
    console.print(table)
    if every > len(rows):
        console.print(Text(f"… and {every - len(rows)} other configurations; --export FILE writes all"))
    # Where the output is no terminal nothing comes out bold.
    bold = console.color_system is not None and any(winners[q.key] for q in quantities)
    broken = next(
        (r["id"] for r in records if (given := r.get("guarantee")) and not given.get("holds", True)), ""
    )
    for line in _legend(rows, quantities, [q for q in columns if q in dropped], len(seeds), bold, broken):
        console.print(Text(line, style="dim"))
    if any(q.key == "epsilon" for q in quantities):
        for line in guarantees.said(r.get("guarantee") for r in records if r["status"] == "scored"):
            console.print(Text(line, style="dim"))
    if (part := _part_tested(records)) is not None:
        console.print(Text(part, style="dim"))
    render_key(AXES, rows[0].axes, varying, names, console)
    console.print()


def _worth(quantity: Quantity) -> int:
    """The later a column goes where the console is narrow: accuracy last, scores of contributed metrics before it."""
    if quantity.key in EXPENDABLE:
        return EXPENDABLE.index(quantity.key)
    return len(EXPENDABLE) + (quantity.key == "accuracy")


def varying_axes(rows: Sequence[Sequence[str]]) -> list[int]:
    """Positions in which the rows differ; the first where they are all the same."""
    return [i for i in range(len(rows[0])) if len({row[i] for row in rows}) > 1] or [0]


def render_key(
    axes: Sequence[str],
    labels: Sequence[str],
    varying: Sequence[int],
    names: Mapping[str, str],
    console: Console,
) -> None:
    """What the labels of all rows share, by those of any of them; then what each short name stands for."""
    fixed = [f"{axes[i]} {labels[i]}" for i in range(len(axes)) if i not in varying]
    if fixed:
        console.print(Text("in every row: " + ", ".join(fixed), style="dim"))
    for label, short in names.items():
        if label != short:
            console.print(Text(f"{short}: {label}", style="dim"), overflow="fold")


def _part_tested(records: Sequence[dict[str, Any]]) -> str | None:
    """What is to be said where the scenario's evaluation uses a part of the test set, as on the board."""
    for record in records:
        size = record.get("provenance", {}).get("dataset", {}).get("test")
        if (said := part_tested(record.get("test_samples"), size)) is not None:
            return said
    return None


def _readable(count: int, winners: dict[str, set[int]]) -> list[int]:
    """Positions of the rows that are shown: all, or of very many the best of each column and then the first."""
    best_ones = sorted(set().union(*winners.values()))[:ROWS]
    others = [position for position in range(count) if position not in set(best_ones)]
    return sorted([*best_ones, *others[: ROWS - len(best_ones)]])


def _header(quantity: Quantity) -> str:
    """Two lines: the name, the unit with the arrow."""
    name, _, unit = quantity.header.partition(" ")
    return f"{name}\n{unit} {ARROWS[quantity.better]}" if unit else f"{name}\n{ARROWS[quantity.better]}"


def _show(value: Value | None, quantity: Quantity, bold: bool = False) -> list[tuple[str, str]]:
    """The mean with its marks and, on a line below, the deviation: (text, style) parts."""
    if value is None:
        return [("–", "")]
    number = value.text or quantity.show(value.mean)
    parts = [(number + signs(value), "bold red" if value.violated else "bold" if bold else "")]
    if value.deviation is not None and not value.text and float(quantity.show(value.deviation)):
        parts.append((f"\n±{quantity.show(value.deviation)}", "dim"))
    return parts


def _width(rows: Sequence[Row], quantities: Sequence[Quantity]) -> int:
    """Of all columns but the first, each with the space before it."""
    total = 0
    for quantity in quantities:
        texts = ["".join(text for text, _ in _show(row.values.get(quantity.key), quantity)) for row in rows]
        total += 1 + max(len(line) for text in (_header(quantity), *texts) for line in text.split("\n"))
    return total


def _legend(
    rows: Sequence[Row],
    quantities: Sequence[Quantity],
    dropped: Sequence[Quantity],
    seeds: int,
    bold: bool,
    broken: str,
) -> list[str]:
    """broken: a cell whose guarantee is."""
    lines = [q.legend for q in quantities if q.legend]
    shown = [row.values[q.key] for row in rows for q in quantities if q.key in row.values]
    general = ["bold: best of the column"] * bold
    general += [f"±: standard deviation over {seeds} seeds"] * (seeds > 1)
    lines += ["; ".join(general)] if general else []
    if any(value.incomplete for value in shown):
        lines.append("†: lacks attacks or seeds that were asked for, so not compared")
    if any(value.masked for value in shown):
        lines.append("‡: gradient masking suspected, so probably too high; not compared")
    if any(value.constant for value in shown):
        lines.append(
            "‖: the model predicts one class for every test image, so attacks say nothing; not compared"
        )
    if any(value.subset for value in shown):
        lines.append("¶: on fewer test records than the clean accuracy: the threat's subset")
    if any(value.violated for value in shown):
        lines.append("!: an audit refutes the guarantee: suspect a bug in the defence")
    if any(value.text == "broken" for value in shown):
        lines.append(f"broken: something voids the guarantee; `harness explain {broken}` says what")
    if dropped:
        names = ", ".join(q.header for q in dropped)
        lines.append(f"not shown for lack of width: {names}")
    return lines


def _outcomes(records: Sequence[dict[str, Any]], console: Console, planned: int) -> None:
    counts = Counter(record["status"] for record in records)
    parts = [
        f"{counts[s]} {s.replace('-', ' ')}" for s in ("scored", "failed", "not-applicable") if counts[s]
    ]
    if planned > len(records):
        others = [part for part in parts if not part.endswith(" scored")]
        console.print(Text(", ".join([f"{counts['scored']} of {count_of(planned, 'cell')} scored", *others])))
    else:
        console.print(Text(f"{count_of(len(records), 'cell')}: {', '.join(parts) or 'none'}"))
    if (lost := _lost_updates(records)) is not None:
        console.print(Text(lost, style="yellow"))
    for flag, said in FLAGGED.items():
        if count := sum(flag in (record.get("flags") or ()) for record in records):
            console.print(Text(f"  {said.format(count=count)}", style="yellow"))
    if silent := _undefined(records):
        console.print(Text(f"  NaN wherever it was scored: {', '.join(silent)}", style="yellow"))
    for status, style in (("failed", "red"), ("not-applicable", "")):
        reasons = Counter(reason(record) for record in records if record["status"] == status)
        for text, count in reasons.most_common(REASONS):
            console.print(Text(f"  {status.replace('-', ' ')} ×{count}: {text}", style=style))
        if len(reasons) > REASONS:
            console.print(Text(f"  … and {len(reasons) - REASONS} other reasons; --json lists all"))
        if any(place_of(record.get("error") or {}) for record in records if record["status"] == status):
            console.print(Text("  --json has the tracebacks"))


def _lost_updates(records: Sequence[dict[str, Any]]) -> str | None:
    """One line on the cells whose training could use little of what its clients sent."""
    from harness.evaluation.dropped import FLAG, dropped

    found = [dropped(record) for record in records if FLAG in (record.get("flags") or ())]
    if not found:
        return None
    worst = max(found, key=lambda each: (each.updates / max(each.of, 1), each.empty))
    return (
        f"  updates dropped ×{len(found)}: not finite, {worst.updates} of {worst.of} in the worst training, which had "
        f"{worst.empty} of {count_of(worst.rounds, 'round')} without a usable update"
    )


def _undefined(records: Sequence[dict[str, Any]]) -> list[str]:
    """Scores that no record has a value of: no column would tell that they were asked for."""
    scores = [(name, value) for record in records for name, value in (record.get("scores") or {}).items()]
    known = {name for name, value in scores if not undefined(value)}
    return [name for name in dict.fromkeys(name for name, _ in scores) if name not in known]


def reason(record: dict[str, Any]) -> str:
    """Why a record has no scores, on one line."""
    error = record.get("error")
    if error:
        message = next(
            (line.strip() for line in str(error.get("message", "")).splitlines() if line.strip()), ""
        )
        place = place_of(error)
        said = f"{error.get('type', 'error')}: {message}" if message else str(error.get("type", "error"))
        return said + (f" ({place})" if place else "")
    return str(record.get("reason") or "no reason given")


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
    for text, count in reasons.most_common(PLANNED_REASONS):
        console.print(Text(f"not applicable ×{count}: {text}"))
    if len(reasons) > PLANNED_REASONS:
        console.print(Text(f"… and {len(reasons) - PLANNED_REASONS} other reasons; --json lists all"))
    seconds = plan.get("estimate_seconds")
    about = "unknown until a similar stage has run" if seconds is None else f"about {duration(seconds)}"
    jobs = count_of(plan.get("jobs", 1), "job")
    where = f" on {count_of(plan['gpus'], 'GPU')}" if plan.get("gpus") else ""
    console.print(Text(f"time: {about}, with {jobs}{where}"))
