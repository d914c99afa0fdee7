"""Finds the one cell that a user means by its id, by the first digits of its id, or by values of its axes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from harness.errors import HarnessError
from harness.grid import Addressed, C, select

SHOWN = 10  # candidates listed in a message


@dataclass(frozen=True)
class Recorded:
    """A record, addressed as its cell is; the scenario counts as one more axis where candidates are listed."""

    record: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def axes(self) -> dict[str, Any]:
        return {**self.record["cell"], "scenario": self.record["scenario"]["name"]}


def pick(cells: Sequence[C], wanted: str, option: str, where: str) -> C:
    """The only cell whose id begins with `wanted` or, if `wanted` is `axis=glob,...` as for --select, that matches it.

    option, where: the option that `wanted` was given to, and what the cells come from, for messages. Raises
    HarnessError where no cell or several match, with the nearest or the matching ones.
    """
    chosen = (
        select(cells, [wanted], option) if "=" in wanted else [c for c in cells if c.id.startswith(wanted)]
    )
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise HarnessError(f"{option} {wanted!r}: {len(chosen)} cells of {where} match:{_listed(chosen)}")
    near = sorted(cells, key=lambda cell: _distance(wanted, cell))
    raise HarnessError(
        f"{option} {wanted!r}: {where} has no such cell; give the first digits of an id, or values of axes such as "
        f"'defence=none,seed=0':{_listed(near)}"
    )


def _distance(wanted: str, cell: Addressed) -> float:
    """Small if the cell's id begins much like `wanted`, or the label of one of its axis values resembles it."""
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(cell.id, wanted, strict=False))
    begun = len(list(shared)) / max(len(wanted), 1)
    labels = map(str, cell.axes.values())
    return -max(begun, *(difflib.SequenceMatcher(None, wanted, label).ratio() for label in labels))


def _listed(cells: Sequence[Addressed]) -> str:
    """One line per cell, for the first SHOWN of them, with the axes in which the cells differ."""
    several = (
        [axis for axis in cells[0].axes if len({str(cell.axes[axis]) for cell in cells}) > 1] if cells else []
    )
    lines = [
        f"\n  {cell.id}  {', '.join(f'{axis}={cell.axes[axis]}' for axis in several)}".rstrip()
        for cell in cells[:SHOWN]
    ]
    return "".join(lines) + f"\n  … and {len(cells) - SHOWN} others" * (len(cells) > SHOWN)
