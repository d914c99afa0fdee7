"""Local optimisers: torch's own, built fresh for each client and round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from torch import Tensor


class LocalOptimizer(Protocol):
    """What steps the parameters of one client, or of many stacked ones, along their `grad`.

    All optimisers work element by element, so the rows of stacked parameters are stepped as single clients' would be.
    """

    def step(self) -> object: ...

    def keep_first(self, k: int) -> list[Tensor]:
        """Steps only the first k rows of stacked parameters from now on: returns them, as views, to hold gradients.

        Rows that are left out keep their values and their state. Step counts are shared: all rows began together.
        """


def local_optimizer(settings: Any, parameters: list[Tensor], multiplier: float) -> LocalOptimizer:
    """settings: a scenario's `local.optimizer`; multiplier: the schedule's share of its learning rate."""
    options = settings.model_dump()
    options["lr"] *= multiplier
    if settings.name == "sgd":
        # On a CPU it would save at most 2 of a hundred of a step, and a number's last bit would depend on its place.
        return _Sgd(parameters, options | {"fused": parameters[0].is_cuda})
    options["betas"] = tuple(options["betas"])
    if settings.name == "nadam":  # torch has no fused one
        return _Torch(torch.optim.NAdam(parameters, **options))
    # Of small-cnn on one core a step takes 0.18 ms instead of 0.6 to 1.0.
    fused = parameters[0].device.type in ("cpu", "cuda")
    return _Torch(torch.optim.Adam(parameters, fused=fused, **options), fused)


@torch.no_grad()
def _lay_out(parameters: list[Tensor]) -> None:
    """Gradients laid out in memory as their parameters are.

    torch's fused kernels walk over both in memory's order, whatever their strides: a gradient with channels last would
    be added to other weights than its own, without a word.
    """
    for p in parameters:
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


class _Sgd:
    """torch.optim.SGD by the function that it is made of: its class imports the compiler, which takes seconds."""

    def __init__(self, parameters: list[Tensor], options: dict[str, Any]) -> None:
        self._parameters = parameters
        self._fused = options["fused"]
        self._options = {"dampening": 0.0, "maximize": False, **options}
        self._momenta: list[Tensor | None] = [None] * len(parameters)

    @torch.no_grad()
    def step(self) -> None:
        if self._fused:
            _lay_out(self._parameters)
        grads = [p.grad for p in self._parameters]
        sgd(self._parameters, grads, self._momenta, **self._options)  # type: ignore[arg-type]

    def keep_first(self, k: int) -> list[Tensor]:
        self._parameters = [p.detach()[:k].requires_grad_() for p in self._parameters]
        self._momenta = [None if m is None else m[:k] for m in self._momenta]
        return self._parameters


class _Torch:
    """One of torch's optimisers, with state by parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer, fused: bool = False) -> None:
        self._optimizer = optimizer
        self._fused = fused

    def step(self) -> None:
        if self._fused:
            _lay_out(self._optimizer.param_groups[0]["params"])
        self._optimizer.step()

    def keep_first(self, k: int) -> list[Tensor]:
        (group,) = self._optimizer.param_groups
        kept = []
        for parameter in group["params"]:
            view = parameter.detach()[:k].requires_grad_()
            state = self._optimizer.state.pop(parameter, {})
            self._optimizer.state[view] = {
                name: value[:k]
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                else value
                for name, value in state.items()
            }
            kept.append(view)
        group["params"] = kept
        return kept
