"""The geometric median, by the smoothed Weiszfeld algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import combine, squared_norms
from harness_plugins.distances import scaled_down, shared_gram

if TYPE_CHECKING:
    from torch import Tensor


class GeometricMedian(Aggregator):
    """The point with the least sum of distances to the updates, as in RFA.

    Smoothed Weiszfeld: v <- sum_i b_i x_i / sum_i b_i with b_i = 1 / max(nu, ||v - x_i||), all updates
    weighing the same: the weights of the context are ignored, since a client could claim any.
    Correct up to f < n/2 malicious clients; f itself is not used.

    nu is a length, the one below which distances count as nu. Where all rows lie within nu of their mean, the
    mean is the result, and one malicious row in as small a ball counts like any other: nu must be small beside
    the distances between honest updates, which shrink with the learning rate. It is the published one by default.

    Every iterate is a combination of the rows, v = sum_i w_i x_i with sum_i w_i = 1, so its distances follow
    from the Gram matrix G of the rows about any origin: ||v - x_i||^2 = G_ii - 2 (G w)_i + w'Gw. An iteration
    costs O(n^2). From the mean, each takes the share of f far outliers down to about f / (n - f) of what it was;
    from zero they weigh little at once.

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
        1e-6,
        gt=0,
        allow_inf_nan=False,
        description="smoothing: distances below this length count as this, in units of an update",
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
        rows, scale = scaled_down(updates)
        nu = self.nu * scale
        gram = shared_gram(rows)
        if self.start == "zero":  # not among the combinations with weights of sum 1, but its successor is
            weights = _reweigh(squared_norms(rows).sqrt(), nu)
            done = 1
        else:
            weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
            done = 0
        while done < self.iterations:
            towards = gram @ weights
            distances = (gram.diagonal() - 2 * towards + weights @ towards).clamp(min=0).sqrt()
            before, weights = weights, _reweigh(distances, nu)
            done += 1
            change = weights - before
            step = (change @ gram @ change).clamp(min=0).sqrt()
            if step < self.tolerance * distances.median().clamp(min=nu):
                break
        context.report(iterations=done)
        return combine(weights[None], updates)[0]


def _reweigh(distances: Tensor, nu: float) -> Tensor:
    inverse = 1 / distances.clamp(min=nu)
    return inverse / inverse.sum()


PLUGINS = (GeometricMedian,)
