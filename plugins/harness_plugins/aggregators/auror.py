"""AUROR: coordinates in which clients fall into two groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import blocks, mean_of, sort_clients

if TYPE_CHECKING:
    from torch import Tensor


class Auror(Aggregator):
    """Leaves out clients that are in the minority in most of the coordinates that split the clients in two.

    In each coordinate the n values are split by 2-means, exactly, over the sorted values. The coordinate is
    indicative where the two centres are more than alpha apart; its smaller cluster is then suspicious
    (neither, where both are as large). A client in the smaller cluster of more than tau of the indicative
    coordinates is left out of the mean. Decided anew in every round: the paper, for a few epochs of
    synchronous training, decides once, after observing the first ones. f and the weights are not used.

    updates (n, d) -> (d,). Costs O(n log n d). Reports the rows kept.
    """

    name: ClassVar[str] = "auror"
    reference: ClassVar[Reference | None] = Reference(
        title="AUROR: Defending Against Poisoning Attacks in Collaborative Deep Learning Systems",
        authors="Shen, Tople, Saxena",
        venue="ACSAC",
        year=2016,
        url="https://doi.org/10.1145/2991079.2991125",
    )

    alpha: float = Field(
        0.02, ge=0, allow_inf_nan=False, description="distance of the centres, in units of an update"
    )
    tau: float = Field(0.5, ge=0, le=1, description="share of the indicative coordinates")

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        n = len(updates)
        counts = torch.zeros(n, dtype=torch.float64)
        indicative = 0
        if n > 1:
            for _, block in blocks(updates):
                edge, apart, low = split_in_two(sort_clients(block))
                looked = (apart > self.alpha).to(block.device)
                lower = block.double() <= edge.to(block.device)  # (n, c)
                low = low.to(block.device)
                minority = torch.where(2 * low < n, lower, ~lower) & (2 * low != n) & looked
                counts += minority.sum(1).cpu()
                indicative += int(looked.sum())
        kept = [i for i in range(n) if counts[i] <= self.tau * indicative] or list(range(n))
        context.report(kept=kept)
        return mean_of(updates, kept)


def split_in_two(ordered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ordered (c, n) ascending, n >= 2 -> the best split of each row into two clusters.

    Returns, each (c,): the largest value of the lower cluster, the distance of the centres (float64), and the
    size of the lower cluster. The split with the least sum of squared distances to its centres; of several
    the first.
    """
    import torch

    values = ordered.double()
    n = values.shape[1]
    centred = values - values.mean(1, keepdim=True)
    below = centred.cumsum(1)[:, :-1]  # sums of the lowest 1 .. n-1 values; the rest sums to minus that
    sizes = torch.arange(1, n, dtype=torch.float64, device=values.device)
    explained = below.square() * (1 / sizes + 1 / (n - sizes))
    at = explained.argmax(1)
    rows = torch.arange(len(values), device=values.device)
    low = at + 1
    apart = -below[rows, at] * (1 / sizes[at] + 1 / (n - sizes[at]))
    return values[rows, at], apart, low


PLUGINS = (Auror,)
