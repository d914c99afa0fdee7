"""Local differential privacy of updates: every client noises its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from harness.api import Defence, Field, Guarantee, PrepareContext, Reference, StackContext, UpdateContext
from harness_plugins.defences._client_level import (
    calibrated,
    check_client_level,
    client_delta,
    client_guarantee,
    rounds_of,
)

if TYPE_CHECKING:
    from torch import Tensor


class LocalDP(Defence):
    """Clips the update and noises it before it leaves the client: no server need be trusted.

    x <- x min(1, C / |x|) + N(0, (sigma C)^2 I_d). Whatever data a client has, its update lies in a ball of
    radius C, so two of them differ by at most 2 C: a Gaussian mechanism of noise multiplier sigma / 2, composed
    over the rounds the client takes part in. Neighbours replace all of a client's data; that it takes part is public.
    epsilon: the largest over clients. The noise has d coordinates of the size of C: expect useful models only at
    very large epsilon or with very many clients, which is what the method is known for.

    Not applicable to running statistics, which would travel without noise. Sources: Duchi, Jordan and Wainwright
    (2013) for the local model; Dwork and Roth (2014), appendix A, for the Gaussian mechanism. Cost: O(d) a client.
    """

    name = "local-dp"
    requires = ("opacus",)
    protects: ClassVar[str | None] = "client"
    neighbours: ClassVar[str] = "replace"
    reference = Reference(
        title="Local privacy and statistical minimax rates",
        authors="Duchi, Jordan, Wainwright",
        venue="FOCS 2013",
        year=2013,
        url="https://arxiv.org/abs/1302.3203",
    )

    epsilon: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="target epsilon of a client over the whole training"
    )
    noise_multiplier: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="sigma: noise over the clip norm; 0: no guarantee"
    )
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=False, description="C: largest L2 norm of an update")
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="None: 1 / (10 N), N all training records; must be below one over the clients",
    )
    accountant: Literal["rdp", "prv", "pld", "gdp"] = Field("rdp", description="see dp-sgd")

    @model_validator(mode="after")
    def _one_target(self) -> LocalDP:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        return self

    def check(self, context: StackContext) -> None:
        check_client_level(self.name, context)

    def prepare(self, context: PrepareContext) -> dict[str, Any]:
        delta = (
            context.history[0]["delta"] if context.history else client_delta(self.name, self.delta, context)
        )
        rounds = rounds_of(context)
        if context.history:
            sigma = context.history[0]["noise_multiplier"]
        elif self.noise_multiplier is not None:
            sigma = self.noise_multiplier
        else:
            assert self.epsilon is not None
            sigma = 2 * calibrated(self.epsilon, delta, 1.0, rounds, self.accountant)
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
        sent = sent * (self.clip_norm / sent.norm().clamp_min(1e-12)).clamp(max=1.0)
        noise = torch.randn(sent.shape, generator=generator, device=generator.device, dtype=sent.dtype)
        return sent + context.prepared["noise_multiplier"] * self.clip_norm * noise.to(sent.device)


PLUGINS = (LocalDP,)
