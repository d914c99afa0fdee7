"""What the epsilons of a table promise and to whom, in sentences for its legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

CLIENTS = "§: for a client with all its data; without it, for one record"


def said(guarantees: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """Whom the epsilons protect, at which delta, and what the largest group is promised; no line without a guarantee.

    guarantees: of records or submissions; broken ones promise nothing and are left out.
    """
    holding = [given for given in guarantees if given is not None and given.get("holds", True)]
    if not holding:
        return []
    clients = any(given.get("unit") == "client" for given in holding)
    line = f"epsilon {CLIENTS}" if clients else "epsilon: for one record"
    deltas = sorted({float(given["delta"]) for given in holding if given.get("delta") is not None})
    if deltas:
        ends = [f"{delta:.3g}" for delta in (deltas[0], deltas[-1])]
        line += f"; at delta {' to '.join(dict.fromkeys(ends))}"
    grouped = [given for given in holding if given.get("largest_group") is not None]
    return [line, largest_group(grouped)] if grouped else [line]


def largest_group(guarantees: Iterable[Mapping[str, Any]]) -> str:
    """What all records of the largest group, such as a patient's images, are promised together: the best to the worst.

    Epsilons that are close together for a record are far apart for a group: 1 and 3 became 13 and 267.
    """
    ranked = sorted(guarantees, key=_of_group)
    least, worst = (_of_group(ranked[end]) for end in (0, -1))
    count = ranked[-1]["largest_group"]
    many = "1 record" if count == 1 else f"{count} records"
    if math.isinf(least):
        bound = "no finite epsilon"
    else:
        ends = (_plainly(least), "no finite one" if math.isinf(worst) else _plainly(worst))
        bound = f"epsilon {' to '.join(dict.fromkeys(ends))}"
    return f"for the largest group, {many} (such as the patient with most images): {bound}"


def _of_group(guarantee: Mapping[str, Any]) -> float:
    """The epsilon of the group; infinite where none is given, as submissions store no infinite numbers."""
    epsilon = guarantee.get("group_epsilon")
    return math.inf if epsilon is None else float(epsilon)


def _plainly(epsilon: float) -> str:
    """`103410`, not 1.034e+05: one must see at once that this is no protection."""
    return f"{epsilon:.0f}" if epsilon >= 1000 else f"{epsilon:.4g}"
