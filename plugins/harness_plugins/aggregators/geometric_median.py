"""The geometric median, by the smoothed Weiszfeld algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._columns import combine, squared_norms, tolerated
from harness_plugins.aggregators._distances import squared_distances

if TYPE_CHECKING:
    from torch import Tensor


class GeometricMedian(Aggregator):
    """The point with the least sum of distances to the updates, as in RFA.

    Smoothed Weiszfeld: v <- sum_i b_i x_i / sum_i b_i with b_i = 1 / max(nu, ||v - x_i||), all updates
    weighing the same: the weights of the context are ignored, since a client could claim any.
    Correct up to f < n/2 malicious clients; f itself is not used.

    Every iterate is a combination of the rows, v = sum_i w_i x_i with sum_i w_i = 1, so its distances
    follow from those between rows: ||v - x_i||^2 = (D w)_i - w'Dw / 2. An iteration costs
    O(n^2).

    updates (n, d) -> (d,). Costs O(n^2 d), however many iterations it takes.
    """

    name: ClassVar[str] = "geometric-median"
    reference: ClassVar[Reference | None] = Reference(
        title="Robust Aggregation for Federated Learning",
        authors="Pillutla, Kakade, Harchaoui",
        venue="IEEE Transactions on Signal Processing 70",
        year=2022,
        url="https://arxiv.org/abs/1912.13445",
    )

    nu: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="smoothing: the least distance divided by, in units of an update",
    )
    iterations: int = Field(100, ge=1, description="Weiszfeld iterations at most")
    tolerance: float = Field(
        1e-6,
        ge=0,
        allow_inf_nan=False,
        description="stop after a step shorter than this share of the median distance to updates; 0: never",
    )
    start: Literal["mean", "zero"] = Field(
        "mean", description="first iterate: the mean of the updates, or zero"
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        squared = squared_distances(updates)
        if self.start == "zero":  # not among the combinations with weights of sum 1, but its successor is
            weights = self._reweigh(squared_norms(updates).sqrt())
            done = 1
        else:
            weights = torch.full((len(updates),), 1 / len(updates), dtype=torch.float64)
            done = 0
        while done < self.iterations:
            towards = squared @ weights
            distances = (towards - weights @ towards / 2).clamp(min=0).sqrt()
            before, weights = weights, self._reweigh(distances)
            done += 1
            change = weights - before
            step = (-(change @ squared @ change) / 2).clamp(min=0).sqrt()
            if step < self.tolerance * distances.median().clamp(min=self.nu):
                break
        context.report(iterations=done)
        return combine(weights[None], updates)[0]

    def _reweigh(self, distances: Tensor) -> Tensor:
        inverse = 1 / distances.clamp(min=self.nu)
        return inverse / inverse.sum()


PLUGINS = (GeometricMedian,)
