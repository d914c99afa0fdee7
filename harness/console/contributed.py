"""Columns of the table for scores that plugins of other packages and local files contribute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.console.pooling import QUANTITIES, Quantity, family
from harness.contracts.metric import Score
from harness.leaderboard.columns import Column
from harness.leaderboard.contributed import Contributed


def shown_quantities(records: Sequence[Mapping[str, Any]]) -> tuple[Quantity, ...]:
    """The table's columns, and one more for each contributed score of these records that has a column on the board."""
    columns = Contributed().columns(_declared(records))
    return (*QUANTITIES, *(_quantity(column) for column in columns))


def _declared(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Score, str]]:
    """Each score of each record with its meaning, and the record's family."""
    for record in records:
        scores = record.get("scores") or {}
        units = {n: unit for n, unit in (record.get("units") or {}).items() if n in scores}
        if units:
            of = family(dict(record))
            yield from ((name, Score(**unit), of) for name, unit in units.items())


def _quantity(column: Column) -> Quantity:
    legend = f"{column.title}: {column.note}" if column.note else ""
    return Quantity(column, f"{column.title} {column.unit}".rstrip(), legend)
