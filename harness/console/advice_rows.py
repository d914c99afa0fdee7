"""The rows of a recommendation: a table if all of it fits the console's width, else a list. No number is cut off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from harness.console import guarantees
from harness.console.output import packed, short_labels
from harness.console.pooling import AXES
from harness.console.tables import NARROWEST, render_key, varying_axes
from harness.leaderboard.board import Row
from harness.leaderboard.columns import Column
from harness.leaderboard.recommend import Advice, Suggestion

GAP = 2  # between the columns of a table
MARK = 2  # a star, or none, before a name
INDENT = 4  # of the lines beneath a name
WORDS = 18  # width of the columns that hold words
AHEAD = "first row ahead by"
MEAN_ALONE = "met by the mean; the interval over seeds reaches beyond"

Stack = list[str]  # the plugins of one axis


class Part(NamedTuple):
    """A column of the table other than the first. A cell may have several lines."""

    heading: str
    cells: list[str]
    justify: JustifyMethod = "right"

    @property
    def width(self) -> int:
        return max(len(line) for text in (self.heading, *self.cells) for line in text.split("\n"))


def render_rows(advice: Advice, shown: Sequence[Suggestion], console: Console) -> None:
    """The configurations with their values, then what all of them share and what short names stand for."""
    axes, labels = _labels(advice, shown)
    varying = varying_axes(labels) if len(shown) > 1 else list(range(len(axes)))
    verdicts = [_verdict(s, advice) for s in shown]
    common = verdicts[0] if len(set(verdicts)) == 1 < len(shown) else ""
    if common:
        verdicts = [""] * len(shown)
    stacks = [[label[i].split(" + ") for i in varying] for label in labels]
    longest = max(len("".join(_pieces(row, {}))) for row in stacks)
    parts, beside = _fitted(advice, shown, verdicts, longest, console.width)
    tabular = beside >= NARROWEST
    room = beside if tabular else console.width - MARK
    names = short_labels([plugin for row in stacks for stack in row for plugin in stack], room - len("/ "))
    heading, *lines = (packed(_pieces(row, names), room) for row in ([[axes[i]] for i in varying], *stacks))
    if tabular:
        console.print(_table(heading, lines, [s.front for s in shown], parts))
    else:
        _say(console, heading, MARK, "bold")
        for suggestion, own, verdict in zip(shown, lines, verdicts, strict=True):
            _item(advice, suggestion, own, verdict, console)
    render_key(axes, labels[0], varying, names, console)
    for line in _legend(advice, shown, common):
        console.print(Text(line, style="dim"))


def columns_of(advice: Advice) -> list[Column]:
    """The objectives, then the other columns that have a limit."""
    limited = [limit.column for limit in advice.limits]
    return list(dict.fromkeys([*advice.objectives, *limited]))


def _labels(advice: Advice, shown: Sequence[Suggestion]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The names of the axes, and each row's values. Where several submissions fit, the submission is an axis too."""
    if len({s.row.submission.name for s in advice.suggestions}) > 1:
        return (*AXES, "submission"), [(*s.row.axes, s.row.submission.name) for s in shown]
    return AXES, [s.row.axes for s in shown]


def _legend(advice: Advice, shown: Sequence[Suggestion], verdict: str) -> list[str]:
    lines = [f"limits in every row: {verdict}"] if verdict else []
    if any(_lead(s, advice) for s in shown):
        column = advice.objectives[0]
        points = ", in percentage points" * (column.unit == "%")
        lines.append(f"ahead: in {column.title.lower()}{points}, over the seeds that both have")
    if any(column.key == "epsilon" for column in columns_of(advice)):
        claims = (s.row.claim for s in shown)
        lines += guarantees.said(claim.model_dump() for claim in claims if claim is not None)
    return lines


def _pieces(row: Sequence[Stack], names: Mapping[str, str]) -> list[str]:
    """A configuration in pieces that are never broken, each but the first preceded by the sign that joins it."""
    first, *others = (
        (" + " if place else " / ") + names.get(plugin, plugin)
        for stack in row
        for place, plugin in enumerate(stack)
    )
    return [first.removeprefix(" / "), *others]


def _words(text: str) -> list[str]:
    return [f" {word}" for word in text.split(" ")]


def _fitted(
    advice: Advice, shown: Sequence[Suggestion], verdicts: Sequence[str], longest: int, width: int
) -> tuple[list[Part], int]:
    """The columns, and the width that they leave for names. They are roomy if the longest name still fits then."""
    for roomy in (True, False):
        parts = _parts(advice, shown, verdicts, roomy)
        beside = width - MARK - sum(GAP + part.width for part in parts)
        if beside >= longest:
            break
    return parts, beside


def _parts(advice: Advice, shown: Sequence[Suggestion], verdicts: Sequence[str], roomy: bool) -> list[Part]:
    """The columns. roomy: each cell is one line; else intervals stand below their means, and words wrap."""
    parts = [
        _numbers(column, [s.row for s in shown], " " if roomy else "\n") for column in columns_of(advice)
    ]
    leads = [_lead(s, advice) for s in shown]
    if any(verdicts):
        parts.append(_said("limits", [_words(verdict) for verdict in verdicts], roomy))
    if any(leads):
        parts.append(_said(AHEAD, [["first"], *(lead or ["-"] for lead in leads[1:])], roomy))
    return parts


def _said(heading: str, cells: Sequence[Sequence[str]], roomy: bool) -> Part:
    lines = [["".join(pieces).lstrip()] if roomy else packed(pieces, WORDS) for pieces in cells]
    return Part(heading, ["\n".join(each) for each in lines], "left")


def _numbers(column: Column, rows: Sequence[Row], between: str) -> Part:
    """A column's numbers. The heading is as narrow as the numbers and its words allow.

    between: what stands between a mean and its interval.
    """
    cells = [between.join(filter(None, _number(row, column))) for row in rows]
    *words, arrow = _words(column.header)
    words[-1] += arrow
    width = max(Part("", cells).width, *(len(word.lstrip()) for word in words))
    return Part("\n".join(packed(words, width)), cells)


def _table(
    heading: Sequence[str], names: Sequence[Sequence[str]], front: Sequence[bool], parts: Sequence[Part]
) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("\n".join(" " * MARK + line for line in heading), no_wrap=True)
    for part in parts:
        table.add_column(Text(part.heading, justify=part.justify), justify=part.justify, no_wrap=True)
    for lines, star, *cells in zip(names, front, *(part.cells for part in parts), strict=True):
        table.add_row(Text("\n".join(_marked(lines, star))), *map(Text, cells))
    return table


def _marked(lines: Sequence[str], star: bool) -> list[str]:
    first, *others = lines
    return [("* " if star else "  ") + first, *(" " * MARK + line for line in others)]


def _item(
    advice: Advice, suggestion: Suggestion, name: Sequence[str], verdict: str, console: Console
) -> None:
    """A configuration and, beneath it, its values and what is said of it; lines end between values only."""
    _say(console, _marked(name, suggestion.front), style="bold")
    *values, last = (f" {_titled(suggestion.row, column)}" for column in columns_of(advice))
    _say(console, packed([*(f"{value}," for value in values), last], console.width - INDENT), INDENT)
    lead = _lead(suggestion, advice)
    said = [f"limits: {verdict}" + ";" * bool(lead)] if verdict else []
    said += [f" {AHEAD} {lead[0]}", *lead[1:]] if lead else []
    if said:
        _say(console, packed(said, console.width - INDENT), INDENT)


def _say(console: Console, lines: Iterable[str], indent: int = 0, style: str = "") -> None:
    for line in lines:
        console.print(Text(" " * indent + line, style=style), soft_wrap=True)


def _titled(row: Row, column: Column) -> str:
    """`Robust 27.0 % [25.1, 28.9]`."""
    number, bounds = _number(row, column)
    value = row.values.get(column.key)
    unit = "" if value is None or value.text else column.unit
    title = column.title.removesuffix(", worst").replace(", ", " ")
    return " ".join(filter(None, (title, number, unit, bounds)))


def _number(row: Row, column: Column) -> tuple[str, str]:
    """The mean with its signs, and its interval, which is empty where there is none."""
    value = row.values.get(column.key)
    if value is None:
        return "-", ""
    if value.text:
        return value.text + value.signs, ""
    return column.show(value.mean) + value.signs, _interval(column, value.estimate.low, value.estimate.high)


def _interval(column: Column, low: float | None, high: float | None) -> str:
    if low is None or high is None or low != low or low == high:
        return ""
    return f"[{column.show(low)}, {column.show(high)}]"


def _verdict(suggestion: Suggestion, advice: Advice) -> str:
    if not advice.limits:
        return ""
    return {True: "met", False: MEAN_ALONE, None: "too few seeds to be sure"}[suggestion.sure]


def _lead(suggestion: Suggestion, advice: Advice) -> list[str]:
    """`12.3 [10.1, 14.5], p = 0.21: not told from chance` in pieces; empty where there is nothing to compare."""
    lead = suggestion.behind
    if suggestion is advice.suggestions[0] or lead is None or lead.mean != lead.mean:
        return []
    column = advice.objectives[0]
    mean, low, high = lead[:3] if column.better == "higher" else (0 - lead.mean, 0 - lead.high, 0 - lead.low)
    size = " ".join(filter(None, (column.with_unit(mean), _interval(column, low, high))))
    if suggestion.level is None:
        return [f"{size},", " not testable"]
    if suggestion.level:
        return [f"{size},", f" p = {lead.p:.2g}:", *_words("not told from chance")]
    return [f"{size},", f" p = {lead.p:.2g}"]
