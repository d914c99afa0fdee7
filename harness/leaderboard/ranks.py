"""Which methods rank better over many problems, and whether that may be chance.

Across boards a method is a name without parameters, because parameters belong to the scenario. Where a board has
several settings of one method, their mean counts: picking one would be a choice made on the test set. A block is a data
set. Threats and seeds of one board share its data and federation, and boards on one data set share its test records, so
neither are independent evidence: boards on one data set are averaged into one block.

Within one board a method is a value with its parameters, and a block is an attack on training. This describes the
board; its tests say nothing about other data.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness.console.output import without_parameters
from harness.console.pooling import AXES
from harness.leaderboard.board import Board, Row, Value
from harness.leaderboard.columns import BY_KEY, Column
from harness.leaderboard.comparisons import (
    Floats,
    Omnibus,
    average_ranks,
    cliques,
    compared_mean,
    friedman,
    nemenyi_critical_difference,
    win_rates,
)
from harness.leaderboard.statistics import holm

ALPHA = 0.05
MOST = 40  # most methods of one ranking: more give too many pairs for a reader and for Holm's method
ROUGH = 10  # blocks below which the chi-squared approximation of Friedman's test is rough
RANKED = ("accuracy", "robust", "byzantine", "backdoor", "mia", "inversion", "size", "uplink")
ON_TRAINING = ("byzantine", "backdoor")  # each attack in these columns has a training of its own
# Method -> configuration of the other axes -> value.
Scores = Mapping[str, Mapping[Hashable, float]]


class Pair(NamedTuple):
    """Two methods: the share of blocks that the first wins, ties counting half, and its 95 % bootstrap interval.

    p: of Wilcoxon's signed-rank test; adjusted: that p, adjusted by Holm's method for all pairs of the ranking.
    """

    first: str
    second: str
    share: float
    low: float
    high: float
    p: float
    adjusted: float


@dataclass(frozen=True)
class Ranking:
    """Methods that are on all of these blocks, best average rank first. board: None across boards.

    table (blocks, methods): values in the score's own unit, as `Column.compared` counts them. left_out: methods that
    are not on all blocks.
    """

    axis: str
    column: Column
    board: str | None
    methods: tuple[str, ...]
    blocks: tuple[str, ...]
    table: Floats
    left_out: tuple[str, ...] = ()

    @property
    def higher(self) -> bool:
        return self.column.better == "higher"

    @cached_property
    def ranks(self) -> Floats:
        """(methods,): average over the blocks, 1 is best."""
        return average_ranks(self.table, self.higher)

    @cached_property
    def test(self) -> Omnibus:
        """Friedman's test of whether all methods score alike; Wilcoxon's for two."""
        return friedman(self.table)

    @property
    def differs(self) -> bool:
        """Whether `test` rejects at 5 % that all methods score alike. If not, no difference between them is claimed."""
        return self.test.p <= ALPHA

    @cached_property
    def least_p(self) -> float:
        """The smallest p-value that so many blocks and methods can give: that of the same order in every block."""
        # The differences grow from block to block, so that Wilcoxon's test of two methods has no ties either.
        steps = 1 + np.arange(len(self.blocks))[:, None] / 1000
        return friedman(np.arange(len(self.methods))[None, :] * steps).p

    @cached_property
    def critical_difference(self) -> float:
        return nemenyi_critical_difference(len(self.methods), len(self.blocks), ALPHA)

    @cached_property
    def groups(self) -> list[tuple[int, ...]]:
        """Positions of methods that Nemenyi's test does not tell apart, as in `cliques`.

        Empty for two methods, and unless Friedman's test rejects, which Nemenyi's test requires.
        """
        return cliques(self.ranks, self.critical_difference) if self.differs and len(self.methods) > 2 else []

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs, the better rank first, the smallest adjusted p-value first."""
        places = list(combinations(range(len(self.methods)), 2))
        p = [friedman(self.table[:, place]).p for place in places]
        wins = win_rates(self.table.T, self.higher)
        found = [
            Pair(
                self.methods[i],
                self.methods[j],
                wins.share[i, j],
                wins.low[i, j],
                wins.high[i, j],
                one,
                adjusted,
            )
            for (i, j), one, adjusted in zip(places, p, holm(p), strict=True)
        ]
        return sorted(found, key=lambda pair: (pair.adjusted, -pair.share))


class Unranked(NamedTuple):
    """What could have been ranked, and why it is not."""

    axis: str
    column: Column
    reason: str


def rankings(found: Sequence[Board]) -> tuple[list[Ranking], list[Unranked]]:
    """Across boards by every axis and column; then within each board that has enough attacks on training."""
    current = [board for board in found if not board.superseded]
    ranked: list[Ranking] = []
    unranked: list[Unranked] = []
    for axis in AXES:
        for key in RANKED:
            blocks = _by_data(current, axis, key)
            made = rank(axis, BY_KEY[key], blocks)
            if isinstance(made, Ranking):
                ranked.append(made)
            elif any(blocks for _, blocks in blocks):
                unranked.append(Unranked(axis, BY_KEY[key], made))
    for board in current:
        for axis in AXES:
            for key in ON_TRAINING:
                made = rank(axis, BY_KEY[key], _by_attack(board, axis, key), board.label)
                if isinstance(made, Ranking) and min(len(made.methods), len(made.blocks)) > 2:
                    ranked.append(made)
    return ranked, unranked


def rank(
    axis: str, column: Column, blocks: Sequence[tuple[str, Scores]], board: str | None = None
) -> Ranking | str:
    """The ranking of the methods that are on all of the blocks, or why there is none.

    blocks: name, and what each method scores there. In a block, only configurations of the other axes count that all
    methods have. Methods are taken in order of how many blocks have them, and only so many that the complete table of
    methods by blocks is the largest.
    """
    there = {name: scores for name, scores in blocks if len(scores) > 1}
    counts: dict[str, int] = {}
    for scores in there.values():
        for method in scores:
            counts[method] = counts.get(method, 0) + 1
    order = sorted(counts, key=lambda method: (-counts[method], method))
    shared = [method for method in order if counts[method] > 1]
    if len(shared) > MOST:
        return f"more than {MOST} of them are on two or more"
    best: tuple[list[str], list[str], list[list[float]]] | None = None
    for size in range(2, len(shared) + 1):
        methods = shared[:size]
        complete = {name: values for name, scores in there.items() if (values := _block(scores, methods))}
        if len(complete) > 1 and (best is None or size * len(complete) > len(best[0]) * len(best[1])):
            best = methods, list(complete), list(complete.values())
    if best is None:
        return "no two of them are on the same two"
    methods, names, rows = best
    table = np.array(rows)
    placed = np.argsort(average_ranks(table, column.better == "higher"), kind="stable")
    return Ranking(
        axis,
        column,
        board,
        tuple(methods[i] for i in placed),
        tuple(names),
        table[:, placed],
        tuple(method for method in order if method not in methods),
    )


def _by_attack(board: Board, axis: str, key: str) -> list[tuple[str, Scores]]:
    """What methods score under each attack of a board, without values that cannot be compared."""
    attacks: dict[str, dict[str, dict[Hashable, list[float]]]] = {}
    for row in _competing(board):
        for view, values in row.under.items():
            if len(view) == 2 and (value := values.get(key)) is not None and value.fair:
                scores = attacks.setdefault(" / ".join(view), {})
                counted = BY_KEY[key].compared(value.mean)
                scores.setdefault(_value(row, axis), {}).setdefault(_others(row, axis), []).append(counted)
    return [(name, _means(scores)) for name, scores in attacks.items()]


def _by_data(found: Sequence[Board], axis: str, key: str) -> list[tuple[str, Scores]]:
    """What methods score on each data set, over the configurations of all its boards."""
    groups: dict[str, list[Board]] = {}
    for board in found:
        groups.setdefault(board.reference[0].scenario.fingerprint, []).append(board)
    blocks: list[tuple[str, Scores]] = []
    for boards in groups.values():
        scores: dict[str, dict[Hashable, float]] = {}
        labels = []
        for board in boards:
            by_name = _by_name(board, axis, key)
            for method, own in by_name.items():
                scores.setdefault(method, {}).update({(board.label, other): v for other, v in own.items()})
            labels += [board.label] * bool(by_name)
        blocks.append((" + ".join(labels), scores))
    return blocks


def _by_name(board: Board, axis: str, key: str) -> Scores:
    """What methods score on a board, without values that cannot be compared."""
    scores: dict[str, dict[Hashable, list[float]]] = {}
    for row in _competing(board):
        value: Value | None = row.values.get(key)
        if value is not None and value.fair:
            method = without_parameters(_value(row, axis))
            counted = BY_KEY[key].compared(value.mean)
            scores.setdefault(method, {}).setdefault(_others(row, axis), []).append(counted)
    return _means(scores)


def _competing(board: Board) -> Iterable[Row]:
    return (row for row in board.rows if any(row.submission is one for one in board.reference))


def _value(row: Row, axis: str) -> str:
    return row.axes[AXES.index(axis)]


def _others(row: Row, axis: str) -> tuple[str, ...]:
    return tuple(value for name, value in zip(AXES, row.axes, strict=True) if name != axis)


def _means(scores: Mapping[str, Mapping[Hashable, Sequence[float]]]) -> Scores:
    return {m: {other: fmean(values) for other, values in own.items()} for m, own in scores.items()}


def _block(scores: Scores, methods: Sequence[str]) -> list[float] | None:
    """One value per method, the mean over the configurations that all methods have; None if there are none."""
    if any(method not in scores for method in methods):
        return None
    shared = [other for other in scores[methods[0]] if all(other in scores[method] for method in methods)]
    values = [math.fsum(scores[method][other] for other in shared) for method in methods]
    return [compared_mean(value / len(shared)) for value in values] if shared else None
