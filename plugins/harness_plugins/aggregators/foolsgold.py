"""FoolsGold: clients that always pull the same way are taken for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, Reference
from harness_plugins.aggregators._cosines import cosines, gram_matrix
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import combine

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-12  # of a cosine in float64: updates that differ by less are alike


class FoolsGold(Aggregator):
    """Weighs each client down by how much its past updates, summed, resemble another's (Algorithm 1).

    cs_ij is the cosine of the summed updates of clients i and j, v_i = max_j cs_ij. Pardoning: where
    v_j > v_i, cs_ij <- cs_ij v_i / v_j. Then a_i = 1 - max_j cs_ij, clipped to [0, 1] and divided by the
    largest, and the logit a_i <- kappa (ln(a_i / (1 - a_i)) + 0.5), clipped to [0, 1], with a_i = 1 first
    lowered to 0.99. The result is (1/n) sum_i a_i x_i: the paper adds sum_i a_i x_i to the weights, and the
    division by n makes it a step along the mean, as all rules here. All coordinates count alike: the optional
    weighing by importance of features is not included. f and the weights are not used. Sybils that are all
    alike get weight 0; where every client gets 0 the result is zero. What it knows of clients would be lost in
    fine-tuning: cells with a compressor that does are not applicable.

    updates (n, d) -> (d,). Raises PluginError where a row is made of several clients. Costs O(n^2 d). Keeps one
    sum (d,) per client. Reports the weights.
    """

    name: ClassVar[str] = "foolsgold"
    follows_clients: ClassVar[bool] = True
    remembers_clients: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="The Limitations of Federated Learning in Sybil Settings",
        authors="Fung, Yoon, Beschastnikh",
        venue="RAID",
        year=2020,
        url="https://www.usenix.org/conference/raid2020/presentation/fung",
    )

    kappa: float = Field(1.0, gt=0, allow_inf_nan=False, description="slope of the logit: confidence")

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        history: dict[int, Tensor] = context.state.setdefault("sums", {})
        for client, update in zip(context.client_ids, updates, strict=True):
            before = history.get(client)
            history[client] = update.clone() if before is None else before + update
        sums = torch.stack([history[client] for client in context.client_ids])
        weights = self.weights(cosines(gram_matrix(sums)))
        context.report(weights=weights) if bool(weights.any()) else context.report(kept=[])
        return combine(weights[None] / len(updates), updates)[0]

    def weights(self, similarity: Tensor) -> Tensor:
        """Cosines (n, n) -> a (n,) float64 in [0, 1]."""
        import torch

        n = len(similarity)
        others = similarity.clone().fill_diagonal_(0)
        most = others.amax(1)
        # Row i, column j: honest clients are pardoned where j resembles somebody more than i does.
        pardon = torch.where(most[None, :] > most[:, None], most[:, None] / most[None, :], 1.0)
        a = (1 - (others * pardon).fill_diagonal_(0).amax(1)).clamp(0, 1)
        a = a.where(a > ROUNDING, 0.0)
        if n == 0 or float(a.max()) == 0:
            return torch.zeros(n, dtype=torch.float64)
        a = a / a.max()
        a = torch.where(a == 1, 0.99, a)
        return (self.kappa * ((a / (1 - a)).log() + 0.5)).nan_to_num(neginf=0.0).clamp(0, 1)


PLUGINS = (FoolsGold,)
