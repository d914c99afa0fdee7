"""Fang's local model poisoning, against Krum and against trimmed means and medians."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import ByzantineAttack, ByzantineContext, Field, Reference
from harness_plugins.aggregators._columns import squared_norms
from harness_plugins.aggregators._distances import krum_order, squared_distances
from harness_plugins.attacks.byzantine._moments import check_honest, moments, repeat

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-5  # the smallest deviation tried, as in the paper


class Fang(ByzantineAttack):
    """Moves the global model against the direction in which it would go without an attack.

    s is the sign of the honest mean's change, coordinate by coordinate.

    target trimmed-mean (for trimmed means and medians, section 4.2): where s = 1 the malicious values are
    drawn below the least honest one, else above the largest, uniformly between it and its `spread`-fold (or
    its `spread`-th part, whichever lies outside), anew for each malicious client.

    target krum (section 4.1): all malicious clients send -lambda s, lambda the largest that Krum still picks.
    It starts from the paper's upper bound and is halved until Krum, on the honest and the crafted rows with n
    - m - 2 neighbours, picks a crafted one, or lambda < 1e-5.

    What the paper calls full knowledge is a threat that grants the honest updates; on own knowledge the same
    formulas are applied to the malicious clients' own honest updates, as the paper does for Krum.

    honest (h, d) -> (m, d). Raises PluginError where h = 0. Costs O(h d), for krum O(n^2 d) a try.
    """

    name: ClassVar[str] = "fang"
    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = Reference(
        title="Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
        authors="Fang, Cao, Jia, Gong",
        venue="USENIX Security",
        year=2020,
        url="https://arxiv.org/abs/1911.11815",
    )

    target: Literal["trimmed-mean", "krum"] = Field(
        "trimmed-mean", description="the rule attacked; trimmed-mean is for medians too"
    )
    spread: float = Field(
        2.0, gt=1, allow_inf_nan=False, description="trimmed-mean: how far beyond the honest values (b)"
    )

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        if context.m == 0:
            return honest.new_empty((0, honest.shape[1]))
        direction = moments(honest, deviation=False)[0].sign()
        if self.target == "krum":
            return self._against_krum(honest, direction, context)
        return self._against_trimming(honest, direction, context)

    def _against_trimming(self, honest: Tensor, direction: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        least, most = honest.amin(0), honest.amax(0)
        # Between the extreme value and what lies `spread` times farther out, on the side away from the direction.
        above = torch.where(most > 0, most * self.spread, most / self.spread)
        below = torch.where(least > 0, least / self.spread, least * self.spread)
        generator = context.generator
        shape = (context.m, honest.shape[1])
        share = torch.rand(shape, generator=generator, device=generator.device).to(honest)
        high = most + share * (above - most)
        low = least + share * (below - least)
        return torch.where(direction > 0, low, high)

    def _against_krum(self, honest: Tensor, direction: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        m = context.m
        n = len(honest) + m
        neighbours = max(1, n - m - 2)
        factor = self._upper_bound(honest, m)
        while True:
            crafted = repeat(-factor * direction, m)
            best = krum_order(torch.cat([honest, crafted]), neighbours)[0]
            if best >= len(honest) or factor < LEAST:
                return crafted
            factor /= 2

    @staticmethod
    def _upper_bound(honest: Tensor, m: int) -> float:
        """Theorem 1: from Krum's best honest score and the norm of the longest honest update."""
        h, d = honest.shape
        near = max(1, h - 2)  # n - m - 2 of the honest rows, n = h + m
        squared = squared_distances(honest).fill_diagonal_(math.inf)
        scores = squared.sort(dim=1).values[:, : min(near, h - 1)].sum(1) if h > 1 else squared.new_zeros(1)
        longest = float(squared_norms(honest).sqrt().max())
        denominator = max(1, h + m - 2 * m - 1) * d
        return math.sqrt(float(scores.min()) / denominator) + longest / math.sqrt(d)


PLUGINS = (Fang,)
