"""Free-riders: clients that take the model and give nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import ByzantineAttack, ByzantineContext, Field, PluginError, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, repeat

if TYPE_CHECKING:
    from torch import Tensor


class FreeRider(ByzantineAttack):
    """Makes up an update without any training, to be given the model all the same.

    random: each coordinate uniform in [-radius, radius] (Lin et al., random weights). stale: how the global
    model moved in the last round, w_t - w_(t-1) (Lin et al., delta weights); zero in the first round.
    disguised: stale plus Gaussian noise of deviation sigma t^(-gamma) in round t, from 1, to look like
    training that converges (Fraboni et al., disguised free-riding). random and disguised differ between
    malicious clients.

    honest (h, d) -> (m, d); only its shape is used. Raises PluginError where stale updates are asked for
    without the global weights. Costs O(m d). Keeps the last global weights (d,).
    """

    name: ClassVar[str] = "free-rider"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = Reference(
        title="Free-riders in Federated Learning: Attacks and Defenses",
        authors="Lin, Du, Liu",
        venue="arXiv 1911.12560",
        year=2019,
        url="https://arxiv.org/abs/1911.12560",
    )

    mode: Literal["stale", "random", "disguised"] = Field("stale", description="how the update is made up")
    radius: float = Field(1e-3, gt=0, allow_inf_nan=False, description="random: largest coordinate")
    sigma: float = Field(
        1e-3, ge=0, allow_inf_nan=False, description="disguised: deviation of a coordinate in the first round"
    )
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="disguised: how fast the noise fades")

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        check_honest(self, honest, context)
        shape, generator = (context.m, honest.shape[1]), context.generator
        if self.mode == "random":
            drawn = torch.rand(shape, generator=generator, device=generator.device).to(honest)
            return (2 * drawn - 1) * self.radius
        if context.global_weights is None:
            raise PluginError("free-rider: stale updates need the global weights in the context")
        before = context.state.get("weights")
        context.state["weights"] = context.global_weights.clone()
        moved = (
            torch.zeros_like(honest[0]) if before is None else (context.global_weights - before).to(honest)
        )
        rows = repeat(moved, context.m)
        if self.mode == "disguised":
            drawn = torch.randn(shape, generator=generator, device=generator.device).to(honest)
            rows = rows + self.sigma * (context.round + 1) ** -self.gamma * drawn
        return rows


PLUGINS = (FreeRider,)
