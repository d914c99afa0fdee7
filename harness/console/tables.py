"""The final table of a run, which fits the console's width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console import guarantees
from harness.console.contributed import shown_quantities
from harness.console.outcomes import render_outcomes
from harness.console.output import count_of, packed, short_labels
from harness.console.pooling import AXES, Quantity, Row, Value, axes_of, best, pool
from harness.leaderboard.columns import part_tested, signs

ARROWS = {"higher": "↑", "lower": "↓"}
# Where the console is narrow, these columns go first.
EXPENDABLE = ("uplink", "size", "inversion", "mia", "backdoor", "byzantine", "audited", "epsilon", "robust")
NARROWEST = 22  # of the configuration column
WIDEST = 44
ROWS = 60  # of a table: more would not be read


def render_leaderboard(records: Sequence[dict[str, Any]], console: Console, planned: int = 0) -> None:
    """One table per scenario, one row per configuration, pooled over seeds; then what failed and why.

    planned: how many cells the run was to give records of; more than there are if it ended early.
    """
    scenarios: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        scenarios.setdefault(str(record["scenario"]["name"]), []).append(record)
    for name, own in scenarios.items():
        _scenario(name, own, console)
    render_outcomes(records, console, planned)


def _scenario(name: str, records: Sequence[dict[str, Any]], console: Console) -> None:
    columns = shown_quantities(records)
    every = [row for row in pool(records, columns) if row.values]
    seeds = len({record["cell"].get("seed") for record in records})
    console.print(Text.assemble((name, "bold"), f"  ({count_of(seeds, 'seed')})"))
    if not every:
        console.print("  no configuration has a score")
        return
    varying = varying_axes([row.axes for row in every])
    filled = [q for q in columns if any(q.key in row.values for row in every)]
    winners = {q.key: best(every, q) for q in filled}
    kept = _readable(len(every), winners)
    rows = [every[position] for position in kept]
    won = [{key for key, positions in winners.items() if position in positions} for position in kept]
    quantities = _fitting(rows, filled, console.width)
    room = min(WIDEST, max(NARROWEST, console.width - _width(rows, quantities)))
    # A label wraps between axes only: each part must fit on a line of its own, after "/ ".
    names = short_labels([row.axes[i] for row in rows for i in varying], room - 2)
    labels = [[AXES[i] for i in varying], *([names[row.axes[i]] for i in varying] for row in rows)]
    console.print(_table([_label(parts, room) for parts in labels], quantities, rows, won))
    if others := len(every) - len(rows):
        console.print(Text(f"… and {others} other configurations; --export FILE writes all"))
    # Where the output is no terminal nothing comes out bold.
    bold = console.color_system is not None and any(winners[q.key] for q in quantities)
    # What a row shows as its epsilon, which is that of its weakest cell: a number where there is no text, or inf.
    shown = {row.axes: value.text for row in rows if (value := row.values.get("epsilon")) is not None}
    lines = _legend(
        rows, quantities, [q for q in filled if q not in quantities], seeds, bold, _broken(records, shown)
    )
    if any(q.key == "epsilon" for q in quantities):
        promised = (r for r in records if shown.get(axes_of(r), "none") in (None, "inf"))
        lines += guarantees.said(r.get("guarantee") for r in promised if r["status"] == "scored")
    if (part := _part_tested(records)) is not None:
        lines.append(part)
    for line in lines:
        console.print(Text(line, style="dim"))
    render_key(AXES, rows[0].axes, varying, names, console)
    console.print()


def _fitting(rows: Sequence[Row], quantities: Sequence[Quantity], width: int) -> list[Quantity]:
    """The quantities that have room beside the narrowest column of labels; at least one."""
    fitting = list(quantities)
    while len(fitting) > 1 and _width(rows, fitting) + NARROWEST > width:
        fitting.remove(min(fitting, key=_worth))
    return fitting


def _label(parts: Sequence[str], room: int) -> str:
    return "\n".join(packed([parts[0], *(f" / {part}" for part in parts[1:])], room))


def _table(
    labels: Sequence[str], quantities: Sequence[Quantity], rows: Sequence[Row], won: Sequence[set[str]]
) -> Table:
    """The table itself. labels: the header's, then each row's. won: for each row, the keys in which it is best."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column(labels[0], no_wrap=True)
    for quantity in quantities:
        table.add_column(Text(_header(quantity), justify="right"), justify="right", no_wrap=True)
    for label, row, bold in zip(labels[1:], rows, won, strict=True):
        values = [
            Text.assemble(*_show(row.values.get(q.key), q, bold=q.key in bold), justify="right")
            for q in quantities
        ]
        table.add_row(Text(label), *values)
    return table


def _broken(records: Sequence[dict[str, Any]], shown: Mapping[tuple[str, ...], str | None]) -> str:
    """The id of a cell that breaks the guarantee of a row that is shown as `broken`; empty where there is none."""
    there = (r for r in records if shown.get(axes_of(r)) == "broken" and r["status"] == "scored")
    found = (r["id"] for r in there if (given := r.get("guarantee")) and not given.get("holds", True))
    return next(found, "")


def _worth(quantity: Quantity) -> int:
    """How late a column is dropped on a narrow console: accuracy last, contributed scores just before it."""
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
    """Prints the labels that all rows share, then what each short name stands for. labels: those of any one row."""
    fixed = [f"{axes[i]} {labels[i]}" for i in range(len(axes)) if i not in varying]
    if fixed:
        console.print(Text("in every row: " + ", ".join(fixed), style="dim"))
    for label, short in names.items():
        if label != short:
            console.print(Text(f"{short}: {label}", style="dim"), overflow="fold")


def _part_tested(records: Sequence[dict[str, Any]]) -> str | None:
    """A note, as on the board, if the scenario's evaluation uses only a part of the test set."""
    for record in records:
        size = record.get("provenance", {}).get("dataset", {}).get("test")
        if (said := part_tested(record.get("test_samples"), size)) is not None:
            return said
    return None


def _readable(count: int, winners: dict[str, set[int]]) -> list[int]:
    """Positions of the rows that are shown: all up to ROWS; of more, the best of each column, then the first others."""
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
    """The width of all columns but the first, each with the space before it."""
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
    """What the table's columns and marks mean, one line each.

    dropped: quantities not shown for lack of width. broken: the id of a cell whose guarantee is broken, if any.
    """
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
