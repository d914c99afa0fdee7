"""Majority vote on signs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import blocks

if TYPE_CHECKING:
    from torch import Tensor


class MajorityVote(Aggregator):
    """step times the sign of the sum of the updates' signs, coordinate by coordinate; 0 where the vote is a tie.

    The server of signSGD with majority vote (Algorithm 1): every client has one vote a coordinate, however large its
    value. Fewer than half of the clients cannot turn a coordinate on which all others agree. f and the weights are
    not used.

    updates (n, d) -> (d,). Costs O(n d).
    """

    name: ClassVar[str] = "majority-vote"
    reference: ClassVar[Reference | None] = Reference(
        title="signSGD with Majority Vote is Communication Efficient and Fault Tolerant",
        authors="Bernstein, Zhao, Azizzadenesheli, Anandkumar", venue="ICLR", year=2019,
        url="https://arxiv.org/abs/1810.05291",
    )  # fmt: skip

    step: float = Field(1e-3, gt=0, allow_inf_nan=False, description="size of the step in each coordinate")

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        tolerated(self, updates, context)
        result = updates.new_empty(updates.shape[1])
        for columns, block in blocks(updates):
            result[columns] = (self.step * block.sign().sum(0).sign()).to(result)
        return result


PLUGINS = (MajorityVote,)
