"""Columns of the table for scores that plugins of other packages and local files contribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from harness.console.pooling import QUANTITIES, Quantity, family
from harness.contracts.metric import Metric
from harness.contracts.privacy import PrivacyAttack
from harness.entry_points import BUILTIN
from harness.leaderboard.columns import BY_KEY, Column
from harness.registry import registry

Family = Literal["clean", "evasion", "byzantine", "backdoor", "privacy"]


def shown_quantities(records: Sequence[Mapping[str, Any]]) -> tuple[Quantity, ...]:
    """The table's columns, and one for each of these records' scores that no built-in plugin declares.

    Not for a score that has no direction: there is no worst attack, and no best row, of it.
    """
    declared = _built_in()
    found: dict[str, Quantity] = {}
    for record in records:
        for name, unit in (record.get("units") or {}).items():
            if name not in found and name not in declared and unit["direction"] != "none":
                holders = [r for r in records if name in (r.get("scores") or {})]
                found[name] = _quantity(name, unit, _family(holders))
    return (*QUANTITIES, *found.values())


def _built_in() -> set[str]:
    """Names of scores: the built-in metrics', and those of attacks whose results are scores."""
    found: set[str] = set()
    for kind, sort in (("metric", Metric), ("attack", PrivacyAttack)):
        for entry in registry().entries(kind):
            if entry.distribution == BUILTIN and issubclass(entry.plugin, sort):
                found |= entry.plugin.scores.keys()  # type: ignore[attr-defined]
    return found


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
