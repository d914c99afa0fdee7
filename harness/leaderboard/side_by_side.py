"""Two results of one board beside each other: means, their difference, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import HarnessError, did_you_mean
from harness.leaderboard.columns import BY_SCORE, Column
from harness.leaderboard.publishable import cell_name
from harness.leaderboard.statistics import PairedDifference, paired_difference, too_few
from harness.leaderboard.submission import Cell, Submission, Unit

if TYPE_CHECKING:
    from rich.console import Console

Seeds = dict[int, float]
GUARANTEED = ("epsilon", "delta")


@dataclass(frozen=True)
class Pair:
    """One score of one row in both results.

    difference: `paired_difference` over shared seeds, of values as `Column.compared` counts them. whose: what each of
    the two numbers is about, if they cannot be compared because that differs: guarantees for a record and for a client,
    or what two versions of a plugin mean by the score. words: written instead of the two numbers, unless empty.
    """

    row: str
    score: str
    unit: str
    direction: Literal["higher", "lower", "none"]
    first: float
    second: float
    difference: PairedDifference
    whose: str = ""
    words: tuple[str, str] = ("", "")

    @property
    def column(self) -> Column | None:
        """The board's column of this score, which says how it is written; None: it has none."""
        return BY_SCORE.get(self.score)

    @property
    def written(self) -> list[str]:
        """Both numbers as the board writes them; `none` or `broken` where a side guarantees nothing."""
        return [
            word or self._shown(value)
            for word, value in zip(self.words, (self.first, self.second), strict=True)
        ]

    def _shown(self, value: float) -> str:
        return number(value) if self.column is None or math.isnan(value) else self.column.show(value)

    def scaled(self, difference: float) -> str:
        """A difference in the shown unit, with four digits: it may be smaller than the values' last shown digit."""
        return number(difference * (1 if self.column is None else self.column.scale))

    @property
    def heading(self) -> str:
        unit = self.unit if self.column is None else self.column.unit
        arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[self.direction]
        return self.score + f" [{unit}]" * bool(unit) + arrow + f" ({self.whose})" * bool(self.whose)

    @property
    def better(self) -> Literal["first", "second"] | None:
        """The one that is better, if the 95 % interval of the difference leaves zero out; else None.

        Also None where nothing can be tested, such as the same difference at every seed: see `paired_difference`.
        """
        low, high = self.difference.low, self.difference.high
        if self.direction == "none" or math.isnan(self.difference.p) or low <= 0 <= high:
            return None
        return "first" if (low > 0) == (self.direction == "higher") else "second"


def compare_submissions(a: Submission, b: Submission, scores: Iterable[str] = ()) -> list[Pair]:
    """Every score of every cell that both have. Raises HarnessError if scenario, version or data differ."""
    if a.scenario.board != b.scenario.board:
        raise HarnessError(
            f"{a.name} is of {a.scenario.board} and {b.name} of {b.scenario.board}: "
            "results of different scenarios cannot be compared"
        )
    if a.scenario.hash != b.scenario.hash:
        raise HarnessError(
            f"{a.name} and {b.name} are of different contents of {a.scenario.board} "
            f"({a.scenario.hash[:12]} and {b.scenario.hash[:12]}) and cannot be compared"
        )
    if a.scenario.fingerprint != b.scenario.fingerprint:
        raise HarnessError(f"{a.name} and {b.name} are of different data and cannot be compared")
    others = {cell.axes: cell for cell in b.cells}
    shared = [(cell_name(cell.axes), cell, others[cell.axes]) for cell in a.cells if cell.axes in others]
    return _pairs(shared, _asked([a, b], scores), a, b)


def identical(a: Submission, b: Submission, scores: Iterable[str] = ()) -> bool:
    """Whether two submissions of one board have the same cells with the same guarantees, flags and scores.

    scores: those to look at; default: all that are not measurements of time or memory.
    """
    asked = _asked([a, b], scores)

    def content(cell: Cell) -> tuple[Any, ...]:
        values = [str(sorted(by_seed(cell, score).items())) for score in asked]
        seeds = {number: (seed.flags, seed.error) for number, seed in cell.seeds.items()}
        return cell.status, cell.reason, cell.guarantee, seeds, values

    return {cell.axes: content(cell) for cell in a.cells} == {cell.axes: content(cell) for cell in b.cells}


def compare_rows(submission: Submission, first: str, second: str, scores: Iterable[str] = ()) -> list[Pair]:
    """Two configurations of one submission, under every threat and attack that both have.

    first, second: `defence / aggregator / compressor`; parts that are the same in all rows may be left out. Raises
    HarnessError if both are the same row, or one is no row.
    """
    if row_of(submission, first) == row_of(submission, second):
        raise HarnessError(f"{first!r} and {second!r} are the same row")
    chosen = [
        {cell.axes[3:]: cell for cell in submission.cells if cell.axes[:3] == row_of(submission, label)}
        for label in (first, second)
    ]
    shared = [
        ("no attack" if attack == ("none", "none") else " ".join(attack), cell, chosen[1][attack])
        for attack, cell in chosen[0].items()
        if attack in chosen[1]
    ]
    return _pairs(shared, _asked([submission], scores), submission, submission)


def row_of(submission: Submission, label: str) -> tuple[str, str, str]:
    """The (defence, aggregator, compressor) that a label means. Raises HarnessError, naming rows, if there is none."""
    rows = dict.fromkeys(cell.axes[:3] for cell in submission.cells)
    varying = [i for i in range(3) if len({row[i] for row in rows}) > 1] or [0]
    short = {row: " / ".join(row[i] for i in varying) for row in rows}
    asked = " / ".join(part.strip() for part in label.split(" / "))
    found = [row for row in rows if asked in (" / ".join(row), short[row])]
    if not found:
        raise HarnessError(f"{submission.name} has no row {label!r}; {did_you_mean(label, short.values())}")
    return found[0]


def is_row(submission: Submission, label: str) -> bool:
    """Whether a label means one of the submission's rows."""
    try:
        row_of(submission, label)
    except HarnessError:
        return False
    return True


def render_pairs(pairs: Sequence[Pair], first: str, second: str, console: Console) -> None:
    """Prints a table for each row, in the order of `pairs`, with a line per score."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console.print(Text(f"A: {first}\nB: {second}"), soft_wrap=True)
    for row in dict.fromkeys(pair.row for pair in pairs):
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left", title=Text(row))
        table.add_column("score", overflow="fold")
        for header in ("A", "B", "A - B", "95 % interval"):
            table.add_column(header, justify="right", no_wrap=True)
        for pair in (pair for pair in pairs if pair.row == row):
            style = {"first": "green", "second": "red", None: ""}[pair.better]
            table.add_row(
                Text(pair.heading),
                *map(Text, (*pair.written, pair.scaled(pair.difference.mean))),
                Text(_interval(pair), style=style),
            )
        console.print(table)
    # A guarantee that only one side has makes no pairs, which says nothing about how many seeds are shared.
    fewest = min(
        (pair.difference.pairs for pair in pairs if not math.isnan(pair.first + pair.second)), default=0
    )
    console.print(Text(f"A - B: over shared seeds, at least {fewest}; green: A is better, red: B is better"))
    if len(pairs) > 1:
        console.print(
            Text(
                f"lines are not adjusted for their number: of {len(pairs)}, one in 20 is coloured by chance alone"
            )
        )
    warning = too_few(fewest)
    if pairs and warning is not None:
        console.print(Text(warning))


def number(value: float) -> str:
    """Four significant digits; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def _interval(pair: Pair) -> str:
    low, high = pair.difference.low, pair.difference.high
    return "-" if math.isnan(low) else f"[{pair.scaled(low)}, {pair.scaled(high)}]"


def _asked(submissions: Sequence[Submission], scores: Iterable[str]) -> list[str]:
    """The scores to show: those named, else all that are not measurements of time or memory."""
    units = {name: unit for submission in submissions for name, unit in submission.units.items()}
    known = {
        name
        for submission in submissions
        for cell in submission.cells
        for seed in cell.seeds.values()
        for name in (*seed.scores, *seed.undefined)
    }
    wanted = list(scores)
    for name in wanted:
        if name not in known:
            raise HarnessError(f"--score {name}: no such score here; {did_you_mean(name, known)}")
    return wanted or sorted(name for name in known if name not in units or not units[name].measured)


def _pairs(
    shared: Sequence[tuple[str, Cell, Cell]], scores: Sequence[str], a_file: Submission, b_file: Submission
) -> list[Pair]:
    """A pair for each score of each row. A score that several attacks share, being of one model, comes only once."""
    found: list[Pair] = []
    said: set[tuple[Any, ...]] = set()
    for row, first, second in sorted(shared, key=lambda entry: entry[1].family != "clean"):
        for score in scores:
            a, b = (by_seed(cell, score) for cell in (first, second))
            same = (first.axes[:3], second.axes[:3], score, *map(str, (a, b)))
            words = (_word(first, a), _word(second, b)) if score == "epsilon" else ("", "")
            if not ((a and b) or ((a or b) and "none" in words)) or same in said:
                continue
            said.add(same)
            unit = a_file.units.get(score)
            whose = _whose(first, second) if score in GUARANTEED else _meanings(unit, b_file.units.get(score))
            found.append(
                Pair(
                    row,
                    score,
                    unit.unit if unit else "",
                    unit.direction if unit and not whose else "none",
                    fmean(a.values()) if a else math.nan,
                    fmean(b.values()) if b else math.nan,
                    paired_difference(_counted(a, score), _counted(b, score)),  # type: ignore[arg-type]
                    whose,
                    words,
                )
            )
    if not found:
        raise HarnessError("nothing to compare: they share no scored cell")
    return found


def _meanings(first: Unit | None, second: Unit | None) -> str:
    """What the two files say of a score, if they differ; else an empty text."""
    if first is None or second is None or (first.unit, first.direction) == (second.unit, second.direction):
        return ""
    one, other = (f"{said.unit or 'no unit'}, better {said.direction}" for said in (first, second))
    return f"A: {one}; B: {other}"


def _counted(values: Seeds, score: str) -> Seeds:
    """Values as they count in comparisons: see `Column.chance`."""
    column = BY_SCORE.get(score)
    return values if column is None else {seed: column.compared(value) for seed, value in values.items()}


def _word(cell: Cell, epsilons: Seeds) -> str:
    """What stands in the place of epsilon for a cell that guarantees nothing; empty for others."""
    if cell.guarantee is None:
        return "none" if cell.status == "scored" and not epsilons else ""
    return "" if cell.guarantee.holds else "broken"


def _whose(first: Cell, second: Cell) -> str:
    """What the two guarantees are for, if that differs (a record, a client); else an empty text."""
    units = [cell.guarantee.unit for cell in (first, second) if cell.guarantee is not None]
    return f"of a {units[0]}, of a {units[1]}" if len(set(units)) > 1 else ""


def by_seed(cell: Cell, score: str) -> Seeds:
    """Seed -> score, infinite and undefined ones included."""
    return {int(seed): entry.values[score] for seed, entry in cell.seeds.items() if score in entry.values}
