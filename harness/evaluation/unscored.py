"""Attacks of which nothing is known: no metric of the scenario covers what they found, or metrics give only NaN."""

from __future__ import annotations

from collections.abc import Mapping

FLAG = "attack-unscored"  # on the records of such cells, which are done but say nothing about the attack


def undefined(value: float | None) -> bool:
    """Whether a score has no value: NaN, or None as NaN is stored."""
    return value is None or value != value


def unscored(scores: Mapping[str, float | None]) -> bool:
    """Whether none of an attack's own scores has a value."""
    return all(map(undefined, scores.values()))
