"""Rules that treat each coordinate by itself: the median and the trimmed mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Reference
from harness_plugins.aggregators._tolerance import NeedsMajority, tolerated
from harness_plugins.columns import mean_between

if TYPE_CHECKING:
    from torch import Tensor

YIN = Reference(
    title="Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    authors="Yin, Chen, Ramchandran, Bartlett",
    venue="ICML",
    year=2018,
    url="https://proceedings.mlr.press/v80/yin18a.html",
)


class Median(Aggregator):
    """The coordinate-wise median (Definition 1); for even n, the mean of the middle two values.

    Correct up to f < n/2 malicious clients; f itself is not used. Weights are ignored, since a client
    could claim any.

    updates (n, d) -> (d,). Costs O(n log n d).
    """

    name: ClassVar[str] = "median"
    reference: ClassVar[Reference | None] = YIN

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        tolerated(self, updates, context)
        n = len(updates)
        return mean_between(updates, (n - 1) // 2, n // 2 + 1)


class TrimmedMean(NeedsMajority):
    """The coordinate-wise mean after dropping the f largest and the f smallest values (Definition 2).

    The paper trims a fraction beta of the values at each end; here beta = f/n. With f = 0 it is the
    unweighted mean. Weights are ignored: a client could claim any.

    updates (n, d) -> (d,). Needs n > 2f, else PluginError. Costs O(n log n d).
    """

    name: ClassVar[str] = "trimmed-mean"
    reference: ClassVar[Reference | None] = YIN

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        f = tolerated(self, updates, context)
        return mean_between(updates, f, len(updates) - f)


PLUGINS = (Median, TrimmedMean)
