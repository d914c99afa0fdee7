"""Local differential privacy of updates: every client noises its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import Guarantee, PrepareContext, Reference, UpdateContext
from harness_plugins.defences._client_level import (
    ClientLevelDP,
    calibrated,
    client_guarantee,
    clip_rows,
    rounds_of,
)

if TYPE_CHECKING:
    from torch import Tensor


class LocalDP(ClientLevelDP):
    """Clips the update and noises it before it leaves the client: no server need be trusted.

    x <- x min(1, C / |x|) + N(0, (sigma C)^2 I_d). Whatever data a client has, its update lies in a ball of
    radius C, so two of them differ by at most 2 C: a Gaussian mechanism of noise multiplier sigma / 2, composed
    over the rounds the client takes part in. Neighbours replace all of a client's data; that it takes part is public,
    how much data it has is not: clients count equally, whatever the scenario's `weighting` says.
    epsilon: the largest over clients. The noise has d coordinates of the size of C: expect useful models only at
    very large epsilon or with very many clients, which is what the method is known for.

    Not applicable to running statistics, which would travel without noise. Sources: Duchi, Jordan and Wainwright
    (2013) for the local model; Dwork and Roth (2014), appendix A, for the Gaussian mechanism. Cost: O(d) a client.
    """

    name = "local-dp"
    neighbours: ClassVar[str] = "replace"
    reference = Reference(
        title="Local privacy and statistical minimax rates",
        authors="Duchi, Jordan, Wainwright",
        venue="FOCS 2013",
        year=2013,
        url="https://arxiv.org/abs/1302.3203",
    )

    def prepare(self, context: PrepareContext) -> dict[str, Any]:
        delta, rounds = self.settled_delta(context), rounds_of(context)
        sigma = self.settled_noise(context, lambda e: 2 * calibrated(e, delta, 1.0, rounds, self.accountant))
        return {
            "noise_multiplier": sigma, "delta": delta, "accountant": self.accountant, "clip_norm": self.clip_norm,
            "rounds": rounds,
        }  # fmt: skip

    def guarantee(self, history: list[dict[str, Any]]) -> Guarantee | None:
        if not history:
            return None
        clients = range(len(history[0]["rounds"]))
        segments = [[(t["noise_multiplier"] / 2, 1.0, t["rounds"][i]) for t in history] for i in clients]
        steps = max(sum(t["rounds"][i] for t in history) for i in clients)
        return client_guarantee(
            self.name, history, segments, {"method": "none", "rate": 1.0, "steps": steps},
            against="server", neighbours=self.neighbours, noise_multiplier=history[0]["noise_multiplier"],
        )  # fmt: skip

    def update(self, delta: Tensor, context: UpdateContext) -> Tensor:
        import torch

        generator = context.generator
        # An update that is not finite would reveal itself: it counts as zero, noised like any other.
        sent = delta if bool(delta.isfinite().all()) else torch.zeros_like(delta)
        (sent,) = clip_rows(sent[None], self.clip_norm)
        noise = torch.randn(sent.shape, generator=generator, device=generator.device, dtype=sent.dtype)
        return sent + context.prepared["noise_multiplier"] * self.clip_norm * noise.to(sent.device)


PLUGINS = (LocalDP,)
