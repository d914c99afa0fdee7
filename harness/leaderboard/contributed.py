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

# Names of what a row has beside its columns, in leaderboard.csv, on the page or in both.
RESERVED = frozenset({
    "attacks", "aggregator", "board", "compressor", "created", "dataset", "defence", "delta", "flags", "guarantee",
    "guarantee_unit", "id", "name", "official", "place", "scenario", "short", "source", "state", "submission",
    "superseded", "values", "verification", "version", "words", "__proto__",
})  # fmt: skip
BESIDE = ("_low", "_high", "_seeds", "_signs")  # endings of further columns that leaderboard.csv has for each
TABS: Mapping[str, tuple[str, ...]] = {
    "clean": ("overview",),
    "evasion": ("overview", "robustness"),
    "byzantine": ("overview", "robustness", "aggregation"),
    "backdoor": ("overview", "robustness"),
    "privacy": ("overview", "privacy"),
}


class Contributed:
    """Gives each meaning of a score a column with a key of its own, as two packages may use one name for two things."""

    def __init__(self) -> None:
        self._built_in = {n for entry, own in declared() if entry.distribution == BUILTIN for n in own}
        self._columns: dict[str, Column] = {}

    def columns(self, found: Iterable[tuple[str, Score | Unit, str]]) -> list[Column]:
        """One column for each meaning that a score has in the results of one board, in the order of `found`.

        found: score, what it means, and the family of a cell that has it. There is no column for scores of built-in
        plugins, nor for scores without a direction, which have no worst attack and no best row. A column's family is
        clean if cells without an attack have the score, else that of the first cell that has it.
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
        """The column of this meaning: an existing one that is equal in everything, else a new one with a free key."""
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
    """Whether a file that declares a score like this means by it what the column holds. True for built-in columns."""
    if column.key in BY_KEY:
        return True
    return score is not None and (*_written(score.unit), score.direction, score.measured) == (
        *(column.unit, column.scale, column.digits),
        *(column.better, column.measured),
    )


def _written(unit: str) -> tuple[str, float, int]:
    """The unit that is shown, the factor from the score's unit to it, and the digits."""
    return ("%", 100.0, 1) if unit == "share" else (unit, 1.0, 3)
