"""Pre-aggregators that clip norms: at a given radius, or at one that the updates themselves give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Field, PreAggregator, Reference
from harness_plugins.aggregators._tolerance import NeedsMajority, tolerated
from harness_plugins.columns import clip_factors, scaled, squared_norms

if TYPE_CHECKING:
    from torch import Tensor


class Clipping(PreAggregator):
    """Scales every update down to the norm tau where it is longer: x_i min(1, tau / ||x_i||).

    n, f, weights and the order of the rows stay.

    updates (n, d) -> (n, d). Costs O(n d).
    """

    name: ClassVar[str] = "clipping"
    reference: ClassVar[Reference | None] = Reference(
        title="Understanding Gradient Clipping in Private SGD: A Geometric Perspective",
        authors="Chen, Wu, Hong",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2006.15429",
    )

    tau: float = Field(gt=0, allow_inf_nan=False, description="largest norm, in units of an update")

    def transform(self, updates: Tensor, context: AggregationContext) -> tuple[Tensor, AggregationContext]:
        tolerated(self, updates, context)
        return scaled(updates, clip_factors(squared_norms(updates).sqrt(), self.tau)), context


class AdaptiveRobustClipping(NeedsMajority, PreAggregator):
    """Clips the k = floor(2 (f/n) (n - f)) longest updates to the (n - k)th smallest norm (ARC).

    Unlike a fixed radius this keeps the guarantees of the robust rule that follows. n, f, weights and the
    order of the rows stay.

    updates (n, d) -> (n, d). Needs n > 2f, else PluginError. Costs O(n d).
    """

    name: ClassVar[str] = "arc"
    reference: ClassVar[Reference | None] = Reference(
        title="Adaptive Gradient Clipping for Robust Federated Learning",
        authors="Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan",
        venue="ICLR",
        year=2025,
        url="https://arxiv.org/abs/2405.14432",
    )

    def transform(self, updates: Tensor, context: AggregationContext) -> tuple[Tensor, AggregationContext]:
        n, f = len(updates), tolerated(self, updates, context)
        k = math.floor(2 * f * (n - f) / n)
        norms = squared_norms(updates).sqrt()
        radius = norms.sort().values[n - k - 1]
        return scaled(updates, clip_factors(norms, radius)), context


PLUGINS = (Clipping, AdaptiveRobustClipping)
