"""Which attacks and seeds a column asks of every row: whoever lacks one of them is not compared.

The terminal's table and the board ask alike. An attack is asked for where it was run on some row, failures included.
Not where it makes no sense for any row, as nobody could have its score, nor where it gives nobody the column's score,
such as an inversion a membership AUC.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

Attack = tuple[str, str]  # threat, attack
Outcome = Literal["answered", "silent", "failed", "not-applicable"]  # silent: scored, but without this score


class Asked:
    """Takes in what became of each attack on each row and seed; `points` is then what is asked for."""

    def __init__(self) -> None:
        self._points: dict[Attack, set[Hashable]] = {}
        self._answered: set[Attack] = set()
        self._silent: set[Attack] = set()

    def see(self, attack: Attack, point: Hashable, outcome: Outcome, asks: bool = True) -> None:
        """point: what a row can show for it, such as a seed. asks: what was run on this row is asked of the others."""
        if outcome == "not-applicable":
            return
        if asks:
            self._points.setdefault(attack, set()).add(point)
        if outcome == "answered":
            self._answered.add(attack)
        elif outcome == "silent":
            self._silent.add(attack)

    @property
    def points(self) -> set[Hashable]:
        silent = self._silent - self._answered
        return {point for attack, own in self._points.items() if attack not in silent for point in own}
