"""What a deployment keeps to itself where a defence protects whole clients.

Only the client knows how many records it holds, and only the server knows who takes part in a round: neither is sent
or published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.contracts.defence import hiding

if TYPE_CHECKING:
    from harness.contracts.defence import Defence
    from harness.stage_specs import TrainSpec


def discreet(defences: Sequence[Defence]) -> bool:
    """Whether a stack protects whole clients: then each counts as one record."""
    return any(defence.protects == "client" for defence in defences)


def conflict(defences: Sequence[Defence]) -> str | None:
    """Why a stack cannot be deployed: one defence hides what another plans by. None if it can."""
    if not discreet(defences):
        return None
    client = next(defence.name for defence in defences if defence.protects == "client")
    for defence in defences:
        if defence.protects == "record":
            return (
                f"{defence.name} plans by the number of each site's records, which {client} hides: "
                "deploy one without the other"
            )
    return None


def breaches(spec: TrainSpec) -> list[str]:
    """What a client-level guarantee hides and a deployment cannot help revealing."""
    hider = hiding(spec.defences)
    if hider is None or spec.federation.sampling != "poisson":
        return []  # a fixed number takes part, by a schedule that is public
    return [
        f"{defence.name} hides who takes part in a round, and with {hider.name} the clients of a round learn of each "
        "other"
        for defence in spec.defences
        if defence.protects == "client" and defence.neighbours == "add-remove"
    ]


def own_entries(value: Any, larger: Any, client: int, clients: int) -> Any:
    """What defences prepared, with None in the place of other clients' entries in every list over clients.

    larger: what they would prepare with one client more, which tells lists over clients from others that happen to be
    as long; None: every list of that length counts as one over clients. Of a mapping by client only the client's own
    entry stays.
    """
    if isinstance(value, dict):
        inside = larger if isinstance(larger, dict) else {}
        if value and set(value) == {str(i) for i in range(clients)} and set(inside) != set(value):
            return {str(client): value[str(client)]}
        return {name: own_entries(each, inside.get(name), client, clients) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) == clients and (not isinstance(larger, list) or len(larger) != clients):
        return [each if i == client else None for i, each in enumerate(value)]
    inner = larger if isinstance(larger, list) and len(larger) == len(value) else [None] * len(value)
    return [own_entries(each, other, client, clients) for each, other in zip(value, inner, strict=True)]
