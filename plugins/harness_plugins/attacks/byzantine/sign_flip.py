"""Sign flipping and inner-product manipulation: the honest mean, turned round."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import ByzantineAttack, ByzantineContext, Field, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, moments, repeat

if TYPE_CHECKING:
    from torch import Tensor


class SignFlip(ByzantineAttack):
    """Every malicious client sends -mean(honest).

    honest (h, d) -> (m, d). Raises PluginError where h = 0. Costs O(h d).
    """

    name: ClassVar[str] = "sign-flip"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = Reference(
        title="Byzantine-Resilient Non-Convex Stochastic Gradient Descent",
        authors="Allen-Zhu, Ebrahimianghazani, Li, Alistarh",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2012.14368",
    )

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        return repeat(-moments(honest, deviation=False)[0], context.m)


class InnerProductManipulation(ByzantineAttack):
    """Every malicious client sends -tau mean(honest), to turn the aggregate against the true direction.

    The mean of all n updates changes its sign where tau > (n - m) / m; a small tau hides better from
    rules that look at distances. The paper calls the factor epsilon.

    honest (h, d) -> (m, d). Raises PluginError where h = 0. Costs O(h d).
    """

    name: ClassVar[str] = "ipm"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = Reference(
        title="Fall of Empires: Breaking Byzantine-Tolerant SGD by Inner Product Manipulation",
        authors="Xie, Koyejo, Gupta",
        venue="UAI 2019, PMLR 115",
        year=2020,
        url="https://proceedings.mlr.press/v115/xie20a.html",
    )

    tau: float = Field(2.0, gt=0, allow_inf_nan=False, description="factor on the negated honest mean")

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        return repeat(-self.tau * moments(honest, deviation=False)[0], context.m)


PLUGINS = (SignFlip, InnerProductManipulation)
