"""The weighted mean of the updates: no protection against malicious clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, PluginError, Reference
from harness_plugins.aggregators._tolerance import tolerated

if TYPE_CHECKING:
    from torch import Tensor


class Mean(Aggregator):
    """The mean of the updates, weighted by the context: sum_i weights_i x_i.

    With weights in proportion to each client's records this is federated averaging (Algorithm 1).
    One malicious client can move the result anywhere.

    updates (n, d) -> (d,). Costs O(n d). Raises PluginError where weights are not (n,).
    """

    name: ClassVar[str] = "mean"
    sum_only: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("fedavg",)
    reference: ClassVar[Reference | None] = Reference(
        title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
        authors="McMahan, Moore, Ramage, Hampson, Agüera y Arcas",
        venue="AISTATS",
        year=2017,
        url="https://arxiv.org/abs/1602.05629",
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        weights = context.weights
        if updates.ndim != 2 or weights.shape != updates.shape[:1] or not updates.is_floating_point():
            tolerated(self, updates, context)  # says what is wrong with the updates, if anything
            raise PluginError(
                f"mean: weights must be ({len(updates)},), one a row, not {tuple(weights.shape)}"
            )
        share = None if weights.is_cuda else _common(weights)
        if share is not None:
            return updates.sum(0).mul_(share)  # half the time of the product with weights
        return weights.to(updates) @ updates


def _common(weights: Tensor) -> float | None:
    """The weight that all rows have, or None."""
    values: list[float] = weights.tolist()  # on a few numbers a list's methods cost less than tensors'
    return values[0] if values and values.count(values[0]) == len(values) else None


PLUGINS = (Mean,)
