"""Krum and Multi-Krum: keep the updates that lie closest to most others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Field, PluginError, Reference
from harness_plugins.aggregators._counts import Counting
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import mean_of
from harness_plugins.distances import krum_order

if TYPE_CHECKING:
    from torch import Tensor

BLANCHARD = Reference(
    title="Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    authors="Blanchard, El Mhamdi, Guerraoui, Stainer",
    venue="NeurIPS",
    year=2017,
    url="https://arxiv.org/abs/1703.02757",
)


def _check(rule: Krum | MultiKrum, n: int, f: int) -> None:
    if n <= 2 * f + 2:
        raise PluginError(f"{rule.name} needs n > 2f + 2 updates: n = {n}, f = {f}")
    if rule.neighbours is not None and rule.at_most(rule.neighbours, n - 1) > n - 1:
        raise PluginError(f"{rule.name}: neighbours = {rule.neighbours}, but a row has only {n - 1} others")


def _neighbours(rule: Krum | MultiKrum, n: int, f: int) -> int:
    return n - f - 2 if rule.neighbours is None else rule.at_most(rule.neighbours, n - 1)


class Krum(Counting):
    """The update closest to its neighbours: the row i with the least sum_{j -> i} ||x_i - x_j||^2.

    The sum runs over the n - f - 2 nearest other rows. Some implementations
    take n - f - 1: set `neighbours` for those; where rows were dropped it is n - 1 at most. Ties go to the
    lower row. Weights are ignored.

    updates (n, d) -> (d,). Needs n > 2f + 2, else PluginError. Costs O(n^2 d). Reports the row kept.
    """

    name: ClassVar[str] = "krum"
    reference: ClassVar[Reference | None] = BLANCHARD

    neighbours: int | None = Field(
        None, ge=1, description="nearest other updates summed over; null: n - f - 2, as published"
    )

    def check(self, n: int, f: int) -> tuple[int, int]:
        _check(self, n, self.in_force(f))
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        f = tolerated(self, updates, context)
        best = krum_order(updates, _neighbours(self, len(updates), f))[0]
        context.report(kept=[best])
        return updates[best].clone()


class MultiKrum(Counting):
    """The mean of the m updates with the best Krum scores.

    Scores are computed once, over all n rows, as in Krum. m = 1 is Krum, m = n the mean; the paper
    proves resilience for m <= n - f - 2, and m = n - f is the usual choice. Where rows were dropped, m is n
    at most, and `neighbours` n - 1. Weights are ignored.

    updates (n, d) -> (d,). Needs n > 2f + 2 and m <= n, else PluginError. Costs O(n^2 d).
    Reports the rows kept.
    """

    name: ClassVar[str] = "multi-krum"
    reference: ClassVar[Reference | None] = BLANCHARD

    m: int | None = Field(None, ge=1, description="updates averaged; null: n - f")
    neighbours: int | None = Field(
        None, ge=1, description="nearest other updates summed over; null: n - f - 2, as published"
    )

    def check(self, n: int, f: int) -> tuple[int, int]:
        _check(self, n, self.in_force(f))
        if self.m is not None and self.at_most(self.m, n) > n:
            raise PluginError(f"multi-krum: m = {self.m} updates to average, but there are only {n}")
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        f = tolerated(self, updates, context)
        n = len(updates)
        m = n - f if self.m is None else self.at_most(self.m, n)
        kept = sorted(krum_order(updates, _neighbours(self, n, f))[:m])
        context.report(kept=kept)
        return mean_of(updates, kept)


PLUGINS = (Krum, MultiKrum)
