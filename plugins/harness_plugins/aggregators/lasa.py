"""LASA: sparsified updates, filtered layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import blocks, clip_factors, mean_of, scaled, squared_norms

if TYPE_CHECKING:
    from torch import Tensor


class Lasa(Aggregator):
    """Averages, in each layer, the clients whose magnitude and direction are near the median (Algorithm 1).

    Every update is clipped to the median norm and keeps only its largest (1 - sparsity) d coordinates. In a
    layer, client i has magnitude ||x_i|| and positive direction purity (1 + sum sign(x_i) / sum |sign(x_i)|)
    / 2; its MZ-score is |value - median| / std over the clients. Those with scores below `magnitude` and
    `direction` are averaged; where there are none, all are. f and the weights are not used.

    updates (n, d) -> (d,). Costs O(n d log d). Reports each client's share in the result.
    """

    name: ClassVar[str] = "lasa"
    reference: ClassVar[Reference | None] = Reference(
        title="Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model Aggregation",
        authors="Xu, Zhang, Hu",
        venue="WACV",
        year=2025,
        url="https://arxiv.org/abs/2409.01435",
    )

    sparsity: float = Field(0.3, ge=0, lt=1, description="share of an update's coordinates set to zero")
    magnitude: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="largest MZ-score of a magnitude (lambda_m)"
    )
    direction: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="largest MZ-score of a direction purity (lambda_d)"
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        n, d = updates.shape
        norms = squared_norms(updates).sqrt()
        rows = scaled(updates, clip_factors(norms, norms.quantile(0.5)))
        dropped = d - int(d * (1 - self.sparsity) + 1e-9)
        if dropped:
            for row in rows:  # one row at a time: positions take eight bytes each
                row[row.abs().topk(dropped, largest=False, sorted=False).indices] = 0
        result = updates.new_empty(d)
        shares = torch.zeros(n, dtype=torch.float64)
        for part in context.layout.values():
            layer = rows[:, part]
            kept = self._near(squared_norms(layer).sqrt(), self.magnitude)
            kept &= self._near(self._purity(layer), self.direction)
            if not kept.any():
                kept = torch.ones_like(kept)
            result[part] = mean_of(layer, kept.nonzero().flatten().tolist())
            shares += kept * (layer.shape[1] / int(kept.sum()))
        context.report(weights=shares)
        return result

    @staticmethod
    def _purity(layer: Tensor) -> Tensor:
        # (1 + sum sign / sum |sign|) / 2 is the share of positive values among those that are not zero.
        import torch

        positive = torch.zeros(len(layer), dtype=torch.float64)
        counted = torch.zeros(len(layer), dtype=torch.float64)
        for _, block in blocks(layer):
            positive += (block > 0).sum(1).cpu()
            counted += (block != 0).sum(1).cpu()
        return (positive / counted).nan_to_num(nan=0.5)

    @staticmethod
    def _near(values: Tensor, radius: float) -> Tensor:
        """values (n,) -> (n,) bool: an MZ-score below the radius; all where the values are equal."""
        scores = (values - values.quantile(0.5)).abs() / values.std(correction=0)
        return scores.nan_to_num(nan=0.0) < radius


PLUGINS = (Lasa,)
