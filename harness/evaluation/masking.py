"""Signs of gradient masking: a weaker attacker beats a gradient attack, or the same attack does with less effort.

After Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security" (ICML 2018) and
Carlini et al., "On evaluating adversarial robustness" (arXiv 1902.06705): an attacker who has the model's gradients can
do all that others can, so neither a query attack nor a transfer attack should beat those with gradients, and neither
more steps nor a larger radius of one attack should leave more accuracy. For a model without gradients, those of its
straight-through twin count. Different attacks are not compared by their effort: attacks made to transfer spend it on
other ends, and are weaker on the very model they were made on.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.contracts.attack import KNOWLEDGE

FLAG = "gradient-masking-suspected"
MARGIN_FLOOR = 0.01  # one point of accuracy: less is not worth a warning, however large the test set
STANDARD_ERRORS = 2.0  # about 95 %
# Parameters that say how long and how far an attack searches: two that differ in these alone are the same attack.
EFFORT = frozenset({"eps", "steps", "iterations", "restarts", "queries", "draws"})
# How an attack reached the model, by its record's `mode`; where it was direct, `mode` is the threat's knowledge.
TWIN = "straight-through twin"
TRANSFER = "transfer from"
ITSELF = " (itself)"  # ends a transfer's mode where the surrogate is the very model that is attacked


@dataclass(frozen=True)
class _Try:
    """What an attack left in one way: direct | twin | transfer, or the mode of a record that names no ways."""

    record: Mapping[str, Any]
    way: str
    white: bool  # it has the gradients of the model, or of its twin
    accuracy: float


def suspect_masking(records: Iterable[Mapping[str, Any]]) -> dict[Any, list[str]]:
    """Record id -> flags, for the flagged records only.

    Records form a group, and are compared, where they agree in all of `cell` but the threat and the attack, in the
    norm and eps of `attack`, and in its samples (how many test records are attacked decides which). What the threat
    grants makes no difference. Only attacks bounded by a norm and with a finite `scores.robust_accuracy` take part; one
    that went several ways takes part with each of `attack.ways` by itself. A gradient attack is one with access to
    gradients, on the model itself or on its twin; one that asks for less, or was made on another model, is not.

    All records of a group are flagged where (a) another attack leaves less robust accuracy than every gradient
    attack, or (b) a gradient attack leaves more than the same attack with less effort. Two attacks are the same where
    name and all parameters but those of EFFORT agree in `config.attack`, so records without a configuration have no
    such pair. All records of one gradient attack on one model, at several radii, are flagged where (c) it leaves more
    at a larger radius than at a smaller one. Each difference must be more than `margin`.
    """
    groups: dict[str, list[_Try]] = defaultdict(list)
    curves: dict[str, list[_Try]] = defaultdict(list)
    for record in records:
        for tried in _tries(record):
            groups[_group(record)].append(tried)
            if tried.white and "config" in record:
                curves[_curve(tried)].append(tried)
    found = [group for group in groups.values() if _masked(group)]
    found += [curve for curve in curves.values() if _rises(curve)]
    return {tried.record["id"]: [FLAG] for group in found for tried in group}


def flagged(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of one scenario, with the flag on those that `suspect_masking` names and on no others.

    A run puts it on its records only in the end: those of a run that goes on, or was killed, lack it.
    """
    found = suspect_masking(records)
    return [
        {**r, "flags": [flag for flag in r["flags"] if flag != FLAG] + found.get(r["id"], [])}
        for r in records
    ]


def margin(first: float, second: float, samples: int) -> float:
    """The difference of two robust accuracies beyond what chance is expected to make.

    max(MARGIN_FLOOR, 2 sqrt(p (1 - p) / n)) with p their mean and n samples each. The square root is the standard
    error of one accuracy, which bounds that of the difference where the two attacks' outcomes, on the same samples,
    correlate by one half or more. Where another package's score is no share, p is the nearest one.
    """
    p = min(1.0, max(0.0, (first + second) / 2))
    return max(MARGIN_FLOOR, STANDARD_ERRORS * math.sqrt(p * (1 - p) / samples))


def _tries(record: Mapping[str, Any]) -> list[_Try]:
    """A record's attack, once per way; nothing where the record cannot be compared with any other."""
    attack = record.get("attack") or {}
    worst = (record.get("scores") or {}).get("robust_accuracy")
    if worst is None or not math.isfinite(worst):
        return []
    if attack.get("norm") is None:  # corruptions and minimal-distance attacks: not rivals in one ball
        return []
    found = []
    # Without `ways`, what the attack on the twin left is not known, but it is no less than what all ways left.
    ways = attack.get("ways") or {str(attack.get("mode")): {"robust_accuracy": worst}}
    for mode, facts in ways.items():
        way, accuracy = _way(mode), facts["robust_accuracy"]
        if way is not None and math.isfinite(accuracy):
            white = attack["access"] == "gradients" and way != "transfer"
            found.append(_Try(record, way, white, float(accuracy)))
    return found


def _way(mode: str) -> str | None:
    if mode in KNOWLEDGE["inference"]:
        return "direct"
    if mode.startswith(TRANSFER):
        return "direct" if mode.endswith(ITSELF) else "transfer"
    if mode.startswith(TWIN):
        return "twin" if mode == TWIN else mode
    return None


def _model(record: Mapping[str, Any]) -> dict[str, Any]:
    return {axis: value for axis, value in record["cell"].items() if axis not in ("threat", "attack")}


def _group(record: Mapping[str, Any]) -> str:
    """The key that attacks on one model share where they rival in one ball, on the same samples."""
    attack = record["attack"]
    ball = [attack["norm"], attack.get("eps"), attack["samples"]]
    return json.dumps([_model(record), *ball], sort_keys=True, default=str)


def _curve(tried: _Try) -> str:
    """The key that one attack on one model has at all radii."""
    record = tried.record
    attack = [record["attack"]["norm"], record["attack"]["samples"], tried.way]
    spec = _without(record["config"]["attack"], {"eps"})
    return json.dumps([_model(record), spec, *attack], sort_keys=True, default=str)


def without_radius(threat: Mapping[str, Any]) -> dict[str, Any]:
    """What a threat has in common at all radii: all but its name and budget."""
    return {field: value for field, value in threat.items() if field not in ("name", "budget")}


def _without(spec: Any, names: Collection[str]) -> Any:
    """A configuration without the parameters of these names, also those of its parts."""
    if isinstance(spec, Mapping):
        return {key: _without(value, names) for key, value in spec.items() if key not in names}
    return [_without(value, names) for value in spec] if isinstance(spec, (list, tuple)) else spec


def _same_attack(first: _Try, second: _Try) -> bool:
    specs = [_without((t.record.get("config") or {}).get("attack"), EFFORT) for t in (first, second)]
    return first.way == second.way and specs[0] is not None and specs[0] == specs[1]


def _rises(curve: list[_Try]) -> bool:
    return any(
        near.record["attack"]["eps"] < far.record["attack"]["eps"] and _beats(near, far)
        for near in curve
        for far in curve
    )


def _masked(group: list[_Try]) -> bool:
    white = [tried for tried in group if tried.white]
    black = [tried for tried in group if not tried.white]
    return (bool(white) and any(all(_beats(b, w) for w in white) for b in black)) or any(
        weak.record["attack"]["effort"] < strong.record["attack"]["effort"]
        and _beats(weak, strong)
        and _same_attack(weak, strong)
        for weak in white
        for strong in white
    )


def _beats(first: _Try, second: _Try) -> bool:
    """Whether the first attack leaves clearly less robust accuracy than the second, on the same test records."""
    samples = int(first.record["attack"]["samples"])
    return second.accuracy - first.accuracy > margin(first.accuracy, second.accuracy, samples)
