"""Mimic: all attackers copy one honest client."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import ByzantineAttack, ByzantineContext, Field, PluginError, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, moments, repeat, unit

if TYPE_CHECKING:
    from torch import Tensor


class Mimic(ByzantineAttack):
    """Every malicious client copies the update of one honest client, who so counts m + 1 times.

    Nothing about a copy is an outlier; it hurts where clients' data differ. In each of the first `warmup`
    rounds t the attackers estimate the mean mu and the direction z of most variance (appendix B), with
    weights 1/t and t/(t+1) for the past:
        mu <- t/(t+1) mu + 1/(t+1) mean_i x_i
        z <- t/(t+1) z + 1/(t+1) s / |s|, s = sum_i (x_i - mu) <x_i - mu, z>, normalised
    (with s at length one, as in the authors' code, so that the scale of the updates does not matter), and copy the
    client with the largest <z, x_i> of the round; then they stay with the client whose sum of <z, x_i> over the
    warm-up is largest. If that client is absent, the best one present is copied. `client` sets one from the start,
    which must take part in every round and be honest under every seed.

    honest (h, d) -> (m, d). Raises PluginError where h = 0, or where `client` is no honest client of the
    round. Costs O(h d). Keeps mu and z (d,) between rounds. z starts from a random direction of the context's
    generator.
    """

    name: ClassVar[str] = "mimic"
    uses_own: ClassVar[bool] = False
    knowledge: ClassVar[str] = "updates"
    reference: ClassVar[Reference | None] = Reference(
        title="Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
        authors="Karimireddy, He, Jaggi",
        venue="ICLR",
        year=2022,
        url="https://arxiv.org/abs/2006.09365",
    )

    warmup: int = Field(10, ge=1, description="rounds in which the direction is learned")
    client: int | None = Field(None, ge=0, description="number of the client to copy; null: learned")

    @property
    def needs_clients(self) -> tuple[int, ...]:  # type: ignore[override]
        return () if self.client is None else (self.client,)

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        if self.client is not None:
            if self.client not in context.ids:
                raise PluginError(
                    f"mimic: client {self.client} sends no honest update in round {context.round + 1}"
                )
            return repeat(honest[context.ids.index(self.client)], context.m)
        state = context.state
        seen = state.get("rounds", 0)
        if seen < self.warmup:
            scores = self._learn(honest, context, seen)
            state["rounds"] = seen + 1
        else:
            totals: dict[int, float] = state["totals"]
            scores = [totals.get(client, float("-inf")) for client in context.ids]
        best = max(range(len(honest)), key=lambda i: (scores[i], -i))
        return repeat(honest[best], context.m)

    @staticmethod
    def _learn(honest: Tensor, context: ByzantineContext, seen: int) -> list[float]:
        """One round's <z, x_i>, after z has seen it; they are added to the clients' totals."""
        import torch

        state, generator = context.state, context.generator
        mean = moments(honest, deviation=False)[0]
        if seen == 0:
            drawn = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
            state["mean"], state["direction"] = mean, unit(drawn)
        else:
            state["mean"] = (seen * state["mean"] + mean) / (seen + 1)
        centred = honest - state["mean"]
        # Of length one before the product too, which else would not fit float32 where updates are small or large.
        step = unit(unit(centred @ state["direction"]) @ centred)
        direction = unit(seen * state["direction"] + step)
        if direction.any():
            state["direction"] = direction
        scores = [float(v) for v in honest @ state["direction"]]
        totals: dict[int, float] = state.setdefault("totals", {})
        for client, score in zip(context.ids, scores, strict=True):
            totals[client] = totals.get(client, 0.0) + score
        return scores


PLUGINS = (Mimic,)
