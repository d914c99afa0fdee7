"""The weighted mean of the updates: no protection against malicious clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, PluginError, Reference
from harness_plugins.aggregators._columns import tolerated

if TYPE_CHECKING:
    from torch import Tensor


class Mean(Aggregator):
    """The mean of the updates, weighted by the context: sum_i weights_i x_i.

    With weights in proportion to each client's records this is federated averaging (Algorithm 1).
    One malicious client can move the result anywhere.

    updates (n, d) -> (d,). Costs O(n d). Raises PluginError where weights are not (n,).
    """

    name: ClassVar[str] = "mean"
    aliases: ClassVar[tuple[str, ...]] = ("fedavg",)
    reference: ClassVar[Reference | None] = Reference(
        title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
        authors="McMahan, Moore, Ramage, Hampson, Agüera y Arcas",
        venue="AISTATS",
        year=2017,
        url="https://arxiv.org/abs/1602.05629",
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        tolerated(self, updates, context)
        if context.weights.shape != (len(updates),):
            raise PluginError(
                f"mean: weights must be ({len(updates)},), one a row, not {tuple(context.weights.shape)}"
            )
        weights = context.weights.to(updates)
        if bool((weights == 1 / len(updates)).all()):
            return updates.mean(0)  # up to twice as fast as the product with weights
        return weights @ updates


PLUGINS = (Mean,)
