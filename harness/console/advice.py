"""Recommendations, for a console and as JSON values."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from harness.console.advice_rows import columns_of, render_rows
from harness.console.output import count_of
from harness.leaderboard.board import Row, Value
from harness.leaderboard.columns import MARKS, SIGNS, Column
from harness.leaderboard.recommend import Advice, Exclusion, Suggestion


def render_advice(advice: Advice, top: int, console: Console) -> None:
    """One board: the rows that fit, how sure their order is, and what each limit excludes."""
    console.print(Text(advice.board.label, style="bold"))
    total = len(advice.board.rows) - advice.left_out - advice.unscored
    if not total:
        pass  # what is left out, and why, is all there is to say
    elif not advice.suggestions:
        said = ", ".join(limit.text for limit in advice.limits)
        console.print(Text(f"none of {count_of(total, 'configuration')} fits {said}".rstrip()))
    else:
        shown = advice.suggestions[:top]
        render_rows(advice, shown, console)
        front = sum(suggestion.front for suggestion in advice.suggestions)
        fits = "fits" if len(advice.suggestions) == 1 else "fit"
        console.print(
            f"{len(advice.suggestions)} of {count_of(total, 'configuration')} {fits}, {front} on the Pareto front (*)"
            + (f"; {len(shown)} shown" if len(shown) < len(advice.suggestions) else ""),
        )
        signs = {sign for s in shown for column in columns_of(advice) for sign in _signs(s.row, column)}
        signs.discard(MARKS["clients"])  # said with delta beneath the rows
        for sign in (sign for sign in SIGNS if sign in signs):
            console.print(f"{sign} {SIGNS[sign]}")
    if advice.left_out:
        rows = count_of(advice.left_out, "configuration")
        whose = "whose model predicts" if advice.left_out == 1 else "whose models predict"
        console.print(f"left out: {rows}, {whose} one class for every test image in at least one seed")
    if advice.unscored:
        rows = count_of(advice.unscored, "configuration")
        console.print(f"left out: {rows} without any score: failed, or not applicable")
    for exclusion in advice.exclusions if total else ():
        console.print(Text(_said(exclusion, total)))
    for note in advice.notes:
        console.print(Text(f"note: {note}"))
    console.print()


def as_values(advice: Advice, top: int) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "board": advice.board.label,
        "objectives": [column.key for column in advice.objectives],
        "configurations": len(advice.board.rows),
        "left_out_as_constant": advice.left_out,
        "left_out_as_unscored": advice.unscored,
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
        for column in columns_of(advice)
        if (value := row.values.get(column.key)) is not None
    }
    return {
        "submission": row.submission.name,
        **dict(zip(("defence", "aggregator", "compressor"), row.axes, strict=True)),
        "guarantee": None if row.claim is None else row.claim.model_dump(),
        "pareto": suggestion.front,
        "limits_met_by_intervals": suggestion.sure,
        "lead_of_first": None if suggestion.behind is None else suggestion.behind._asdict(),
        "level_with_first": suggestion.level,
        "values": values,
    }


def _signs(row: Row, column: Column) -> str:
    value: Value | None = row.values.get(column.key)
    return "" if value is None else value.signs


def _said(exclusion: Exclusion, total: int) -> str:
    """`--max-epsilon 1 excludes 14 of 18; without it 3 would fit; the best here is 3.92`."""
    column = exclusion.limit.column
    text = f"{exclusion.limit.text} excludes {exclusion.failed + exclusion.unknown} of {total}"
    if exclusion.unknown:
        text += f", {exclusion.unknown} of them without a value that can be compared"
    text += f"; without it {exclusion.would_fit} would fit"
    if exclusion.best is not None:
        text += f"; the best here is {column.with_unit(exclusion.best)} ({column.title.lower()})"
    return text
