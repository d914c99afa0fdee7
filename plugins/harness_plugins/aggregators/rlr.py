"""Robust learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Field, PluginError, Reference
from harness_plugins.aggregators._counts import Counting
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import blocks, combine

if TYPE_CHECKING:
    from torch import Tensor


class RobustLearningRate(Counting):
    """The weighted mean, turned round in every coordinate where too few clients agree on the sign (RLR).

    The learning rate of coordinate k is +1 where |sum_i sign(x_ik)| >= theta, else -1 (equation 1), times the
    mean. The paper takes theta from f + 1 to n - f; without one it is f + 1. Where rows were dropped it is n
    at most.

    updates (n, d) -> (d,). Needs theta <= n, else PluginError. Costs O(n d).
    """

    name: ClassVar[str] = "rlr"
    reference: ClassVar[Reference | None] = Reference(
        title="Defending against Backdoors in Federated Learning with Robust Learning Rate",
        authors="Ozdayi, Kantarcioglu, Gel",
        venue="AAAI",
        year=2021,
        url="https://arxiv.org/abs/2007.03767",
    )

    threshold: int | None = Field(
        None, ge=1, description="net number of clients that must agree on a sign (theta); null: f + 1"
    )

    def check(self, n: int, f: int) -> tuple[int, int]:
        threshold = self._threshold(n, f)
        if threshold > n:
            raise PluginError(f"rlr: {n} updates can never reach the threshold {threshold}")
        return n, f

    def _threshold(self, n: int, f: int) -> int:
        if self.threshold is None:
            return self.in_force(f) + 1
        return self.at_most(self.threshold, n)

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        tolerated(self, updates, context)
        threshold = self._threshold(len(updates), context.f)
        result = combine(context.weights.cpu().double()[None], updates)[0]
        for columns, block in blocks(updates):
            agree = block.sign().sum(0).abs() >= threshold
            part = result[columns]
            result[columns] = part.where(agree.to(part.device), -part)
        return result


PLUGINS = (RobustLearningRate,)
