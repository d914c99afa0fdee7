"""Clipped clustering."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Reference
from harness_plugins.aggregators._cosines import cosines, gram_matrix
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import clip_factors, mean_of, squared_norms

if TYPE_CHECKING:
    from torch import Tensor


class ClippedClustering(Aggregator):
    """Clips to the median of all norms seen so far, then averages the larger of two clusters by cosine.

    Average-linkage agglomerative clustering into two clusters on 1 - cos(x_i, x_j), those that the last merge
    joins; of equally large ones the one with the lowest row. Where merges before it are as far, as with rows of
    zeros, which are at 1 from all, scipy's order decides. Where all merges are equally far, as among equal rows,
    all rows are kept. Clipping does not change a cosine. f and the weights are not used.

    updates (n, d) -> (d,). Costs O(n^2 d). Keeps every norm it has seen. Reports the rows kept.
    """

    name: ClassVar[str] = "clipped-clustering"
    requires: ClassVar[tuple[str, ...]] = ("scipy.cluster.hierarchy",)
    reference: ClassVar[Reference | None] = Reference(
        title="An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated Learning",
        authors="Li, Ngai, Voigt",
        venue="IEEE Transactions on Big Data 10",
        year=2024,
        url="https://arxiv.org/abs/2302.07173",
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        norms = squared_norms(updates).sqrt()
        seen: list[float] = context.state.setdefault("norms", [])
        seen += norms.tolist()
        radius = torch.tensor(seen, dtype=torch.float64).quantile(0.5)
        kept = self._larger(updates)
        context.report(kept=kept)
        return mean_of(updates, kept, clip_factors(norms, radius))

    @staticmethod
    def _larger(updates: Tensor) -> list[int]:
        from scipy.cluster.hierarchy import linkage, to_tree
        from scipy.spatial.distance import squareform

        n = len(updates)
        if n < 3:
            return list(range(n))
        distances = (1 - cosines(gram_matrix(updates))).fill_diagonal_(0).clamp(min=0).numpy()
        tree = linkage(squareform(distances, checks=False), method="average")
        if tree[0, 2] == tree[-1, 2]:
            return list(range(n))
        last = to_tree(tree)
        one, other = (sorted(part.pre_order()) for part in (last.left, last.right))
        return min(one, other, key=lambda rows: (-len(rows), rows[0]))


PLUGINS = (ClippedClustering,)
