"""Local optimisers: torch's own, built fresh for each client and round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def local_optimizer(settings: Any, parameters: list[Tensor], multiplier: float) -> torch.optim.Optimizer:
    """settings: a scenario's `local.optimizer`; multiplier: the schedule's share of its learning rate."""
    classes: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam}
    options = settings.model_dump()
    options["lr"] *= multiplier
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    return classes[settings.name](parameters, **options)
