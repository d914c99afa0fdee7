"""Signs of gradient masking: white-box results that a stronger attack should have beaten and did not.

After Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security" (ICML 2018) and
Carlini et al., "On evaluating adversarial robustness" (arXiv 1902.06705): a black-box attack must not beat
white-box ones, and neither more steps nor a larger radius of one attack must leave more accuracy. Different attacks
are not compared by their effort: those that are made to transfer spend it on other ends, and are weaker on the very
model they were made on.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

FLAG = "gradient-masking-suspected"
MARGIN_FLOOR = 0.01  # one point of accuracy: less is not worth a warning, however large the test set
STANDARD_ERRORS = 2.0  # about 95 %
# Parameters of attacks that say how long and how far they search: without them two are one and the same attack.
EFFORT = frozenset({"eps", "steps", "iterations", "restarts", "queries", "draws"})


def suspect_masking(records: Iterable[Mapping[str, Any]]) -> dict[Any, list[str]]:
    """Record id -> flags, for the flagged records only.

    Records are compared where all of `cell` but the attack agrees, and the norm and eps of `attack`; only
    those with attack mode `white-box` and a finite `scores.robust_accuracy` take part. All records of a group
    are flagged where (a) an attack without gradients leaves less robust accuracy than every gradient attack,
    or (b) a gradient attack leaves more than itself with less effort: by name and all parameters but those of
    EFFORT in `config.attack` they are the same, so records without a configuration have no such pair. All records
    of one gradient attack, at several radii, on one model are flagged where (c) it leaves more at a larger radius
    than at a smaller one. In each case by more than `margin`.
    """
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    curves: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        key = _group(record)
        if key is not None:
            groups[key].append(record)
            if record["attack"]["access"] == "gradients" and "config" in record:
                curves[_curve(record)].append(record)
    found = [group for group in groups.values() if _masked(group)]
    found += [curve for curve in curves.values() if _rises(curve)]
    return {record["id"]: [FLAG] for group in found for record in group}


def margin(first: float, second: float, samples: int) -> float:
    """The difference of two robust accuracies that chance is not expected to make.

    max(MARGIN_FLOOR, 2 sqrt(p (1 - p) / n)) with p their mean, n samples each: the standard error of one
    accuracy. It bounds the standard error of the difference where the two attacks' outcomes, on the same
    samples, correlate by one half or more.
    """
    p = (first + second) / 2
    return max(MARGIN_FLOOR, STANDARD_ERRORS * math.sqrt(p * (1 - p) / samples))


def _group(record: Mapping[str, Any]) -> str | None:
    attack = record.get("attack") or {}
    accuracy = (record.get("scores") or {}).get("robust_accuracy")
    if attack.get("mode") != "white-box" or accuracy is None or not math.isfinite(accuracy):
        return None
    if attack.get("norm") is None:  # corruptions and minimal-distance attacks: not rivals in one ball
        return None
    cell = {axis: value for axis, value in record["cell"].items() if axis != "attack"}
    return json.dumps([cell, attack.get("norm"), attack.get("eps")], sort_keys=True, default=str)


def _curve(record: Mapping[str, Any]) -> str:
    """What the records of one attack on one model have in common at all radii."""
    cell = {axis: value for axis, value in record["cell"].items() if axis not in ("attack", "threat")}
    threat, attack = without_radius(record["config"]["threat"]), _without(record["config"]["attack"], {"eps"})
    return json.dumps([cell, threat, attack, record["attack"]["norm"]], sort_keys=True, default=str)


def without_radius(threat: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same of a threat at all radii: all but its name and budget."""
    return {field: value for field, value in threat.items() if field not in ("name", "budget")}


def _without(spec: Any, names: Collection[str]) -> Any:
    """A configuration without the parameters of these names, those of parts included."""
    if isinstance(spec, Mapping):
        return {key: _without(value, names) for key, value in spec.items() if key not in names}
    return [_without(value, names) for value in spec] if isinstance(spec, (list, tuple)) else spec


def _same_attack(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    specs = [_without((r.get("config") or {}).get("attack"), EFFORT) for r in (first, second)]
    return specs[0] is not None and specs[0] == specs[1]


def _rises(curve: list[Mapping[str, Any]]) -> bool:
    return any(
        near["attack"]["eps"] < far["attack"]["eps"] and _beats(near, far) for near in curve for far in curve
    )


def _masked(group: list[Mapping[str, Any]]) -> bool:
    white = [r for r in group if r["attack"]["access"] == "gradients"]
    black = [r for r in group if r["attack"]["access"] != "gradients"]
    return (bool(white) and any(all(_beats(b, w) for w in white) for b in black)) or any(
        weak["attack"]["effort"] < strong["attack"]["effort"]
        and _beats(weak, strong)
        and _same_attack(weak, strong)
        for weak in white
        for strong in white
    )


def _beats(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the first attack leaves clearly less robust accuracy than the second."""
    low, high = (float(r["scores"]["robust_accuracy"]) for r in (first, second))
    samples = min(int(r["attack"]["samples"]) for r in (first, second))
    return high - low > margin(low, high, samples)
