"""A module as a function of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import Params


class Apply:
    """apply(params, x): the module's output on x (b, c, h, w) with these parameters.

    own, buffers: the client's parameters and buffers; None for the module's. Called with the client's own parameter
    objects, the module updates these buffers. Called with any other values (an attack's detached ones, torch.func's
    tracked ones), it leaves them as they are, so that batch statistics of attack steps do not enter the running
    averages.
    """

    def __init__(
        self, module: nn.Module, own: Params | None = None, buffers: dict[str, Tensor] | None = None
    ) -> None:
        self.module = module
        self._own = dict(module.named_parameters()) if own is None else own
        self._buffers = buffers

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        live = all(self._own.get(name) is value for name, value in params.items())
        if live and self._buffers is None:
            return self.module(x)
        buffers = dict(self.module.named_buffers()) if self._buffers is None else self._buffers
        if not live and self.module.training:
            buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(self.module, {**params, **buffers}, (x,))
