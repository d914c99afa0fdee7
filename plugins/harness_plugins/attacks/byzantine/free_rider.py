"""Free-riders: clients that take the model and give nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import ByzantineAttack, ByzantineContext, Field, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, repeat

if TYPE_CHECKING:
    from torch import Tensor


class FreeRider(ByzantineAttack):
    """Makes up an update without any training, to be given the model all the same.

    With t the round, from 1, and e Gaussian noise of deviation 1 in each coordinate, it sends

    - stale: how the global model moved in the last round, w_t - w_(t-1) (Lin et al., delta weights)
    - noisy-stale: w_t - w_(t-1) + sigma e (Lin et al., advanced delta weights)
    - random: each coordinate uniform in [-radius, radius] (Lin et al., random weights)
    - disguised: sigma t^(-gamma) e alone, which makes of the received model the received model and fading noise
      (Fraboni, Vidal, Lorenzi, "Free-rider Attacks on Model Aggregation in Federated Learning", AISTATS 2021,
      arXiv 2006.11901). Without noise, the same paper's plain free-rider, it is the attack `zero`.

    In the first round no move is known: it counts as zero. The noise differs between malicious clients. Fraboni et al.
    take the mean magnitude of the model's first move for sigma, which here is a number.

    honest (h, d) -> (m, d); only its shape is used. Raises PluginError where h = 0. Costs O(m d).
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

    mode: Literal["stale", "noisy-stale", "random", "disguised"] = Field(
        "stale", description="how the update is made up"
    )
    radius: float = Field(1e-3, gt=0, allow_inf_nan=False, description="random: largest coordinate")
    sigma: float = Field(
        1e-3,
        ge=0,
        allow_inf_nan=False,
        description="noisy-stale, disguised: deviation of a coordinate's noise in the first round",
    )
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="disguised: how fast the noise fades")

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        check_honest(self, honest, context)
        shape, generator = (context.m, honest.shape[1]), context.generator
        if self.mode == "random":
            drawn = torch.rand(shape, generator=generator, device=generator.device).to(honest)
            return (2 * drawn - 1) * self.radius
        rows = honest.new_zeros(shape)
        if self.mode != "disguised" and context.moved is not None:
            rows = repeat(context.moved.to(honest), context.m)
        if self.mode != "stale":
            drawn = torch.randn(shape, generator=generator, device=generator.device).to(honest)
            fading = (context.round + 1) ** -self.gamma if self.mode == "disguised" else 1.0
            rows = rows + self.sigma * fading * drawn
        return rows


PLUGINS = (FreeRider,)
