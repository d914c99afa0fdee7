"""The mean around the median."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Reference
from harness_plugins.aggregators._tolerance import NeedsMajority, tolerated
from harness_plugins.columns import blocks, nearest_to_median, sort_clients

if TYPE_CHECKING:
    from torch import Tensor


class MeanAroundMedian(NeedsMajority):
    """Per coordinate, the mean of the n - f values nearest the median (section 3).

    The median of an even n is the mean of the middle two. Of two values that are equally far the lower one
    counts. Weights are ignored: a client could claim any.

    updates (n, d) -> (d,). Needs n > 2f, else PluginError. Costs O(n log n d).
    """

    name: ClassVar[str] = "meamed"
    reference: ClassVar[Reference | None] = Reference(
        title="Generalized Byzantine-tolerant SGD",
        authors="Xie, Koyejo, Gupta",
        venue="arXiv 1802.10116",
        year=2018,
        url="https://arxiv.org/abs/1802.10116",
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        f = tolerated(self, updates, context)
        result = updates.new_empty(updates.shape[1])
        for columns, block in blocks(updates):
            result[columns] = nearest_to_median(sort_clients(block), len(updates) - f).to(result)
        return result


PLUGINS = (MeanAroundMedian,)
