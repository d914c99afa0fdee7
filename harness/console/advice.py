"""Recommendations, as tables and as JSON values."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console.output import count_of
from harness.leaderboard.board import Row, Value
from harness.leaderboard.columns import SIGNS, Column
from harness.leaderboard.recommend import Advice, Exclusion, Suggestion


def render_advice(advice: Advice, top: int, console: Console) -> None:
    """One board: the rows that fit, how sure their order is, and what each limit excludes."""
    console.print(Text(advice.board.label, style="bold"))
    total = len(advice.board.rows)
    if not advice.suggestions:
        said = ", ".join(limit.text for limit in advice.limits)
        console.print(Text(f"none of {count_of(total, 'configuration')} fits {said}"), soft_wrap=True)
    else:
        shown = advice.suggestions[:top]
        console.print(_table(advice, shown))
        front = sum(suggestion.front for suggestion in advice.suggestions)
        console.print(
            f"{len(advice.suggestions)} of {count_of(total, 'configuration')} fit, {front} on the Pareto front (*)"
            + (f"; {len(shown)} shown" if len(shown) < len(advice.suggestions) else ""),
            soft_wrap=True,
        )
        signs = {sign for s in shown for column in _columns(advice) for sign in _signs(s.row, column)}
        for sign in (sign for sign in SIGNS if sign in signs):
            console.print(f"{sign} {SIGNS[sign]}", soft_wrap=True)
    for exclusion in advice.exclusions:
        console.print(Text(_said(exclusion, total)), soft_wrap=True)
    for note in advice.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    console.print()


def as_values(advice: Advice, top: int) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "board": advice.board.label,
        "objectives": [column.key for column in advice.objectives],
        "configurations": len(advice.board.rows),
        "fitting": len(advice.suggestions),
        "suggestions": [_suggestion(s, advice) for s in advice.suggestions[:top]],
        "limits": [
            {
                "option": e.limit.option,
                "bound": e.limit.bound,
                "failed": e.failed,
                "unknown": e.unknown,
                "would_fit_without": e.would_fit,
                "best": e.best,
            }
            for e in advice.exclusions
        ],
        "notes": advice.notes,
    }


def _suggestion(suggestion: Suggestion, advice: Advice) -> dict[str, Any]:
    row = suggestion.row
    values = {
        column.key: {
            "mean": value.text or value.mean,
            "low": value.estimate.low,
            "high": value.estimate.high,
            "seeds": value.estimate.seeds,
            "signs": value.signs,
        }
        for column in _columns(advice)
        if (value := row.values.get(column.key)) is not None
    }
    return {
        "submission": row.submission.name,
        **dict(zip(("defence", "aggregator", "compressor"), row.axes, strict=True)),
        "pareto": suggestion.front,
        "limits_met_by_intervals": suggestion.sure,
        "lead_of_first": None if suggestion.behind is None else suggestion.behind._asdict(),
        "level_with_first": suggestion.level,
        "values": values,
    }


def _columns(advice: Advice) -> list[Column]:
    limited = [limit.column for limit in advice.limits]
    return list(dict.fromkeys([*advice.objectives, *limited]))


def _table(advice: Advice, shown: list[Suggestion]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    names = {s.row.submission.name for s in advice.suggestions}
    table.add_column("configuration", overflow="fold")
    for column in _columns(advice):
        table.add_column(column.header, justify="right")
    table.add_column("limits", overflow="fold")
    first = advice.objectives[0].title.lower() if advice.objectives else "first"
    table.add_column(f"{first} of the first row ahead by", overflow="fold")
    for suggestion in shown:
        row = suggestion.row
        name = " / ".join(row.axes) + (f" ({row.submission.name})" if len(names) > 1 else "")
        table.add_row(
            "*" if suggestion.front else "",
            Text(name),
            *(Text(_number(row, column)) for column in _columns(advice)),
            {True: "met", False: "met by the mean alone", None: "too few seeds to be sure"}[suggestion.sure]
            if advice.limits
            else "",
            _lead(suggestion, advice),
        )
    return table


def _number(row: Row, column: Column) -> str:
    value = row.values.get(column.key)
    if value is None:
        return "-"
    if value.text:
        return value.text + value.signs
    low, high = value.estimate.low, value.estimate.high
    bounds = (
        "" if low is None or high is None or low == high else f" [{column.show(low)}, {column.show(high)}]"
    )
    return column.show(value.mean) + value.signs + bounds


def _signs(row: Row, column: Column) -> str:
    value: Value | None = row.values.get(column.key)
    return "" if value is None else value.signs


def _lead(suggestion: Suggestion, advice: Advice) -> str:
    if suggestion is advice.suggestions[0]:
        return "first"
    lead = suggestion.behind
    if lead is None or lead.mean != lead.mean:
        return "-"
    column = advice.objectives[0]
    text = column.show(lead.mean)
    if lead.low == lead.low and lead.low != lead.high:
        text += f" [{column.show(lead.low)}, {column.show(lead.high)}]"
    if suggestion.level is None:
        return f"{text}, not testable"
    return f"{text}, p = {lead.p:.2g}" + (": not told from chance" if suggestion.level else "")


def _said(exclusion: Exclusion, total: int) -> str:
    """`--max-epsilon 1 excludes 14 of 18; without it 3 would fit; the best here is 3.92`."""
    column = exclusion.limit.column
    text = f"{exclusion.limit.text} excludes {exclusion.failed + exclusion.unknown} of {total}"
    if exclusion.unknown:
        text += f", {exclusion.unknown} of them without a value that can be compared"
    text += f"; without it {exclusion.would_fit} would fit"
    if exclusion.best is not None:
        text += f"; the best here is {exclusion.best:.4g} ({column.title.lower()})"
    return text
