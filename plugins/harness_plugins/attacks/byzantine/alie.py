"""A Little Is Enough: hide inside the spread of the honest updates."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar

from harness.api import ByzantineAttack, ByzantineContext, Field, PluginError, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, moments, repeat

if TYPE_CHECKING:
    from torch import Tensor


class ALittleIsEnough(ByzantineAttack):
    """Every malicious client sends mean + z std of the honest updates, coordinate by coordinate.

    std has ddof = 1 and is zero for a single honest update. Where z is not given it is the largest shift
    that leaves a majority of the n clients, the malicious ones included, at least as far from the mean
    (Algorithm 3 of the paper): s = floor(n/2 + 1) - m honest supporters are needed, and
    z = Phi^-1((n - m - s) / (n - m)). For few attackers it is near zero, or negative where n is even. The authors' code
    subtracts z std, with ddof = 0, of what the malicious clients would send themselves, at z = 1.5.

    honest (h, d) -> (m, d). n is the clients in the round, or h + m where the context doesn't say.
    Raises PluginError where h = 0, or where z is not given and the quantile does not exist: the malicious
    clients are a majority by themselves, or all honest clients would have to support them.
    Costs O(h d).
    """

    name: ClassVar[str] = "alie"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = Reference(
        title="A Little Is Enough: Circumventing Defenses For Distributed Learning",
        authors="Baruch, Baruch, Goldberg",
        venue="NeurIPS",
        year=2019,
        url="https://arxiv.org/abs/1902.06156",
    )

    z: float | None = Field(
        None,
        allow_inf_nan=False,
        json_schema_extra={"unbounded": True},
        description="standard deviations from the mean; null: the paper's quantile",
    )

    def check_round(self, n: int, m: int, sees_others: bool) -> None:
        if self.z is None:
            self.quantile(n, m)

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        if context.m == 0:
            return honest.new_empty((0, honest.shape[1]))
        mean, std = moments(honest)
        z = self.z if self.z is not None else self.quantile(context.n or len(honest) + context.m, context.m)
        return repeat(mean + z * std, context.m)

    def quantile(self, n: int, m: int) -> float:
        """The paper's z for m malicious clients among n. Raises PluginError where there is none."""
        supporters = n // 2 + 1 - m
        share = (n - m - supporters) / (n - m) if n > m else 1.0
        if not 0 < share < 1:
            raise PluginError(
                f"alie: the paper's z does not exist for m = {m} malicious clients of n = {n}; set z yourself"
            )
        return NormalDist().inv_cdf(share)


PLUGINS = (ALittleIsEnough,)
