"""Nearest-neighbour mixing, a pre-aggregator."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, PreAggregator, Reference
from harness_plugins.aggregators._tolerance import NeedsMajority, tolerated
from harness_plugins.columns import combine
from harness_plugins.distances import squared_distances

if TYPE_CHECKING:
    from torch import Tensor


class NearestNeighborMixing(NeedsMajority, PreAggregator):
    """Replaces each update by the mean of its n - f nearest updates, itself included.

    Makes heterogeneous updates alike before a robust rule, which then tolerates the best possible f.
    Ties go to the lower row. One 0/1 matrix holds all neighbourhoods, so mixing is a single matrix product.
    A mixed row stands for n - f clients and has no weight of its own: weights become uniform. n, f and
    the order of the rows stay.

    updates (n, d) -> (n, d). Needs n > 2f, else PluginError. Costs O(n^2 d).
    """

    name: ClassVar[str] = "nnm"
    mixes_clients: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
        authors="Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan",
        venue="AISTATS",
        year=2023,
        url="https://arxiv.org/abs/2302.01772",
    )

    def transform(self, updates: Tensor, context: AggregationContext) -> tuple[Tensor, AggregationContext]:
        import torch

        n = len(updates)
        near = n - tolerated(self, updates, context)
        distances = squared_distances(updates).fill_diagonal_(-1)  # itself first, before exact copies
        nearest = distances.sort(dim=1, stable=True).indices[:, :near]
        mixing = torch.zeros((n, n), dtype=torch.float64).scatter_(1, nearest, 1 / near)
        weights = torch.full_like(context.weights, 1 / n)
        return combine(mixing, updates), context.with_rows(weights, list(context.client_ids))


PLUGINS = (NearestNeighborMixing,)
