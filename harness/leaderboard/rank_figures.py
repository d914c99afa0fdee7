"""Rankings as the page shows them: a critical-difference diagram's coordinates, sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.console.output import count_of, shorten
from harness.leaderboard.board import Board
from harness.leaderboard.columns import Column, written
from harness.leaderboard.comparisons import Floats
from harness.leaderboard.ranks import ROUGH, Ranking, Unranked, rankings

AXIS, BAR, ROW, TOP = 420, 14, 24, 52  # widths of a diagram's axis and bars, heights of a row and of the head
GLYPH = 7.5  # about the width of a letter, at most
TICKS = 12
BLOCKS = 12  # a table shows the values of each block if there are no more than these
PAIRS = 60
MORE = 3  # decimals that a table may write beyond those of the board


def ranks(found: Sequence[Board]) -> dict[str, Any]:
    """For the page's template: rankings across boards and by board, and a line for each reason not to rank others."""
    ranked, unranked = rankings(found)
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in ranked:
        groups.setdefault(one.board or "Across boards", []).append(_ranking(one))
    return {"groups": groups, "unranked": _unranked(unranked)}


def _ranking(one: Ranking) -> dict[str, Any]:
    shown = one.blocks if len(one.blocks) <= BLOCKS else ()
    means = [one.column.show(float(mean)) for mean in one.table.mean(0)]
    columns = [means, *(_told_apart(one.column, block) for block in one.table[: len(shown)])]
    table = [
        [method, written(rank, 2), *(texts[i] for texts in columns)]
        for i, (method, rank) in enumerate(zip(one.methods, map(float, one.ranks), strict=True))
    ]
    return {
        "key": f"{one.board or 'all'}|{one.axis}|{one.column.key}",
        "option": f"{one.axis.capitalize()}s by {one.column.title}",
        "title": f"{one.axis.capitalize()}s by {one.column.header}",
        "scope": _scope(one),
        "verdict": verdict(one),
        "differs": one.differs,
        "diagram": diagram(one),
        "head": [one.axis, "average rank", "mean", *shown],
        "table": table,
        "pairs": [
            [
                pair.first,
                pair.second,
                f"{written(100 * pair.share, 0)} %",
                _bounds(pair.low, pair.high),
                _p(pair.adjusted),
            ]
            for pair in one.pairs[:PAIRS]
        ],
        "more": max(0, len(one.pairs) - PAIRS),
        "left_out": list(one.left_out),
    }


def _told_apart(column: Column, values: Floats) -> list[str]:
    """Values of one block, with enough decimals to see whose rank is better: equal texts mean equal ranks.

    At most MORE decimals beyond the column's own: smaller differences come from rounding.
    """
    scaled = [float(value) * column.scale for value in values]
    for digits in range(column.digits, column.digits + MORE + 1):
        texts = [written(value, digits) for value in scaled]
        if len(set(texts)) == len(set(scaled)):
            break
    return texts


def verdict(one: Ranking) -> list[str]:
    """What the tests say, and how far that reaches, in sentences."""
    test, blocks, methods = one.test, len(one.blocks), len(one.methods)
    if test.test == "friedman":
        name = f"Friedman's test (χ² = {written(test.statistic, 2)}, {methods - 1} degrees of freedom, {_p_is(test.p)})"
    else:
        name = f"Wilcoxon's signed-rank test ({_p_is(test.p)})"
    noun = "attack" if one.board else "data set"
    if one.differs:
        said = [f"{name} over {count_of(blocks, noun)} rejects that all methods score alike."]
        if methods > 2:
            said.append(
                "Bars join methods that Nemenyi's test does not separate at 5 %: "
                f"their average ranks differ by less than {written(one.critical_difference, 2)}."
            )
    else:
        said = [
            f"{name} over {count_of(blocks, noun)} does not reject that all methods score alike: "
            "this order may be chance."
        ]
    if one.least_p > 0.05:
        said.append(
            f"That is too few: with {count_of(blocks, noun)} and {count_of(methods, 'method')} p is never below "
            f"{_p(one.least_p)}, even if the order were the same everywhere."
        )
    elif blocks < ROUGH and methods > 2:
        said.append(f"With fewer than {ROUGH} {noun}s the test is only approximate.")
    return said


def diagram(one: Ranking) -> dict[str, Any]:
    """Coordinates of a diagram of average ranks, with a row per method.

    Vertical bars at the side join methods that Nemenyi's test does not tell apart.
    """
    count = len(one.methods)
    distance = one.critical_difference
    # A critical difference wider than the axis separates nothing: the verdict states it, and nothing is drawn.
    fits = one.groups and distance <= count - 1
    said = f"critical difference {written(distance, 2)}"
    labels = [shorten(method, 36) for method in one.methods]
    left = math.ceil(GLYPH * (2 + max(map(len, [*labels, *[said] * bool(fits)]))))

    def x(rank: float) -> float:
        return round(left + AXIS * (rank - 1) / (count - 1), 1)

    def y(place: int) -> int:
        return TOP + ROW * place + ROW // 2

    step = math.ceil((count - 1) / TICKS)
    rows = [
        {"label": label, "method": method, "rank": written(rank, 2), "x": x(rank), "y": y(place)}
        for place, (label, method, rank) in enumerate(
            zip(labels, one.methods, map(float, one.ranks), strict=True)
        )
    ]
    right = left + AXIS + 60
    bars = [
        {"x": right + BAR * number, "top": y(group[0]) - 8, "bottom": y(group[-1]) + 8}
        for number, group in enumerate(one.groups)
    ]
    return {
        "width": right + BAR * max(1, len(bars)),
        "height": TOP + ROW * count + 8,
        "left": left,
        "right": left + AXIS,
        "top": TOP,
        "ticks": [{"rank": rank, "x": x(rank)} for rank in range(1, count + 1, step)],
        "rows": rows,
        "bars": bars,
        "distance": {"x": x(1 + distance), "text": said} if fits else None,
    }


def _scope(one: Ranking) -> str:
    if one.board is None:
        return (
            "A block is a data set, told by its contents: the same images at two sizes are two. A method's value is "
            "its mean over those configurations on the data set's boards that all ranked methods share. A name stands "
            "for the method with each scenario's parameters."
        )
    return (
        f"A block is an attack on training, on {one.board} alone. These attacks share data and seeds, so they are not "
        "independent and p-values are too small: this describes the board and says nothing about other data."
    )


def _unranked(found: Sequence[Unranked]) -> list[str]:
    """One line for each axis and reason, with the columns that it concerns."""
    reasons: dict[str, list[str]] = {}
    for one in found:
        reasons.setdefault(f"{one.axis}s, as {one.reason} data sets", []).append(one.column.title)
    return [f"{reason}: {', '.join(titles)}" for reason, titles in reasons.items()]


def _bounds(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{written(100 * low, 0)} – {written(100 * high, 0)} %"


def _p(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def _p_is(p: float) -> str:
    """As part of a sentence: `p = 0.12`, `p < 0.001`."""
    return f"p {_p(p)}" if p < 0.001 else f"p = {_p(p)}"
