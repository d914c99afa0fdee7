"""Fang's local model poisoning, against Krum and against trimmed means and medians."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import ByzantineAttack, ByzantineContext, Field, PluginError, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, moments, repeat
from harness_plugins.columns import squared_norms
from harness_plugins.distances import krum_order, squared_distances

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-5  # the smallest deviation tried, as in the paper


class Fang(ByzantineAttack):
    """Moves the global model against the direction in which it would go without an attack.

    s is the sign of the mean of the known honest updates, coordinate by coordinate: with full knowledge those of
    the other clients, with partial knowledge (a threat that grants the attackers' own ones) the c updates that the
    malicious clients would have sent.

    target trimmed-mean (for trimmed means and medians). Full knowledge: where s = 1 the malicious values
    are drawn below the least honest one, else above the largest, uniformly between it and its `spread`-fold (or its
    `spread`-th part, whichever lies outside), anew for each malicious client. Partial: where s = 1 from
    [mu - 4 sigma, mu - 3 sigma], else from [mu + 3 sigma, mu + 4 sigma], mu and sigma (ddof = 1) the mean and
    standard deviation of the c updates.

    target krum: all malicious clients send -lambda s, lambda the largest that Krum still picks. It
    starts from the paper's upper bound and is halved until Krum, told of the crafted rows as malicious ones, picks
    a crafted one, or lambda < 1e-5. Full knowledge: among the honest rows and m crafted ones. Partial: among the c
    updates, taken for honest ones, and one crafted row; where no lambda does, there are two, and so on.

    honest (h, d) -> (m, d). Raises PluginError where h = 0, and for a trimmed mean attacked with partial knowledge
    where c = 1, which has no deviation. Costs O(h d), for krum O((h + m)^2 d) a try.
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

    def check_round(self, n: int, m: int, sees_others: bool) -> None:
        if m < 2 and self.target == "trimmed-mean" and not sees_others:
            raise PluginError(
                "fang estimates the other clients' deviations from the malicious clients' own updates: with "
                "knowledge: own it needs two of them at least in a round, not 1, or target: krum"
            )

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        check_honest(self, honest, context)
        if context.m == 0:
            return honest.new_empty((0, honest.shape[1]))
        mean, deviation = moments(honest, deviation=not context.sees_others)
        direction = mean.sign()
        if self.target == "krum":
            return self._against_krum(honest, direction, context)
        if context.sees_others:
            return self._beyond_extremes(honest, direction, context)
        self.check_round(len(honest) + context.m, len(honest), sees_others=False)
        away = 3 + _shares(honest, context)
        return mean - direction.where(direction != 0, -1) * away * deviation

    def _beyond_extremes(self, honest: Tensor, direction: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        least, most = honest.amin(0), honest.amax(0)
        # Between the extreme value and what lies `spread` times farther out, on the side away from the direction.
        above = torch.where(most > 0, most * self.spread, most / self.spread)
        below = torch.where(least > 0, least / self.spread, least * self.spread)
        share = _shares(honest, context)
        high = most + share * (above - most)
        low = least + share * (below - least)
        return torch.where(direction > 0, low, high)

    def _against_krum(self, honest: Tensor, direction: Tensor, context: ByzantineContext) -> Tensor:
        if context.sees_others:
            return repeat(-self._factor(honest, direction, context.m)[0] * direction, context.m)
        # As many crafted rows as a row has neighbours, and one, are at no distance from one another: picked.
        for crafted in range(1, max(2, len(honest) - 1) + 1):
            factor, picked = self._factor(honest, direction, crafted)
            if picked:
                break
        return repeat(-factor * direction, context.m)

    def _factor(self, honest: Tensor, direction: Tensor, m: int) -> tuple[float, bool]:
        """lambda, and whether Krum picks one of m rows -lambda s beside these honest ones."""
        import torch

        # n - m - 2 of n = h + m rows. A partial attacker simulates with as many crafted rows as it needs.
        neighbours = max(1, len(honest) - 2)
        factor = self._upper_bound(honest, m)
        while True:
            crafted = repeat(-factor * direction, m)
            picked = krum_order(torch.cat([honest, crafted]), neighbours)[0] >= len(honest)
            if picked or factor < LEAST:
                return factor, picked
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


def _shares(honest: Tensor, context: ByzantineContext) -> Tensor:
    """(m, d) uniform numbers in [0, 1)."""
    import torch

    generator = context.generator
    shape = (context.m, honest.shape[1])
    return torch.rand(shape, generator=generator, device=generator.device).to(honest)


PLUGINS = (Fang,)
