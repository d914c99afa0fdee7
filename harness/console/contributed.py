"""Columns of the table for scores that plugins of other packages and local files contribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.console.pooling import QUANTITIES, Quantity, family
from harness.contracts.metric import Score
from harness.leaderboard.columns import Column
from harness.leaderboard.contributed import Contributed


def shown_quantities(records: Sequence[Mapping[str, Any]]) -> tuple[Quantity, ...]:
    """The table's columns, and one more for each contributed score of these records that has a column on the board."""
    columns = Contributed().columns(
        (name, Score(**unit), family(dict(record)))
        for record in records
        for name, unit in (record.get("units") or {}).items()
        if name in (record.get("scores") or {})
    )
    return (*QUANTITIES, *(_quantity(column) for column in columns))


def _quantity(column: Column) -> Quantity:
    legend = f"{column.title}: {column.note}" if column.note else ""
    return Quantity(column, f"{column.title} {column.unit}".rstrip(), legend)
