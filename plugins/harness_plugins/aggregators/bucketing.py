"""Bucketing, a pre-aggregator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from harness.api import MERGED, AggregationContext, Field, PluginError, PreAggregator, Reference
from harness_plugins.aggregators._tolerance import tolerated

if TYPE_CHECKING:
    from torch import Tensor


class Bucketing(PreAggregator):
    """Replaces the updates by the means of random buckets of s, to make heterogeneous updates alike.

    A seeded permutation is cut into n' = ceil(n / s) buckets, the last of which may be smaller (Algorithm 1).
    In the worst case each malicious client spoils a bucket of its own, so f stays and its share grows to f /
    n': that is what the next rule is told and checked against (ByzFL leaves n, f as they were). A bucket
    stands for several clients and has no weight of its own: weights become uniform, and nobody can be singled
    out.

    updates (n, d) -> (n', d). Needs f < n', else PluginError. Costs O(n d).
    """

    name: ClassVar[str] = "bucketing"
    merges_clients: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
        authors="Karimireddy, He, Jaggi",
        venue="ICLR",
        year=2022,
        url="https://arxiv.org/abs/2006.09365",
    )

    s: int = Field(2, ge=1, description="updates in a bucket")

    def check(self, n: int, f: int) -> tuple[int, int]:
        buckets = math.ceil(n / self.s)
        if f >= buckets:
            raise PluginError(f"bucketing makes {buckets} buckets of {n} updates, all spoilt by f = {f}")
        return buckets, f

    def transform(self, updates: Tensor, context: AggregationContext) -> tuple[Tensor, AggregationContext]:
        import torch
        from torch.nn import functional

        tolerated(self, updates, context)
        n = len(updates)
        order = torch.randperm(n, generator=context.generator, device=context.generator.device).cpu()
        buckets = math.ceil(n / self.s)
        starts = torch.arange(0, n, self.s, device=updates.device)
        order = order.to(updates.device)
        # Gathers and averages at once.
        rows = functional.embedding_bag(order, updates.detach(), starts, mode="mean")
        weights = context.weights.new_full((buckets,), 1 / buckets)
        return rows, context.with_rows(weights, [MERGED] * buckets)


PLUGINS = (Bucketing,)
