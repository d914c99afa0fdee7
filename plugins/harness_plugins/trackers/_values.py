"""What the trackers share: a cell's outcome and the parameters behind it, as plain values."""

from __future__ import annotations

import math
from typing import Any


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """Of a cell's record what a tracker shows: who it is, its status, scores and guarantee, and why it has none."""
    error, guarantee = record.get("error"), record.get("guarantee")
    return {
        "id": record["id"],
        "scenario": record["scenario"],
        "cell": record["cell"],
        "status": record["status"],
        "scores": record.get("scores") or {},
        "intervals": record.get("intervals") or {},
        "flags": record.get("flags") or [],
        "epsilon": None if guarantee is None else guarantee.get("epsilon"),
        "guarantee_holds": None if guarantee is None else guarantee.get("holds"),
        "reason": record.get("reason"),
        "error": None if error is None else f"{error.get('type')}: {error.get('message')}",
        "train_seconds": record.get("train_seconds"),
        "parameters": parameters(record),
    }


def parameters(record: dict[str, Any]) -> dict[str, str]:
    """The cell's value on each axis, and the scenario's version: what tells it from all others."""
    scenario = record["scenario"]
    return {
        "scenario": str(scenario.get("name")),
        "scenario_version": str(scenario.get("version")),
        **{axis: str(value) for axis, value in record["cell"].items()},
    }


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those entries that are numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def finite(value: Any) -> Any:
    """The same value with numbers that are not finite as None: JSON has none."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
