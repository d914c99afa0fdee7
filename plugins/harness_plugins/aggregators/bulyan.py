"""Bulyan: Krum, repeated, then a mean around the median."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, PluginError, Reference
from harness_plugins.aggregators._tolerance import Tolerant, tolerated
from harness_plugins.columns import blocks, nearest_to_median, sort_clients
from harness_plugins.distances import squared_distances

if TYPE_CHECKING:
    from torch import Tensor


class Bulyan(Tolerant):
    """Selects theta = n - 2f rows by Krum, one at a time, then takes the middle of each coordinate.

    Selection: Krum among the rows left picks the next one (m rows left: the least sum of squared distances to
    the m - f - 2 nearest other rows left, one at least). Then, per coordinate, the mean of the theta - 2f
    values of the selected rows nearest their median. Some implementations select the theta best scores of a
    single Krum: that is not this rule. Ties go to the lower row. Weights are ignored.

    updates (n, d) -> (d,). Needs n >= 4f + 3, else PluginError. Costs O(n^2 d + n^3). Reports the rows
    selected.
    """

    name: ClassVar[str] = "bulyan"
    reference: ClassVar[Reference | None] = Reference(
        title="The Hidden Vulnerability of Distributed Learning in Byzantium",
        authors="El Mhamdi, Guerraoui, Rouault",
        venue="ICML",
        year=2018,
        url="https://proceedings.mlr.press/v80/mhamdi18a.html",
    )

    def check(self, n: int, f: int) -> tuple[int, int]:
        own = self.in_force(f)
        if n < 4 * own + 3:
            raise PluginError(f"bulyan needs n >= 4f + 3 updates: n = {n}, f = {own}")
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        f = tolerated(self, updates, context)
        theta = len(updates) - 2 * f
        kept = sorted(self._select(updates, theta, f))
        context.report(kept=kept)
        result = updates.new_empty(updates.shape[1])
        for columns, block in blocks(updates):
            middle = nearest_to_median(sort_clients(block[kept]), theta - 2 * f)
            result[columns] = middle.to(result)
        return result

    def _select(self, updates: Tensor, theta: int, f: int) -> list[int]:
        import torch

        distances = squared_distances(updates).fill_diagonal_(torch.inf)
        sorted_distances, order = distances.sort(dim=1, stable=True)
        left = torch.ones(len(updates), dtype=torch.bool)
        chosen: list[int] = []
        for _ in range(theta):
            neighbours = max(1, int(left.sum()) - f - 2)
            among = left[order]  # row i: which of its others, nearest first, are left
            counted = among & (among.cumsum(1) <= neighbours)
            # A row that is alone has only itself, infinitely far, and is chosen all the same.
            scores = sorted_distances.masked_fill(~counted, 0).sum(1)
            scores = torch.where(left, scores, torch.nan)
            best = int(scores.nan_to_num(nan=torch.inf, posinf=torch.finfo(scores.dtype).max).argmin())
            chosen.append(best)
            left[best] = False
        return chosen


PLUGINS = (Bulyan,)
