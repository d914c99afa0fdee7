"""Norm clipping with an average, and optionally a little noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import clip_factors, combine, squared_norms

if TYPE_CHECKING:
    from torch import Tensor


class NormClipping(Aggregator):
    """The weighted mean of the updates, each scaled down to a largest norm: sum_i w_i x_i min(1, M / ||x_i||).

    With `noise`, Gaussian noise of that standard deviation is added to each coordinate of the result: the
    paper's weak differential privacy, which promises nothing and only blurs a backdoor. f is not used.

    updates (n, d) -> (d,). Costs O(n d). Noise comes from the context's generator.
    """

    name: ClassVar[str] = "norm-clipping"
    reference: ClassVar[Reference | None] = Reference(
        title="Can You Really Backdoor Federated Learning?",
        authors="Sun, Kairouz, Suresh, McMahan",
        venue="arXiv 1911.07963",
        year=2019,
        url="https://arxiv.org/abs/1911.07963",
    )

    threshold: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="largest norm M, in units of an update; null: the median of the round's norms",
    )
    noise: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="standard deviation added to a coordinate of the result"
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        norms = squared_norms(updates).sqrt()
        radius = norms.quantile(0.5) if self.threshold is None else self.threshold
        weights = context.weights.cpu().double() * clip_factors(norms, radius)
        result = combine(weights[None], updates)[0]
        if self.noise:
            drawn = torch.randn(result.shape, generator=context.generator, device=context.generator.device)
            result = result + self.noise * drawn.to(result)
        return result


PLUGINS = (NormClipping,)
