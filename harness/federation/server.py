"""Server optimisers: how the aggregated update moves the global weights.

FedAvg: McMahan et al. 2017 (with a server learning rate). FedAvgM: Hsu, Qi, Brown 2019. FedAdagrad, FedYogi
and FedAdam: Reddi et al. 2021, "Adaptive federated optimization", Algorithm 2, v starting at tau squared unless
the settings say otherwise; bias correction: Kingma and Ba 2015, "Adam", before section 2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Server:
    """One training's server optimiser; `settings` is a scenario's `federation.server`."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.name: str = settings.name
        self._momentum: Tensor | None = None
        self._second: Tensor | None = None
        self._steps = 0

    def step(self, weights: Tensor, update: Tensor) -> Tensor:
        """New global weights (d,) from the old ones and the aggregated update (d,), local minus global."""
        s = self.settings
        if self.name == "fedavg":
            return weights + s.lr * update
        if self._momentum is None:
            self._momentum = torch.zeros_like(update)
        if self.name == "fedavgm":
            self._momentum = s.momentum * self._momentum + update
            return weights + s.lr * self._momentum
        square = update.square()
        if self._second is None:
            self._second = torch.full_like(update, s.tau**2 if s.initial is None else s.initial)
        self._momentum = s.beta1 * self._momentum + (1 - s.beta1) * update
        if self.name == "fedadagrad":
            self._second = self._second + square
        elif self.name == "fedyogi":
            self._second = self._second - (1 - s.beta2) * square * torch.sign(self._second - square)
        elif self.name == "fedadam":
            self._second = s.beta2 * self._second + (1 - s.beta2) * square
        else:
            raise ValueError(f"unknown server optimiser {self.name!r}")
        self._steps += 1
        lr = s.lr
        if getattr(s, "bias_correction", False):
            lr *= (1 - s.beta2**self._steps) ** 0.5 / (1 - s.beta1**self._steps)
        return weights + lr * self._momentum / (self._second.sqrt() + s.tau)
