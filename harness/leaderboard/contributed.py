"""Columns for scores that plugins of other packages and local files declare.

What a file or record says of a score is enough: the plugin need not be installed where its column is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Literal, cast

from harness.entry_points import BUILTIN
from harness.leaderboard.columns import BY_KEY, Column
from harness.leaderboard.known_scores import declared

if TYPE_CHECKING:
    from harness.contracts.metric import Score
    from harness.leaderboard.submission import Unit

Family = Literal["clean", "evasion", "byzantine", "backdoor", "privacy"]

# What a row has beside its columns, in leaderboard.csv, on the page and in both.
RESERVED = frozenset({
    "attacks", "aggregator", "board", "compressor", "created", "dataset", "defence", "delta", "flags", "guarantee",
    "guarantee_unit", "id", "name", "official", "place", "scenario", "short", "source", "state", "submission",
    "superseded", "values", "verification", "version", "words", "__proto__",
})  # fmt: skip
BESIDE = ("_low", "_high", "_seeds", "_signs")  # endings of what a column of the files is followed by
TABS: Mapping[str, tuple[str, ...]] = {
    "clean": ("overview",),
    "evasion": ("overview", "robustness"),
    "byzantine": ("overview", "robustness", "aggregation"),
    "backdoor": ("overview", "robustness"),
    "privacy": ("overview", "privacy"),
}


class Contributed:
    """Gives each meaning a key of its own: packages do not ask each other before they name a score."""

    def __init__(self) -> None:
        self._built_in = {n for entry, own in declared() if entry.distribution == BUILTIN for n in own}
        self._columns: dict[str, Column] = {}

    def columns(self, found: Iterable[tuple[str, Score | Unit, str]]) -> list[Column]:
        """One for each meaning that results of one board give a score, in the order in which they come.

        found: score, what it means, and the family of a cell that has it. Not for scores of built-in plugins, nor
        for one that has no direction: there is no worst attack, and no best row, of it. A column is of the released
        model where cells without an attack have the score, else of those that do.
        """
        first: dict[tuple[str | bool, ...], Score | Unit] = {}
        families: dict[tuple[str | bool, ...], dict[str, None]] = {}
        for name, score, family in found:
            if name not in self._built_in and score.direction != "none":
                meaning = (name, score.unit, score.direction, score.measured)
                first.setdefault(meaning, score)
                families.setdefault(meaning, {})[family] = None
        return [self._column(str(meaning[0]), score, families[meaning]) for meaning, score in first.items()]

    def _column(self, name: str, score: Score | Unit, families: Mapping[str, None]) -> Column:
        """The column of that key which is the same in everything, or a new one under the next free key."""
        of = cast("Family", "clean" if "clean" in families else next(iter(families)))
        unit, scale, digits = _written(score.unit)
        better = cast("Literal['higher', 'lower']", score.direction)
        column = Column("", "", unit, name, of, better, TABS[of], score.description, scale, digits)
        key = re.sub(r"[^A-Za-z0-9_.]", "_", name)
        if key in BY_KEY or key in RESERVED or key.endswith(BESIDE):
            key += "-score"
        for number in count(1):
            numbered = key if number == 1 else f"{key}-{number}"
            made = replace(column, key=numbered, title=numbered, measured=score.measured)
            if self._columns.setdefault(numbered, made) == made:
                break
        return made


def means(column: Column, score: Score | Unit | None) -> bool:
    """Whether a file that says this of a score means by its name what the column holds."""
    if column.key in BY_KEY:
        return True
    return score is not None and (*_written(score.unit), score.direction, score.measured) == (
        *(column.unit, column.scale, column.digits),
        *(column.better, column.measured),
    )


def _written(unit: str) -> tuple[str, float, int]:
    """The unit that is shown, the scale to it, and digits."""
    return ("%", 100.0, 1) if unit == "share" else (unit, 1.0, 3)
