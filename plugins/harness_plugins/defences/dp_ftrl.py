"""Differentially private follow-the-regularised-leader: noise on prefix sums of updates, from a binary tree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.api import (
    AggregationContext,
    Aggregator,
    Field,
    Guarantee,
    PrepareContext,
    Reference,
)
from harness_plugins.defences._client_level import (
    ClientLevelDP,
    NoisyMean,
    calibrated,
    client_guarantee,
    expected_clients,
    server_noise,
)

if TYPE_CHECKING:
    from torch import Tensor


class DPFTRL(ClientLevelDP):
    """Noises the prefix sums of clipped updates by tree aggregation: client-level DP without random sampling.

    After round t the server holds (sum_{s<=t} sum_i clip(x_i^s, C) + N_t) / n, n the clients of a round, where N_t
    comes from a binary tree over rounds: every completed node, of rounds [j 2^h, (j+1) 2^h), has noise
    N(0, (z C)^2 I), and N_t adds the nodes that make up rounds 1 to t. With the server optimiser fedavg this is
    federated FTRL with the regulariser |w - w_0|^2 / (2 lr); server momentum is post-processing.

    refined: node estimates also use their children's noise, weighted by inverse variance, which costs nothing
    (Honaker 2015, the bottom-up estimator; Kairouz et al. use it in their experiments).

    Accounting: a client that takes part in k_v of the rounds under node v moves the tree by at most
    C sqrt(sum_v k_v^2), attained where its updates all point one way (the tree's matrix is non-negative); the
    release is one Gaussian mechanism of that sensitivity, composed with a new tree for every later training. It
    pays where a client takes part rarely: in every round of many, dp-fedavg is the better choice. The schedule is
    public; with Poisson sampling of clients it is not, and every client is charged for all rounds.

    Source: Kairouz et al. (2021), algorithm 1 with batches of clients (section 5.2, no restarts). The noise fits a
    mean: another rule breaks the guarantee. Memory: d log2(rounds) numbers.
    """

    name = "dp-ftrl"
    reference = Reference(
        title="Practical and private (deep) learning without sampling or shuffling",
        authors="Kairouz, McMahan, Song, Thakkar, Thakurta, Xu",
        venue="ICML 2021",
        year=2021,
        url="https://arxiv.org/abs/2103.00039",
    )

    refined: bool = Field(True, description="let nodes use their children's noise too")

    def prepare(self, context: PrepareContext) -> dict[str, Any]:
        delta = self.settled_delta(context)
        schedule = context.schedule
        if context.client_rate is not None:
            schedule = [list(range(len(context.sizes)))] * context.rounds
        sensitivities = [tree_sensitivity([i in ids for ids in schedule]) for i in range(len(context.sizes))]
        widest = max(sensitivities)
        z = self.settled_noise(context, lambda e: widest * calibrated(e, delta, 1.0, [1], self.accountant))
        return {
            "noise_multiplier": z, "sensitivities": sensitivities, "delta": delta, "accountant": self.accountant,
            "clip_norm": self.clip_norm, "rounds": context.rounds, "expected_clients": expected_clients(context),
        }  # fmt: skip

    def guarantee(self, history: list[dict[str, Any]]) -> Guarantee | None:
        if not history:
            return None
        segments: list[list[tuple[float, float, int]]] = []
        for i in range(len(history[0]["sensitivities"])):
            moved = [(t["noise_multiplier"], t["sensitivities"][i]) for t in history]
            segments.append([(z / s, 1.0, 1) for z, s in moved if s])
        sampling = {"method": "none", "rate": 1.0, "steps": sum(t["rounds"] for t in history)}
        return client_guarantee(
            self.name, history, segments, sampling,
            against="recipients", noise_multiplier=history[0]["noise_multiplier"],
        )  # fmt: skip

    def aggregator(self, aggregator: Aggregator, prepared: dict[str, Any]) -> Aggregator:
        deviation = prepared["noise_multiplier"] * self.clip_norm

        def mechanism(rows: Tensor, context: AggregationContext) -> tuple[float, Tensor]:
            before = context.state.get("noise")
            context.state["noise"] = self._prefix(rows.new_empty(rows.shape[1]), deviation, context)
            return self.clip_norm, context.state["noise"] - (0 if before is None else before)

        return NoisyMean(rule=aggregator, expected=prepared["expected_clients"], mechanism=mechanism)

    def _prefix(self, like: Tensor, deviation: float, context: AggregationContext) -> Tensor:
        """N_t (d,): adds round t as a leaf, completes the nodes that end with it, and sums those left."""
        nodes: dict[int, Tensor] = context.state.setdefault("nodes", {})
        level, estimate = 0, server_noise(like, deviation, context)
        while level in nodes:
            children = nodes.pop(level) + estimate
            level += 1
            own = server_noise(like, deviation, context)
            share = own_share(level) if self.refined else 1.0
            estimate = share * own + (1 - share) * children
        nodes[level] = estimate
        total = sum(nodes.values())
        assert not isinstance(total, int)
        return total


def own_share(level: int) -> float:
    """The weight of a node's own noise against its two children's refined estimates, by inverse variance."""
    variance = 1.0  # of a refined estimate, in units of a node's
    share = 1.0
    for _ in range(level):
        share = 2 * variance / (1 + 2 * variance)
        variance = share
    return share


def tree_sensitivity(takes_part: list[bool]) -> float:
    """sqrt(sum over completed nodes of (rounds under it that the client takes part in)^2), in clip norms."""
    total, size, rounds = 0, 1, len(takes_part)
    while size <= rounds:
        for start in range(0, rounds - size + 1, size):
            total += sum(takes_part[start : start + size]) ** 2
        size *= 2
    return math.sqrt(total)


PLUGINS = (DPFTRL,)
