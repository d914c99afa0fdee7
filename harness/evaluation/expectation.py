"""Expectation over transformation: what gradient attacks see of a model that answers at random.

Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security" (ICML 2018), section 4.3:
against a randomised defence, the attacker ascends the loss of the expected answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Expectation(torch.nn.Module):
    """x -> log of the mean class probabilities over `draws` answers of the model, (b, k), differentiable."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model = model
        self.draws = draws
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        answers = [self.model(x).log_softmax(1) for _ in range(self.draws)]
        return torch.stack(answers).logsumexp(0) - math.log(self.draws)
