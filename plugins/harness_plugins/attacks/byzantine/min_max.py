"""Min-Max and Min-Sum: as far from the mean as the honest updates' own spread allows."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import ByzantineAttack, ByzantineContext, Field, Reference
from harness_plugins.attacks.byzantine._moments import check_honest, moments, repeat, unit
from harness_plugins.attacks.byzantine.optimal import SHEJWALKAR
from harness_plugins.distances import squared_distances

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 1e-6  # what is kept from the bound, relative: the row must still be feasible once it is rounded


class WithinSpread(ByzantineAttack):
    """mean + gamma p with the largest gamma that keeps a condition on distances to the honest updates."""

    uses_own: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = SHEJWALKAR

    perturbation: Literal["std", "unit", "sign"] = Field(
        "std", description="direction p: minus the deviation, minus the mean's direction, or minus its sign"
    )

    @abstractmethod
    def largest(self, distances: Tensor, to_mean: Tensor, along: Tensor, length: float) -> float:
        """The largest feasible gamma. ||mean + gamma p - x_i||^2 = to_mean_i + 2 gamma along_i + gamma^2 length."""

    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        import torch

        check_honest(self, honest, context)
        mean, std = moments(honest, deviation=self.perturbation == "std")
        direction = self._direction(mean, std)
        length = float(direction.double().square().sum())
        gamma = 0.0
        if length > 0 and len(honest) > 1:
            to_mean = torch.zeros(len(honest), dtype=torch.float64)
            along = torch.zeros(len(honest), dtype=torch.float64)
            for i, row in enumerate(honest):
                difference = mean.double() - row.double()
                to_mean[i] = float(difference.square().sum())
                along[i] = float(difference @ direction.double())
            gamma = max(0.0, self.largest(squared_distances(honest, exact=True), to_mean, along, length))
        return repeat(mean + gamma * (1 - MARGIN) * direction, context.m)

    def _direction(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.perturbation == "std":
            return -std
        if self.perturbation == "sign":
            return -mean.sign()
        return -unit(mean)

    @staticmethod
    def root(length: float, along: float, constant: float) -> float:
        """The larger root of length g^2 + 2 along g + constant = 0, constant <= 0."""
        return (-along + math.sqrt(max(along * along - length * constant, 0.0))) / length


class MinMax(WithinSpread):
    """No farther from any honest update than the two farthest honest updates are apart (equation 7).

    All malicious clients send mean + gamma p with the largest gamma such that
    max_i ||mean + gamma p - x_i|| <= max_ij ||x_i - x_j||. Each condition is a quadratic in gamma, so the
    maximum is exact; the paper halves an interval instead. std has ddof = 1. One honest update leaves gamma =
    0.

    honest (h, d) -> (m, d). Raises PluginError where h = 0. Costs O(h^2 d).
    """

    name: ClassVar[str] = "min-max"

    def largest(self, distances: Tensor, to_mean: Tensor, along: Tensor, length: float) -> float:
        bound = float(distances.max())
        return min(self.root(length, float(a), float(t) - bound) for t, a in zip(to_mean, along, strict=True))


class MinSum(WithinSpread):
    """No farther from the honest updates, summed, than the worst honest update is (equation 8).

    All malicious clients send mean + gamma p with the largest gamma such that
    sum_i ||mean + gamma p - x_i||^2 <= max_i sum_j ||x_i - x_j||^2. The condition is a quadratic in gamma, so
    the maximum is exact; the paper halves an interval instead. std has ddof = 1.

    honest (h, d) -> (m, d). Raises PluginError where h = 0. Costs O(h^2 d).
    """

    name: ClassVar[str] = "min-sum"

    def largest(self, distances: Tensor, to_mean: Tensor, along: Tensor, length: float) -> float:
        bound = float(distances.sum(1).max())
        h = len(to_mean)
        return self.root(h * length, float(along.sum()), float(to_mean.sum()) - bound)


PLUGINS = (MinMax, MinSum)
