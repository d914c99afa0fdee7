"""Columns of the table for scores that plugins of other packages and local files contribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from harness.console.pooling import QUANTITIES, Quantity, family
from harness.entry_points import BUILTIN
from harness.leaderboard.columns import BY_KEY, Column
from harness.leaderboard.known_scores import declared

Family = Literal["clean", "evasion", "byzantine", "backdoor", "privacy"]


def shown_quantities(records: Sequence[Mapping[str, Any]]) -> tuple[Quantity, ...]:
    """The table's columns, and one for each of these records' scores that no built-in plugin declares.

    Not for a score that has no direction: there is no worst attack, and no best row, of it.
    """
    built_in = {name for entry, own in declared() if entry.distribution == BUILTIN for name in own}
    found: dict[str, Quantity] = {}
    for record in records:
        for name, unit in (record.get("units") or {}).items():
            if name not in found and name not in built_in and unit["direction"] != "none":
                holders = [r for r in records if name in (r.get("scores") or {})]
                found[name] = _quantity(name, unit, _family(holders))
    return (*QUANTITIES, *found.values())


def _family(holders: Sequence[Mapping[str, Any]]) -> Family:
    """Of the released model where cells without an attack have the score, else of those that do."""
    families = [family(dict(record)) for record in holders]
    return cast("Family", "clean" if "clean" in families else families[0])


def _quantity(name: str, unit: Mapping[str, Any], of: Family) -> Quantity:
    share = unit["unit"] == "share"
    shown = "%" if share else unit["unit"]
    key = name if name not in BY_KEY else f"{name}-score"
    legend = f"{name}: {unit['description']}" if unit["description"] else ""
    scale, digits = (100, 1) if share else (1, 3)
    column = Column(key, name, shown, name, of, unit["direction"], (), legend, scale, digits)
    return Quantity(column, f"{name} {shown}".rstrip(), legend)
