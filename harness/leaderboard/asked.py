"""Which attacks and seeds a column asks of every row: a row that lacks one of them is not compared.

The rule is the same for the terminal's table and the board. An attack is asked for if it was run on some row, even if
it failed there. It is not asked for if it is not applicable to any row, since no row could have its score, or if it
gives no row the column's score, as a gradient inversion gives no membership AUC.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

Attack = tuple[str, str]  # threat, attack
Outcome = Literal["answered", "silent", "failed", "not-applicable"]  # silent: scored, but without this score


class Asked:
    """Collects the outcome of each attack on each row and seed; `points` is then what is asked for."""

    def __init__(self) -> None:
        self._points: dict[Attack, set[Hashable]] = {}
        self._answered: set[Attack] = set()
        self._silent: set[Attack] = set()

    def see(self, attack: Attack, point: Hashable, outcome: Outcome, asks: bool = True) -> None:
        """Adds the outcome of an attack on one row.

        point: the result that a row then has, e.g. (threat, attack, seed). asks: whether what was run on this row is
        asked of the other rows.
        """
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
