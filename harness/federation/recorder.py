"""What a variant's training keeps for privacy attacks: recorded rounds, and how far canaries moved the release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.federation.vector import mean_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness.federation.canaries import Planting
    from harness.federation.local import Start


class Recorder:
    """Watches a federation. rounds: how many are recorded in full, evenly spread over `total`.

    clients: how many are real; canary clients are numbered after them. counts: how much each client's update counts in
    the server's sum; () where all count alike.
    """

    def __init__(
        self, rounds: int, total: int, planting: Planting | None, clients: int, counts: Sequence[int] = ()
    ) -> None:
        self.wanted = {round(r) for r in np.linspace(0, total - 1, min(rounds, total)).tolist()}
        self.planting = planting
        self.clients = clients
        self.counts = counts
        self.rounds: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self._first: Tensor | None = None  # the global weights at the canaries' coordinates, before any round
        self._moved: dict[str, Tensor] = {}  # sums over rounds of what was sent, at these coordinates

    def __call__(self, start: Start, updates: dict[int, Tensor]) -> None:
        if start.round in self.wanted:
            number = len(self.rounds)
            self.rounds.append({"round": start.round, "clients": list(updates)})
            self.tensors[f"weights.{number}"] = start.weights.clone()
            rows = list(updates.values())
            self.tensors[f"updates.{number}"] = (
                torch.stack(rows) if rows else start.weights.new_empty(0, len(start.weights))
            )
        if self.planting is not None and self.planting.canaries.form == "gradient":
            self._follow(self.planting, start, updates)

    def _follow(self, planting: Planting, start: Start, updates: dict[int, Tensor]) -> None:
        index = planting.coordinates
        if self._first is None:
            self._first = start.weights[index].clone()
            self._moved = {name: torch.zeros_like(self._first) for name in ("updates", "sum")}
        if updates:
            counts = [self.counts[i] if self.counts else 1 for i in updates]
            self._moved["sum"] += mean_of(torch.stack([update[index] for update in updates.values()]), counts)
        if planting.canaries.unit == "client":
            for position, number in enumerate(planting.clients):
                if self.clients + position in updates:
                    self._moved["updates"][number] += updates[self.clients + position][index[number]]
        elif planting.client in updates:
            self._moved["updates"] += updates[planting.client][index]

    def signals(self, final: Tensor) -> dict[str, list[float]]:
        """How far training moved against each canary's gradient, one number per canary; {} without gradient canaries.

        updates: its client's updates, summed over rounds. sum: the rounds' mean updates of all clients, summed. models:
        the global weights, from first to last. final (d,): the trained global weights.
        """
        if self.planting is None or self._first is None:
            return {}
        moved = self._moved | {"models": final[self.planting.coordinates] - self._first}
        return {name: (-value).double().tolist() for name, value in moved.items()}
