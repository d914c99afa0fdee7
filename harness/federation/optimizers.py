"""Local optimisers: torch's own, built fresh for each client and round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def local_optimizer(settings: Any, parameters: list[Tensor], multiplier: float) -> torch.optim.Optimizer:
    """settings: a scenario's `local.optimizer`; multiplier: the schedule's share of its learning rate.

    All work element by element, so the rows of stacked parameters are stepped as single clients' would be.
    """
    classes: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam}
    options = settings.model_dump()
    options["lr"] *= multiplier
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    return classes[settings.name](parameters, **options)


def keep_first(optimizer: torch.optim.Optimizer, k: int) -> list[Tensor]:
    """Steps only the first k rows of stacked parameters from now on: returns them, as views, to hold gradients.

    Rows that are left out keep their values and their state. Step counts are shared: all rows began together.
    """
    (group,) = optimizer.param_groups
    kept = []
    for parameter in group["params"]:
        view = parameter.detach()[:k].requires_grad_()
        state = optimizer.state.pop(parameter, {})
        optimizer.state[view] = {
            name: value[:k] if isinstance(value, torch.Tensor) and value.shape == parameter.shape else value
            for name, value in state.items()
        }
        kept.append(view)
    group["params"] = kept
    return kept
