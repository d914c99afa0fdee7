"""From submissions to boards, rows and pooled values.

A board is one version of one scenario; a row is one submission's results for one (defence, aggregator, compressor).
For each seed the worst (or mean) attack counts, as in the terminal's table; then the mean and its 95 % interval are
taken over seeds.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from harness.contracts.privacy import VIOLATION
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG as MASKED
from harness.leaderboard.asked import Asked, Attack, Outcome
from harness.leaderboard.columns import COLUMNS, Column, counts_under, is_part, part_tested, signs
from harness.leaderboard.contributed import Contributed, means
from harness.leaderboard.ranges import Range
from harness.leaderboard.statistics import interval
from harness.leaderboard.submission import LOOKED_AT, Cell, Claim, Seed, Submission, Unit

Axes = tuple[str, str, str]
View = tuple[str] | tuple[str, str]  # one threat with all its attacks, or one attack of it
Point = tuple[str, str, int] | tuple[int]  # threat, attack and seed; the seed alone for clean scores


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval; low and high are None for one seed and for infinite values."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass
class Value:
    """A row's number in one column, in the score's own unit.

    text: shown instead of an infinite number: `none`, `broken`, `inf`, `-inf`. incomplete: attacks or seeds are
    missing. masked, constant, violated: by the records' flags; violated also if an audit proved more than the
    guaranteed epsilon. clients: the guarantee is for a client with all its data. subset: an attack was run on fewer
    test records than the clean accuracy. by_seed: the values behind the mean, so that rows can be compared seed by
    seed; empty for guarantees.
    """

    estimate: Estimate
    text: str = ""
    incomplete: bool = False
    masked: bool = False
    constant: bool = False
    violated: bool = False
    clients: bool = False
    subset: bool = False
    best: bool = False
    by_seed: dict[int, float] = field(default_factory=dict)

    @property
    def fair(self) -> bool:
        """Whether it is trusted and finite, so that it can be compared with others of its column."""
        return self.trusted and math.isfinite(self.mean)

    @property
    def trusted(self) -> bool:
        """Whether it is complete and no flag says that it is misleading."""
        return not (self.incomplete or self.masked or self.constant or self.violated)

    @property
    def mean(self) -> float:
        return self.estimate.mean

    @property
    def signs(self) -> str:
        """The marks that follow the number, as `columns.SIGNS` explains them."""
        return signs(self)


@dataclass
class Row:
    """One configuration of one submission. id: the same in every build of the pages.

    values: by column key, over all attacks. under: likewise, over the attacks of one threat or over one attack alone.
    """

    id: str
    submission: Submission
    axes: Axes
    cells: list[Cell]
    values: dict[str, Value] = field(default_factory=dict)
    under: dict[View, dict[str, Value]] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        """The flags of all its cells, each once."""
        found = Counter(flag for cell in self.cells for seed in cell.seeds.values() for flag in seed.flags)
        return sorted(found)

    @property
    def constant(self) -> bool:
        """Whether its released model predicts one class for every test image, in at least one seed.

        A model that does so only because its training was attacked does not count: the values under that attack
        alone are marked.
        """
        return CONSTANT in self.released_flags

    @property
    def released_flags(self) -> set[str]:
        """The flags of its released model: those of its cells without an attack on training."""
        released = (cell for cell in self.cells if counts_under("clean", cell.family))
        return {flag for cell in released for seed in cell.seeds.values() for flag in seed.flags}

    @property
    def clean(self) -> Cell | None:
        """The cell without an attack."""
        return next((cell for cell in self.cells if cell.family == "clean"), None)

    @property
    def claim(self) -> Claim | None:
        """The weakest guarantee among its scored cells; None if one of them has none, or if there are no such cells."""
        claims = [cell.guarantee for cell in self.cells if cell.status == "scored"]
        given = [claim for claim in claims if claim is not None]
        return max(given, key=_weakness, default=None) if len(given) == len(claims) else None


@dataclass
class Board:
    """Everything submitted to one version of one scenario. superseded: there is a newer version.

    content: what tells this board from others of its name and version, whose scenario or data have another content;
    empty if there are no others. contributed: columns of scores that no built-in plugin declares.
    """

    name: str
    version: int
    submissions: list[Submission]
    superseded: bool = False
    content: str = ""
    rows: list[Row] = field(default_factory=list)
    contributed: list[Column] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.name} v{self.version}" + f" ({self.content})" * bool(self.content)

    @property
    def sound(self) -> list[Submission]:
        """The submissions from which no re-run diverged."""
        return [s for s in self.submissions if not (s.verification and s.verification.verdict == "diverged")]

    @cached_property
    def reference(self) -> list[Submission]:
        """The submissions that compete and whose attacks and seeds are asked of every row.

        They are the official ones if there are any, else all. Submissions whose re-run diverged are left out, unless
        there are no others.
        """
        return [s for s in self.sound if s.official] or self.sound or self.submissions

    @property
    def columns(self) -> list[Column]:
        """The columns in which some row has a value."""
        every = (*COLUMNS, *self.contributed)
        return [column for column in every if any(column.key in row.values for row in self.rows)]

    @property
    def notes(self) -> list[str]:
        """What a reader of the whole board has to know."""
        notes = []
        if self.superseded:
            notes.append("superseded by a newer version of this scenario; the two are never compared")
        if self.content:
            notes.append(
                "there are other contents of a scenario of this name and version; the two are never compared"
            )
        notes += sorted({text for s in self.reference if (text := _part_tested(s)) is not None})
        for store in (s for s in self.submissions if s.looked_at):
            notes += [reason for reason in store.unofficial_because if reason != LOOKED_AT]
        submitted = [s for s in self.submissions if not s.looked_at]
        if submitted and not any(s.official for s in submitted):
            notes.append("no submission is official")
        return notes


def _part_tested(submission: Submission) -> str | None:
    """The note to show if the scenario's evaluation uses only a part of the test set, else None."""
    tested = [cell.tested for cell in submission.cells if cell.tested is not None]
    return part_tested(min(tested, default=None), submission.scenario.test_records)


def counts(found: Sequence[Board]) -> dict[str, int]:
    """How many boards, submissions, rows and scored cells there are; every seed counts as a cell."""
    submissions = [submission for board in found for submission in board.submissions]
    return {
        "boards": len(found),
        "submissions": len(submissions),
        "rows": sum(len(board.rows) for board in found),
        "cells": sum(cell.scored for submission in submissions for cell in submission.cells),
    }


def every_column(found: Sequence[Board]) -> list[Column]:
    """The built-in columns, and the contributed ones in which some row of these boards has a value."""
    return list(dict.fromkeys([*COLUMNS, *(column for board in found for column in board.columns)]))


def boards(submissions: Iterable[Submission]) -> list[Board]:
    """The boards of these submissions, by name, newest version first, with values pooled and the best ones marked.

    All submissions of a board have the same content of the scenario and of the data: rows that differ in more than
    their methods are not compared.
    """
    groups: dict[tuple[str, int], dict[tuple[str, str], list[Submission]]] = {}
    for submission in submissions:
        facts = submission.scenario
        group = groups.setdefault((facts.name, facts.version), {})
        group.setdefault((facts.hash, facts.fingerprint), []).append(submission)
    newest = {name: max(v for n, v in groups if n == name) for name, _ in groups}
    found = []
    contributed = Contributed()
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    for (name, version), group in ordered:
        for content, own in group.items():
            inside = sorted(own, key=lambda s: (not s.official, s.name))
            board = Board(name, version, inside, version < newest[name], _content(content, group))
            board.rows = list(_rows(board))
            board.contributed = contributed.columns(_declared(inside))
            _pool(board)
            found.append(board)
    return found


def _content(own: tuple[str, str], every: Iterable[tuple[str, str]]) -> str:
    """What tells one (scenario's hash, data's fingerprint) from the others; empty if it is the only one."""
    kinds = zip(("scenario", "data"), own, map(set, zip(*every, strict=True)), strict=True)
    return ", ".join(f"{what} {mark[:8]}" for what, mark, known in kinds if len(known) > 1)


@lru_cache(maxsize=1 << 16)  # attacks on a released model repeat its clean scores
def pooled(scores: tuple[float, ...], within: Range) -> Estimate:
    """Mean and interval over seeds. scores: one per seed, not NaN, possibly infinite. within: what a score can be."""
    mean, low, high = interval(scores, within=within)
    return Estimate(mean, None if math.isnan(low) else low, None if math.isnan(high) else high, len(scores))


def score(seed: Seed, name: str) -> float | None:
    """A seed's score, which may be infinite; None if it is missing or NaN."""
    value = seed.scores.get(name)
    if value is None and name in seed.undefined:
        value = float(seed.undefined[name])
    return None if value is None or math.isnan(value) else value


def _rows(board: Board) -> Iterator[Row]:
    for submission in board.submissions:
        groups: dict[Axes, list[Cell]] = {}
        for cell in submission.cells:
            groups.setdefault((cell.defence, cell.aggregator, cell.compressor), []).append(cell)
        for axes, cells in groups.items():
            # Each part is prefixed with its length, so that no two rows give the same text.
            parts = (board.label, submission.name, *axes)
            text = "".join(f"{len(part)}:{part}" for part in parts)
            yield Row(hashlib.sha256(text.encode()).hexdigest()[:12], submission, axes, cells)


def _declared(submissions: Iterable[Submission]) -> Iterator[tuple[str, Unit, str]]:
    """Each score of each cell, with its meaning by the file and the cell's family."""
    for submission in submissions:
        for cell in submission.cells:
            names = dict.fromkeys(name for s in cell.seeds.values() for name in (*s.scores, *s.undefined))
            yield from ((n, submission.units[n], cell.family) for n in names if n in submission.units)


def _pool(board: Board) -> None:
    """Fills in the values of all rows, over all attacks and under each threat and attack, and marks the best."""
    families = {id(submission): _families(submission) for submission in board.submissions}
    known = {
        name
        for row in board.rows
        for cell in row.cells
        for seed in cell.seeds.values()
        for name in (*seed.scores, *seed.undefined)
    }
    every = (*COLUMNS, *board.contributed)
    columns = [column for column in every if column.pooling != "claim" and column.score in known]
    everything = [(row, row.cells) for row in board.rows]
    for column in every:
        if column.pooling == "claim":
            values = [(row, value) for row in board.rows if (value := _guaranteed(row)) is not None]
        else:
            values = _pooled(board, column, families, everything) if column in columns else []
        for row, value in values:
            row.values[column.key] = value
        _mark_best(board, column, values)
    for view, kinds in _views(families).items():
        part = [
            (row, [cell for cell in row.cells if (cell.threat, cell.attack)[: len(view)] == view])
            for row in board.rows
        ]
        for column in columns:
            if column.family not in kinds or (len(view) == 2 and column.pooling == "mean"):
                continue
            values = _pooled(board, column, families, part)
            for row, value in values:
                row.under.setdefault(view, {})[column.key] = value
            _mark_best(board, column, values)


def _views(families: dict[int, dict[Attack, str]]) -> dict[View, set[str]]:
    """The views of a board, which are each threat and each attack -> families of these attacks.

    A threat with one attack has a view of its own too: where several boards are shown together, another may have more
    attacks under a threat of this name.
    """
    attacks = {
        attack: family for own in families.values() for attack, family in own.items() if family != "clean"
    }
    found: dict[View, set[str]] = {}
    for (threat, attack), family in attacks.items():
        found.setdefault((threat,), set()).add(family)
        found[threat, attack] = {family}
    return found


def _pooled(
    board: Board,
    column: Column,
    families: dict[int, dict[Attack, str]],
    cells: Iterable[tuple[Row, list[Cell]]],
) -> list[tuple[Row, Value]]:
    """The rows that have a value in a column, with that value, over the given cells of each."""
    reference = {id(submission) for submission in board.reference}
    name, clean = column.score, column.family == "clean"
    asked = Asked()
    found: list[tuple[Row, dict[int, list[float]], set[Hashable], set[str], bool]] = []
    for row, own_cells in cells:
        if not means(column, row.submission.units.get(name)):
            continue
        own, in_reference = families[id(row.submission)], id(row.submission) in reference
        seeds: dict[int, list[float]] = {}
        there: set[Hashable] = set()
        flags: set[str] = set()
        subset = False
        for cell in own_cells:
            attack = (cell.threat, cell.attack)
            if not column.counts(own[attack], cell.eps):
                continue
            points: dict[int, Point] = {
                number: (number,) if clean else (*attack, number) for number in map(int, cell.seeds)
            }
            for (number, point), seed in zip(points.items(), cell.seeds.values(), strict=True):
                value = score(seed, name) if cell.status == "scored" else None
                outcome: Outcome
                if value is not None:
                    seeds.setdefault(number, []).append(value)
                    there.add(point)
                    flags.update(seed.flags)
                    subset |= column.family == "evasion" and is_part(cell.attacked, cell.tested)
                    outcome = "answered"
                elif cell.status != "scored":
                    outcome = cell.status
                else:
                    outcome = "silent" if seed.error is None else "failed"
                asked.see(attack, point, outcome, in_reference)
        if seeds:
            found.append((row, seeds, there, flags, subset))
    wanted = asked.points
    estimates = []
    for row, seeds, there, flags, subset in found:
        by_seed = {number: column.pool(seeds[number]) for number in sorted(seeds)}
        estimate = pooled(tuple(by_seed.values()), row.submission.range_of(name))
        made = Value(
            estimate,
            text="" if math.isfinite(estimate.mean) else str(estimate.mean),
            incomplete=not wanted <= there,
            masked=column.family == "evasion" and MASKED in flags,
            constant=column.hollow and CONSTANT in flags,
            violated=column.key == "audited" and VIOLATION in flags,
            subset=subset,
            by_seed=by_seed,
        )
        estimates.append((row, made))
    return estimates


def _families(submission: Submission) -> dict[Attack, str]:
    """The family of each attack, by a scored cell if there is one: cells without scores say less about their attack."""
    found: dict[Attack, str] = {(cell.threat, cell.attack): cell.family for cell in submission.cells}
    return found | {(c.threat, c.attack): c.family for c in submission.cells if c.status == "scored"}


def _guaranteed(row: Row) -> Value | None:
    seeds = {number for cell in row.cells if cell.status == "scored" for number in cell.seeds}
    if not seeds:
        return None
    claim = row.claim
    if claim is None:
        return Value(Estimate(math.inf, None, None, len(seeds)), "none")
    if not claim.holds:
        return Value(Estimate(math.inf, None, None, len(seeds)), "broken")
    epsilon = math.inf if claim.epsilon is None else claim.epsilon
    return Value(
        Estimate(epsilon, None, None, len(seeds)),
        "inf" if math.isinf(epsilon) else "",
        clients=any(cell.guarantee.unit == "client" for cell in row.cells if cell.guarantee),
        violated=VIOLATION in row.flags or (claim.unit == "record" and _audited(row) > epsilon),
    )


def _audited(row: Row) -> float:
    """The largest lower bound on epsilon that an audit of the row proved; 0 if there was no audit."""
    found = [score(seed, "epsilon_audited") for cell in row.cells for seed in cell.seeds.values()]
    return max((value for value in found if value is not None), default=0.0)


def _weakness(claim: Claim) -> tuple[bool, float]:
    return not claim.holds, math.inf if claim.epsilon is None else claim.epsilon


def _mark_best(board: Board, column: Column, values: Sequence[tuple[Row, Value]]) -> None:
    """Marks the best of the fair values of reference submissions, with those that are shown as equal to it.

    Marks none if all values of reference submissions would be marked, if there are fewer than two, if guarantees of
    records and of clients are mixed, or if the column is measured.
    """
    if column.measured:
        return
    shown = [value for row, value in values if any(row.submission is s for s in board.reference)]
    fair = [value for value in shown if value.fair]
    if len(shown) < 2 or len({value.clients for value in fair}) != 1:
        return
    written = [float(column.show(column.compared(value.mean))) for value in fair]
    top = max(written) if column.better == "higher" else min(written)
    winners = [value for value, number in zip(fair, written, strict=True) if number == top]
    if len(winners) < len(shown):
        for value in winners:
            value.best = True
