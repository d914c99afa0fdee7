"""FLTrust: trust in proportion to agreement with the server's own update."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import AggregationContext, Aggregator, Field, PluginError, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import combine, inner_products, squared_norms

if TYPE_CHECKING:
    from torch import Tensor


class FLTrust(Aggregator):
    """Weighs updates by their cosine with an update g_0 that the server computes on a small root dataset.

    T_i = max(0, cos(x_i, g_0)); the result is sum_i T_i x_i ||g_0|| / ||x_i|| / sum_i T_i (equations 2 to 4).
    Without any trust it is zero. The server trains on the root dataset as a client would, in every round. f
    and the weights are not used.

    The root dataset is a seeded draw from the validation split: `private` breaks a guarantee unless that
    split is declared unprotected, `public` needs it declared. Raises PluginError where a context has no root
    dataset.

    updates (n, d) -> (d,). Costs O(n d) and one client's local training. Reports the weights.
    """

    name: ClassVar[str] = "fltrust"
    reference: ClassVar[Reference | None] = Reference(
        title="FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
        authors="Cao, Fang, Liu, Gong",
        venue="NDSS",
        year=2021,
        url="https://arxiv.org/abs/2012.13995",
    )

    root_size: int = Field(100, ge=1, description="records in the root dataset")
    root: Literal["private", "public"] = Field(
        "private", description="where the root dataset comes from: the validation split, or public data"
    )

    @property
    def root_records(self) -> int:
        return self.root_size

    @property
    def data_access(self) -> str:
        return self.root

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        if context.root_update is None:
            raise PluginError("fltrust: there is no root dataset in this context")
        own = context.root_update()
        norms = squared_norms(updates).sqrt()
        length = squared_norms(own[None]).sqrt()[0]
        inner = inner_products(updates, own)
        trust = (inner / (norms * length)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
        total = trust.sum()
        if total <= 0:
            context.report(kept=[])
            return torch.zeros_like(updates[0])
        context.report(weights=trust)
        factors = (trust / total * length / norms).nan_to_num(nan=0.0, posinf=0.0)
        return combine(factors[None], updates)[0]


PLUGINS = (FLTrust,)
