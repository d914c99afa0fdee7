"""A module as a function of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import Params


class Apply:
    """apply(params, x): the module's output on x (b, c, h, w) with these parameters.

    With the module's own parameter objects it is a plain call, which keeps buffers up to date. With any
    other values (an attack's detached ones, torch.func's tracked ones) the module's parameters and
    buffers stay as they are: batch statistics of attack steps do not enter the running averages.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._own = dict(module.named_parameters())

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        if all(self._own.get(name) is value for name, value in params.items()):
            return self.module(x)
        values: dict[str, Tensor] = dict(params)
        if self.module.training:
            values |= {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return torch.func.functional_call(self.module, values, (x,))
