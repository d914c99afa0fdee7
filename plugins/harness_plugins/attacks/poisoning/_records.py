"""Drawing the records that a malicious client poisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import HarnessError, PluginError, PoisonContext, PoisoningAttack

if TYPE_CHECKING:
    from torch import Tensor


def draw(eligible: Tensor, fraction: float, context: PoisonContext) -> Tensor:
    """eligible (n,) bool -> (n,) bool: round(fraction n) of the eligible records, all if they are fewer.

    Drawn without replacement from the context's generator.
    """
    import torch

    positions = eligible.nonzero().flatten()
    count = min(int(fraction * len(eligible) + 0.5), len(positions))
    order = torch.randperm(len(positions), generator=context.generator, device=eligible.device)
    chosen = torch.zeros_like(eligible)
    chosen[positions[order[:count]]] = True
    return chosen


def check_class(
    attack: PoisoningAttack,
    parameter: str,
    value: int,
    num_classes: int,
    error: type[HarnessError] = PluginError,
) -> None:
    """Raises `error` where a class given as a parameter does not exist."""
    if value >= num_classes:
        raise error(f"{attack.name}: {parameter} = {value}, but the classes run from 0 to {num_classes - 1}")
