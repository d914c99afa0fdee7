"""Local optimisers: torch's own, built fresh for each client and round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from torch import Tensor


class LocalOptimizer(Protocol):
    """Steps the parameters of one client, or the stacked parameters of many, along their `grad`.

    All optimisers work element by element, so each row of stacked parameters is stepped as a single client's.
    """

    def step(self) -> object: ...

    def keep_first(self, k: int) -> list[Tensor]:
        """From now on steps only the first k rows of stacked parameters; returns them, as views, to hold gradients.

        Rows that are left out keep their values. Step counts are shared, as all rows began together.
        """


def local_optimizer(settings: Any, parameters: list[Tensor], multiplier: float) -> LocalOptimizer:
    """settings: a scenario's `local.optimizer`; multiplier: the schedule's factor on its learning rate."""
    options = settings.model_dump()
    options["lr"] *= multiplier
    if settings.name == "sgd":
        # Fused on a CPU it would save at most 2 % of a step, and a number's last bit would depend on its position.
        return _Sgd(parameters, options | {"fused": parameters[0].is_cuda})
    options["betas"] = tuple(options["betas"])
    if settings.name == "nadam":  # torch has no fused one
        return _Torch(torch.optim.NAdam(parameters, **options))
    # Fused, a step of small-cnn on one core takes 0.18 ms instead of 0.6 to 1.0.
    fused = parameters[0].device.type in ("cpu", "cuda")
    return _Torch(torch.optim.Adam(parameters, fused=fused, **options), fused)


@torch.no_grad()
def _lay_out(parameters: list[Tensor]) -> None:
    """Lays gradients out in memory as their parameters are.

    torch's fused kernels walk over both in the order of memory, whatever their strides: a gradient with channels last
    would silently be added to the wrong weights.
    """
    for p in parameters:
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


class _Sgd:
    """torch.optim.SGD through the function that it calls: the class imports the compiler, which takes seconds."""

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
    """One of torch's optimisers, which keep their state by parameter."""

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
