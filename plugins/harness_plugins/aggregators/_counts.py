"""Rules told how many rows to use, where some of the rows turn out to be unusable."""

from __future__ import annotations

from typing import Self

from pydantic import PrivateAttr

from harness_plugins.aggregators._tolerance import Tolerant


class Counting(Tolerant):
    """A rule with explicit counts of rows, such as how many to average.

    A count that does not fit the clients of a round is a mistake in the scenario, and `check` says so. Once the engine
    has dropped rows that are not finite it is none: a count then means at most as many as the rows left allow.
    """

    _dropped: bool = PrivateAttr(False)

    def with_fewer(self, dropped: int) -> Self:
        if not dropped:
            return self
        fewer = super().with_fewer(dropped).model_copy()
        fewer._dropped = True
        return fewer

    def at_most(self, count: int, most: int) -> int:
        """A count as it was given; where rows were dropped, no more than `most`, and one at least."""
        return max(1, min(count, most)) if self._dropped else count
