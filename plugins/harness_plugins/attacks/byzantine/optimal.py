"""IPM and ALIE with the factor that harms the server's rule most."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from harness.api import ByzantineAttack, ByzantineContext, Field, PluginError, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, moments, repeat

if TYPE_CHECKING:
    from torch import Tensor

SHEJWALKAR = Reference(
    title="Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning",
    authors="Shejwalkar, Houmansadr",
    venue="NDSS",
    year=2021,
    url="https://www.ndss-symposium.org/ndss-paper/manipulating-the-byzantine-optimizing-model-"
    "poisoning-attacks-and-defenses-for-federated-learning/",
)


def line_search(
    value: Callable[[float], float], evaluations: int, start: float, step: float, shrink: float
) -> float:
    """The best x found for value(x): steps that double while it grows, then steps that shrink.

    ByzFL's search: from `start`, x + step is tried, and step doubles, for as long as that is an improvement;
    then step is multiplied by `shrink` after every try, taken or not, until the evaluations are used up.
    """
    x, best = start, value(start)
    expanding = True
    for _ in range(evaluations - 1):
        tried = value(x + step)
        better = tried > best
        if better:
            x, best = x + step, tried
        if expanding and better:
            step *= 2
        else:
            expanding = False
            step *= shrink
    return x


class Optimal(ByzantineAttack):
    """An attack with one factor, chosen by line search against a copy of the server's rule and its real state."""

    uses_own: ClassVar[bool] = False
    knowledge: ClassVar[str] = "omniscient"
    reference: ClassVar[Reference | None] = SHEJWALKAR

    evaluations: int = Field(20, ge=1, description="how often the server's rule is tried")
    start: float = Field(
        0.0, allow_inf_nan=False, json_schema_extra={"unbounded": True}, description="first factor tried"
    )
    step: float = Field(10.0, gt=0, allow_inf_nan=False, description="first step of the search")
    shrink: float = Field(0.8, gt=0.5, lt=1, description="what a step is multiplied by when it stops growing")

    @abstractmethod
    def row(self, mean: Tensor, std: Tensor, factor: float) -> Tensor:
        """mean and std (d,) of the honest updates -> what a malicious client sends (d,)."""

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        check_honest(self, honest, context)
        rule = context.aggregator
        if rule is None:
            raise PluginError(f"{self.name} needs to try the server's rule: knowledge: omniscient")
        if context.m == 0:
            return honest.new_empty((0, honest.shape[1]))
        mean, std = moments(honest)

        def harm(factor: float) -> float:
            rows = torch.cat([honest, repeat(self.row(mean, std, factor), context.m)])
            return float((rule(rows) - mean).double().norm())

        factor = line_search(harm, self.evaluations, self.start, self.step, self.shrink)
        return repeat(self.row(mean, std, factor), context.m)


class OptimalIPM(Optimal):
    """Inner-product manipulation whose tau moves the server's aggregate farthest: -tau mean(honest).

    tau maximises ||rule(honest, m times -tau mean) - mean(honest)|| by ByzFL's line search. The rule is the
    server's chain, pre-aggregators included, on a copy of its real state.

    honest (h, d) -> (m, d). Raises PluginError without the rule. Costs `evaluations` runs of the rule.
    """

    name: ClassVar[str] = "optimal-ipm"

    def row(self, mean: Tensor, std: Tensor, factor: float) -> Tensor:
        return -factor * mean


class OptimalALIE(Optimal):
    """A Little Is Enough whose z moves the server's aggregate farthest: mean + z std of the honest updates.

    z maximises ||rule(honest, m times mean + z std) - mean(honest)|| by ByzFL's line search, std with ddof =
    1. The rule is the server's chain, pre-aggregators included, on a copy of its real state.

    honest (h, d) -> (m, d). Raises PluginError without the rule. Costs `evaluations` runs of the rule.
    """

    name: ClassVar[str] = "optimal-alie"

    def row(self, mean: Tensor, std: Tensor, factor: float) -> Tensor:
        return mean + factor * std


PLUGINS = (OptimalIPM, OptimalALIE)
