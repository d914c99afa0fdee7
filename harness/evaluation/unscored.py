"""Attacks of which nothing is known: no metric of the scenario covers what they found, or all it says is NaN."""

from __future__ import annotations

from collections.abc import Mapping

FLAG = "attack-unscored"  # of the records of such cells: they are done, and say nothing of the attack


def undefined(value: float | None) -> bool:
    """Whether a score has no value: NaN, or None as NaN is stored."""
    return value is None or value != value


def unscored(scores: Mapping[str, float | None]) -> bool:
    """Whether none of an attack's own scores has a value."""
    return all(map(undefined, scores.values()))
