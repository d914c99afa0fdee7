"""Who takes part and who is malicious: counts and seeded choices, known before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.random import derive, numpy_generator

if TYPE_CHECKING:
    from harness.contracts.privacy import TrainingVariant


def clients_per_round(clients: int, participation: float) -> int:
    """How many clients take part in a round, at least one."""
    return max(1, round(participation * clients))


def participants(
    clients: int,
    participation: float,
    rounds: int,
    seed: int,
    purpose: str,
    always: Sequence[int] = (),
    sampling: str = "fixed",
) -> list[list[int]]:
    """The clients of each round, sorted; the same for every cell of a seed.

    sampling: `fixed`, the same number of clients in each round, or `poisson`, each client by its own coin of
    probability `participation`, so that a round may be empty. always: clients that take part in every round; with
    `fixed` they replace the last ones drawn.
    """
    if sampling == "poisson":
        coins = [numpy_generator(seed, "participants", purpose, r).random(clients) for r in range(rounds)]
        return [[i for i in range(clients) if i in always or row[i] < participation] for row in coins]
    count = clients_per_round(clients, participation)
    if count == clients:
        return [list(range(clients))] * rounds
    schedule = []
    for r in range(rounds):
        drawn = numpy_generator(seed, "participants", purpose, r).choice(clients, count, replace=False)
        others = [i for i in drawn.tolist() if i not in always]
        schedule.append(sorted([*always[:count], *others[: count - len(always[:count])]]))
    return schedule


def fine_tuning_purpose(position: int, number: int) -> str:
    """The purpose that a compressor's fine-tuning draws by. position: in its chain; number: fine-tunings before it."""
    return f"fine-tune {position}.{number}"


def own_seed(seed: int, variant: TrainingVariant | None) -> int:
    """The seed of a training's initial weights, partition, rounds and batches: the scenario's, or a shadow model's own.

    A shadow model is another draw of the whole training (Carlini et al. 2022), as the adversary does not know what the
    target drew.
    """
    if variant is None or variant.keep is None:
        return seed
    return derive(seed, "variant", variant.name)


def malicious_count(clients: int, share: float) -> int:
    """⌊share · clients⌋, with 0.2 · 10 counted as 2 whatever the rounding of floats."""
    return math.floor(share * clients + 1e-9)


def malicious_clients(clients: int, share: float, seed: int) -> list[int]:
    """Which clients are malicious: a seeded choice of `malicious_count` of them, sorted."""
    count = malicious_count(clients, share)
    return sorted(numpy_generator(seed, "malicious").choice(clients, count, replace=False).tolist())


def tolerated(clients: int, tolerance: float) -> int:
    """f, the number of Byzantine clients among `clients` rows that robust rules are told: ⌈tolerance · clients⌉."""
    return math.ceil(tolerance * clients - 1e-9)
