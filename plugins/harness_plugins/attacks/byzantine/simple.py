"""Updates that need no thought: noise, infinities, nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import ByzantineAttack, ByzantineContext, Field, Reference
from harness_plugins.aggregators.krum import BLANCHARD
from harness_plugins.attacks.byzantine._moments import check_honest

if TYPE_CHECKING:
    from torch import Tensor

LI = Reference(
    title="RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from Heterogeneous Datasets",
    authors="Li, Xu, Chen, Giannakis, Ling",
    venue="AAAI",
    year=2019,
    url="https://arxiv.org/abs/1811.03761",
)


class Gaussian(ByzantineAttack):
    """Every malicious client sends Gaussian noise of its own: N(mu, sigma^2) in each coordinate.

    Blanchard et al. draw with sigma = 200 around zero.

    honest (h, d) -> (m, d); only its shape is used. Costs O(m d). Draws from the context's generator.
    """

    name: ClassVar[str] = "gaussian"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = BLANCHARD

    mu: float = Field(
        0.0, allow_inf_nan=False, json_schema_extra={"unbounded": True}, description="mean of a coordinate"
    )
    sigma: float = Field(200.0, ge=0, allow_inf_nan=False, description="standard deviation of a coordinate")

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        check_honest(self, honest, context)
        generator = context.generator
        drawn = torch.randn((context.m, honest.shape[1]), generator=generator, device=generator.device)
        return (self.mu + self.sigma * drawn).to(honest)


class Inf(ByzantineAttack):
    """Every malicious client sends infinities, or NaN: a server that does not look at its input is lost at once.

    Here the server drops such rows before any rule sees them, and counts them.

    honest (h, d) -> (m, d); only its shape is used. Costs O(m d).
    """

    name: ClassVar[str] = "inf"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = BLANCHARD

    value: Literal["inf", "-inf", "nan"] = Field("inf", description="what every coordinate is")

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        return honest.new_full((context.m, honest.shape[1]), float(self.value))


class Zero(ByzantineAttack):
    """Every malicious client sends zeros, as one that does not work would.

    honest (h, d) -> (m, d); only its shape is used. Costs O(m d).
    """

    name: ClassVar[str] = "zero"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = LI

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        return honest.new_zeros((context.m, honest.shape[1]))


PLUGINS = (Gaussian, Inf, Zero)
