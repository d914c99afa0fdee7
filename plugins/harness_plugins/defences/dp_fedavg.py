"""Differentially private federated averaging: clipped updates, noise at the server."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from harness.api import (
    AggregationContext,
    Aggregator,
    Field,
    Guarantee,
    PluginError,
    PrepareContext,
    Reference,
)
from harness_plugins.defences._client_level import (
    ClientLevelDP,
    NoisyMean,
    calibrated,
    client_guarantee,
    expected_clients,
    lengths,
    rounds_of,
    server_noise,
)

if TYPE_CHECKING:
    from torch import Tensor


class DPFedAvg(ClientLevelDP):
    """Clips every client's update and noises their sum at the server: client-level DP, the server being trusted.

    Delta = (sum_i x_i min(1, C / |x_i|) + N(0, (z C)^2 I)) / (q N), over the clients of a round, equally weighted
    whatever the scenario's `weighting` says; q N: the expected number of clients, public. Neighbours differ by
    one client with all its data. Where `federation.sampling` is poisson, each client takes part by a coin of
    probability q and the amplification is accounted; a fixed number a round earns none: a client is then
    charged for the rounds it takes part in, each at full rate. epsilon: the largest over clients.

    clipping `adaptive`: C follows the quantile of the updates' norms, C <- C exp(-eta (b - quantile)), b the
    noised share of clients with a norm of at most C, noise of deviation count_noise q N on the count. The noise on
    the updates is raised to z_D = (z^-2 - (2 count_noise q N)^-2)^(-1/2), so that both together cost what z alone
    would (Andrew et al. 2021, algorithm 1 and theorem 1).

    The noise fits a mean: with any other rule the guarantee is broken, and says so. Not applicable to running
    statistics, which would travel without noise. Sources: McMahan et al. (2018), algorithm 1, flat clipping and
    the fixed-denominator estimator; Andrew et al. (2021). Cost: O(n d) a round.
    """

    name = "dp-fedavg"
    reference = Reference(
        title="Learning differentially private recurrent language models",
        authors="McMahan, Ramage, Talwar, Zhang",
        venue="ICLR 2018",
        year=2018,
        url="https://arxiv.org/abs/1710.06963",
    )

    clipping: Literal["fixed", "adaptive"] = Field(
        "fixed", description="whether C follows the updates' norms"
    )
    quantile: float = Field(0.5, gt=0, lt=1, description="adaptive: share of updates left unclipped")
    eta: float = Field(0.2, gt=0, le=10, description="adaptive: learning rate of log C")
    count_noise: float = Field(
        0.05, gt=0, le=10, description="adaptive: noise on the count of unclipped updates, a share of q N"
    )

    def prepare(self, context: PrepareContext) -> dict[str, Any]:
        delta, rate, rounds = self.settled_delta(context), context.client_rate or 1.0, rounds_of(context)
        z = self.settled_noise(context, lambda e: calibrated(e, delta, rate, rounds, self.accountant))
        expected = expected_clients(context)
        return {
            "noise_multiplier": z, "update_noise": self._update_noise(z, expected), "delta": delta,
            "accountant": self.accountant, "clip_norm": self.clip_norm, "rate": rate, "rounds": rounds,
            "expected_clients": expected, "sampling": "fixed" if context.client_rate is None else "poisson",
        }  # fmt: skip

    def _update_noise(self, z: float, expected: float) -> float:
        """z_D: what is left for the updates once the count has its share of the budget. Raises PluginError."""
        if self.clipping == "fixed" or z == 0:
            return z
        count = 2 * self.count_noise * expected
        if count <= z:
            raise PluginError(
                f"dp-fedavg: noise of {self.count_noise * expected:.3g} clients on the count spends more than the "
                f"noise multiplier {z:.3g} allows: raise count_noise above {z / (2 * expected):.3g}"
            )
        return (z**-2 - count**-2) ** -0.5

    def guarantee(self, history: list[dict[str, Any]]) -> Guarantee | None:
        if not history:
            return None
        clients = range(len(history[0]["rounds"]))
        segments = [[(t["noise_multiplier"], t["rate"], t["rounds"][i]) for t in history] for i in clients]
        sampling = {
            "method": history[0]["sampling"],
            "rate": history[0]["rate"],
            "steps": max(sum(t["rounds"][i] for t in history) for i in clients),
        }
        return client_guarantee(
            self.name, history, segments, sampling,
            against="recipients", noise_multiplier=history[0]["noise_multiplier"],
        )  # fmt: skip

    def aggregator(self, aggregator: Aggregator, prepared: dict[str, Any]) -> Aggregator:
        def mechanism(rows: Tensor, context: AggregationContext) -> tuple[float, Tensor]:
            norm = context.state.get("clip_norm", self.clip_norm)
            noise = server_noise(rows.new_empty(rows.shape[1]), prepared["update_noise"] * norm, context)
            if self.clipping == "adaptive":
                context.state["clip_norm"] = self._next_norm(norm, rows, prepared, context)
            return norm, noise

        return NoisyMean(rule=aggregator, expected=prepared["expected_clients"], mechanism=mechanism)

    def _next_norm(
        self, norm: float, rows: Tensor, prepared: dict[str, Any], context: AggregationContext
    ) -> float:
        expected = prepared["expected_clients"]
        # Counting +-1/2 halves the sensitivity (Andrew et al. 2021, section 3.1): the count's deviation, in clients.
        deviation = self.count_noise * expected if prepared["noise_multiplier"] else 0.0
        inside = float((lengths(rows) <= norm).double().sum()) - len(rows) / 2
        noised = inside + float(server_noise(rows.new_empty(1), deviation, context))
        share = noised / expected + 0.5
        return norm * math.exp(-self.eta * (share - self.quantile))


PLUGINS = (DPFedAvg,)
