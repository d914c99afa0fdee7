"""Mean and standard deviation over the honest updates, coordinate by coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import ByzantineAttack, ByzantineContext, PluginError

if TYPE_CHECKING:
    from torch import Tensor

# Values in a block: its float64 copy stays in a core's own cache, 3.5 times as fast as in one of 2**19.
BLOCK = 2**16


def moments(honest: Tensor, deviation: bool = True) -> tuple[Tensor, Tensor]:
    """honest (h, d) -> mean (d,) and standard deviation (d,), ddof = 1, computed in float64.

    The deviation is zero where h = 1, for which ddof = 1 leaves it undefined, and where it isn't wanted.
    """
    import torch

    mean, std = honest.new_empty(honest.shape[1]), honest.new_zeros(honest.shape[1])
    h = len(honest)
    exact = torch.float64 if honest.device.type in ("cpu", "cuda") else torch.float32  # mps has no float64
    width = max(1, BLOCK // h)
    for first in range(0, honest.shape[1], width):
        columns = slice(first, first + width)
        block = honest.detach()[:, columns].to(exact, copy=True)
        centre = block.sum(0) / h
        mean[columns] = centre.to(mean)
        if deviation and h > 1:
            block -= centre
            block *= block
            std[columns] = (block.sum(0) / (h - 1)).sqrt_().to(std)
    return mean, std


def check_honest(attack: ByzantineAttack, honest: Tensor, context: ByzantineContext) -> None:
    """Raises PluginError where there is no honest update to build on or m is negative."""
    if honest.ndim != 2 or not len(honest) or not honest.is_floating_point():
        raise PluginError(
            f"{attack.name}: the honest updates must be (h, d) floating point with h >= 1, "
            f"not {tuple(honest.shape)} of {honest.dtype}"
        )
    if context.m < 0:
        raise PluginError(f"{attack.name}: m must be at least 0 malicious clients, not {context.m}")


def repeat(row: Tensor, m: int) -> Tensor:
    """row (d,) -> (m, d): every malicious client sends the same."""
    return row.expand(m, -1).clone()
