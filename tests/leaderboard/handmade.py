"""Submissions written by hand, which no run stands behind: consistent with their scenario, with scores as given."""

from __future__ import annotations

import json
from typing import Any

from harness.grid import cells
from harness.identity import GENERAL
from harness.leaderboard.check import labels, settings
from harness.leaderboard.submission import Submission, parse
from harness.provenance import plugin_list
from harness.scenario import Scenario, load_text

TEXT = """schema: 1
name: hand
dataset: digits
model: logistic
federation: {clients: 3, rounds: 2}
defences: [none, label-smoothing]
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 0.1}, attacks: [fgsm]}
seeds: [0, 1, 2]
"""
UNIT = {"unit": "share", "direction": "higher", "description": "right", "measured": False}
Scores = dict[tuple[str, str], dict[str, list[float]]]  # (defence, attack) -> score -> a number a seed


def plain(name: str = "row", scores: Scores | None = None, text: str = TEXT) -> dict[str, Any]:
    """Decoded JSON of an official submission. scores: 0.5 everywhere where not given."""
    scenario = load_text(text)
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for cell in cells(scenario):
        attacked = cell.attack is not None
        axes = labels(cell)
        group = groups.setdefault(
            axes,
            {
                **dict(zip(("defence", "aggregator", "compressor", "threat", "attack"), axes, strict=True)),
                "family": "evasion" if attacked else "clean",
                "status": "scored",
                "eps": 0.1 if attacked else None,
                "norm": "linf" if attacked else None,
                "seeds": {},
                "config": settings(cell),
            },
        )
        wanted = {"accuracy": [0.5] * 9} if scores is None else scores.get((axes[0], axes[4]), {})
        group["seeds"][str(cell.seed)] = {
            "id": cell.id,
            "scores": {
                score: values[cell.seed] for score, values in wanted.items() if cell.seed < len(values)
            },
        }
    data = {
        "schema": 1,
        "kind": "psr-harness submission",
        "name": name,
        "authors": "A. Author",
        "created": "2026-01-02T03:04:05Z",
        "official": True,
        "unofficial_because": [],
        "scenario": {
            "name": scenario.name,
            "version": scenario.version,
            "hash": scenario.hash(),
            "dataset": "digits",
            "fingerprint": "ab" * 32,
            "model": "logistic",
            "seeds": list(scenario.seeds),
            "text": text,
        },
        "environment": {
            "version": "0.1.0",
            "commit": "1f" * 20,
            "dirty": False,
            "python": "3.11.7",
            "platform": "Linux",
            "device": "cpu",
            "device_name": "a processor",
            "libraries": dict.fromkeys(GENERAL, "2.6.0"),
        },
        "units": {
            "accuracy": UNIT,
            "loss": {**UNIT, "unit": "nats", "direction": "lower"},
            "train_seconds": {"unit": "s", "direction": "lower", "description": "", "measured": True},
        },
        "plugins": _plugins(scenario),
        "cells": list(groups.values()),
    }
    return json.loads(json.dumps(data))  # nothing is shared, so that a test may change any part


def _plugins(scenario: Scenario) -> list[dict[str, Any]]:
    """What the scenario uses, label-smoothing first where it does, of some older source."""
    methods: list[Any] = [scenario.dataset, scenario.model, scenario.federation.partition]
    for cell in cells(scenario):
        methods += [
            *cell.defences,
            *cell.aggregators,
            *cell.compressors,
            *[cell.attack] * (cell.attack is not None),
        ]
    found = [item | {"version": "0.1.0", "source": "cd" * 32} for item in plugin_list(methods)]
    return sorted(found, key=lambda item: item["name"] != "label-smoothing")


def submission(name: str = "row", scores: Scores | None = None, text: str = TEXT) -> Submission:
    """The same, validated."""
    return parse(plain(name, scores, text), name)
