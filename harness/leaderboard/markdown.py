"""Boards as the README.md that GitHub shows beside the records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.console.pooling import AXES
from harness.contracts.privacy import VIOLATION
from harness.evaluation.masking import FLAG as MASKED
from harness.leaderboard.board import Board, Row, Value
from harness.leaderboard.columns import SIGNS, Column
from harness.leaderboard.comparisons import by_unit, pareto_front
from harness.leaderboard.conditions import conditions
from harness.leaderboard.escaping import link, markdown

ROWS = 60  # most rows shown of a board; the files have all
FLAGGED = 12  # most rows named beside a flag
FRONT = ("accuracy", "robust", "byzantine", "epsilon", "uplink")  # columns whose Pareto front is shown first


def readme(found: Sequence[Board], files: Sequence[str]) -> str:
    """The text of README.md: all boards, superseded ones folded. files: what is published beside it, to be linked."""
    lines = [
        "<!-- Written by the harness from records/*.json: edit those, not this file. -->",
        "",
        "# Leaderboard",
        "",
        "Defences, aggregators and compressors for federated learning, attacked and scored by psr-harness. The page",
        "[index.html](index.html) has the same numbers to sort, filter and compare: save it and open it; it needs no",
        "network. It also ranks methods across boards, with the tests behind the ranking. All numbers are also in",
        f"{_files(files)}.",
        "",
        "For each seed, the worst attack counts (or the mean over attacks, where the column says so). Numbers are then",
        "means over seeds with 95 % intervals (Student's t), clipped to the score's range. Intervals cover what a seed",
        "decides, not the choice of the test records, which all seeds share. One seed gives no interval; with two it",
        "means little.",
        "**Bold** is the best mean of a board, also where intervals overlap, among comparable values: those of",
        "official submissions if there are any, and without †, ‡, ‖ or !. Arrows show which direction is better.",
        "Times and memory depend on the machine too; they are in the files only.",
        "",
        *(f"- {sign} {meaning}" for sign, meaning in SIGNS.items()),
        "",
    ]
    for board in found:
        lines += _board(board)
    return "\n".join(lines).rstrip() + "\n"


def _files(files: Sequence[str]) -> str:
    return " and ".join(f"[{name}]({name})" for name in files)


def _board(board: Board) -> Iterator[str]:
    facts = board.reference[0].scenario
    if board.superseded:
        yield f"<details><summary>{markdown(board.label)}, superseded by a newer version</summary>"
        yield ""
    yield f"## {markdown(board.label)}" + " (superseded)" * board.superseded
    yield ""
    if facts.description:
        yield markdown(facts.description)
        yield ""
    yield markdown(conditions(board))
    yield ""
    if board.notes:
        yield f"> {markdown('; '.join(board.notes))}"
        yield ""
    yield from _submissions(board)
    yield ""
    columns, rows = [c for c in board.columns if c.tabs and not c.measured], shown(board)
    if len(rows) < len(board.rows):
        yield (
            f"{len(rows)} of {len(board.rows)} rows: the Pareto-optimal ones first, "
            "then those with the highest clean accuracy."
        )
        yield ""
    several = len(board.submissions) > 1
    yield _line([*(axis.capitalize() for axis in AXES), *["Submission"] * several, *map(_header, columns)])
    yield _line([*["---"] * (len(AXES) + several), *["--:"] * len(columns)])
    for row in rows:
        labels = [markdown(axis) for axis in row.axes] + [markdown(row.submission.name)] * several
        yield _line([*labels, *(_value(row.values.get(column.key), column) for column in columns)])
    yield ""
    deltas = sorted({claim.delta for row in rows if (claim := row.claim) and claim.holds and claim.delta})
    if deltas:
        yield f"Guaranteed ε holds at δ = {', '.join(f'{delta:.3g}' for delta in deltas)}."
        yield ""
    for flag, names in _flags(rows).items():
        few = "; ".join(map(markdown, names[:FLAGGED])) + f" and {len(names) - FLAGGED} more" * (
            len(names) > FLAGGED
        )
        yield f"Flagged {markdown(flag)}: {few}."
        yield ""
    if board.superseded:
        yield "</details>"
        yield ""


def _flags(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Flag -> the rows that carry it, for the flags that the signs beside numbers do not show, or not fully.

    The sign of constant predictions is not on all that they concern: the accuracy carries none.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        for flag in row.flags:
            if flag not in (MASKED, VIOLATION):
                where = "" if flag in row.released_flags else " only after an attack on training"
                found.setdefault(flag + where, []).append(" / ".join(row.axes))
    return found


def _submissions(board: Board) -> Iterator[str]:
    for submission in board.submissions:
        check = submission.verification
        state = "official" if submission.official else "unofficial"
        if submission.unofficial_because:
            state += f" ({'; '.join(map(markdown, submission.unofficial_because))})"
        state += f", {check.verdict}" if check else ", not verified"
        by = f" by {markdown(submission.authors)}" if submission.authors else ""
        address = link(submission.url)
        if address:
            by += f" ([link](<{address}>))"
        yield f"- {markdown(submission.name)}{by}, {markdown(submission.created)}: {state}"


def shown(board: Board) -> list[Row]:
    """All rows, or if there are too many the Pareto-optimal ones and then the most accurate, in the board's order."""
    if len(board.rows) <= ROWS:
        return board.rows
    front = [column for column in board.columns if column.key in FRONT]
    points = [
        [cost for column in front for cost in _costs(row.values.get(column.key), column)]
        for row in board.rows
    ]
    on_front = pareto_front(points, ["lower"] * len(points[0])) if front else [False] * len(points)
    accuracy = [row.values["accuracy"].mean if "accuracy" in row.values else -1.0 for row in board.rows]
    order = sorted(range(len(points)), key=lambda i: (not on_front[i], -accuracy[i], i))
    return [board.rows[i] for i in sorted(order[:ROWS])]


def _costs(value: Value | None, column: Column) -> tuple[float, float]:
    """The value as in `by_unit`; NaN if it is missing or not trusted. No guarantee counts as an infinite epsilon."""
    if value is None or not value.trusted:
        return math.nan, math.nan
    return by_unit(column.compared(value.mean), column.better, value.clients)


def _header(column: Column) -> str:
    """The column's header, escaped: title and unit of a contributed score are a stranger's text."""
    return replace(column, title=markdown(column.title), unit=markdown(column.unit)).header


def _value(value: Value | None, column: Column) -> str:
    if value is None:
        return "–"
    mean, low, high, _ = value.estimate
    text = (value.text or column.show(mean)) + value.signs
    if value.best:
        text = f"**{text}**"
    return text if low is None or high is None else f"{text}<br>[{column.show(low)}, {column.show(high)}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
