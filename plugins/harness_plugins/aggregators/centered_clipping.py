"""Centered clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import squared_distances_to

if TYPE_CHECKING:
    from torch import Tensor


class CenteredClipping(Aggregator):
    """Moves a running guess v by the mean of the updates' clipped deviations from it.

    `iterations` times: v <- v + (1/n) sum_i (x_i - v) min(1, tau / ||x_i - v||). v starts at zero in the
    first round and persists: each round starts from the last result (Algorithm 1). The published experiments
    take tau = 10 for plain gradients, 10 / (1 - beta) with client momentum beta, and one iteration. An update is
    about the learning rate times the local steps of a gradient, so tau has to be chosen for it: 10 would clip
    nothing. f and the weights are not used.

    updates (n, d) -> (d,). Costs O(iterations n d). Keeps v (d,) between rounds.
    """

    name: ClassVar[str] = "centered-clipping"
    reference: ClassVar[Reference | None] = Reference(
        title="Learning from History for Byzantine Robust Optimization",
        authors="Karimireddy, He, Jaggi",
        venue="ICML",
        year=2021,
        url="https://arxiv.org/abs/2012.10333",
    )

    tau: float = Field(gt=0, allow_inf_nan=False, description="clipping radius, in units of an update")
    iterations: int = Field(1, ge=1, description="clipping steps in a round")

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        n = len(updates)
        guess = context.state.get("centre")
        guess = torch.zeros_like(updates[0]) if guess is None else guess.to(updates)
        for _ in range(self.iterations):
            norms = squared_distances_to(updates, guess).sqrt_().clamp_(min=self.tau)
            share = (self.tau / n / norms).to(guess)
            guess = torch.addmv(guess * (1 - share.sum()), updates.detach().T, share)
        context.state["centre"] = guess.clone()
        return guess


PLUGINS = (CenteredClipping,)
