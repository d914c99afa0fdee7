"""Mean and standard deviation over the honest updates, coordinate by coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.api import ByzantineAttack, ByzantineContext, PluginError

if TYPE_CHECKING:
    from torch import Tensor

# Values in a block: on a CPU its float64 copy stays in the cache, on a GPU it keeps the device busy.
CPU_BLOCK = 2**17
GPU_BLOCK = 2**25


def moments(honest: Tensor, deviation: bool = True) -> tuple[Tensor, Tensor]:
    """honest (h, d) -> mean (d,) and standard deviation (d,), ddof = 1, computed in float64.

    The deviation is zero where h = 1, for which ddof = 1 leaves it undefined, and where it isn't wanted.
    """
    import numpy as np
    import torch

    mean, std = honest.new_empty(honest.shape[1]), honest.new_zeros(honest.shape[1])
    h = len(honest)
    exact = torch.float64 if honest.device.type in ("cpu", "cuda") else torch.float32  # mps has no float64
    width = max(1, (CPU_BLOCK if honest.device.type == "cpu" else GPU_BLOCK) // h)
    for first in range(0, honest.shape[1], width):
        columns = slice(first, first + width)
        block: Any = honest.detach()[:, columns].to(exact, copy=True)
        if honest.device.type == "cpu":
            block = block.numpy()  # whose sums and steps in place take 0.6 of the time of torch's
        with np.errstate(over="ignore"):
            centre = block.sum(0) / h
            mean[columns] = torch.as_tensor(centre)
            if deviation and h > 1:
                block -= centre
                block *= block
                std[columns] = torch.as_tensor((block.sum(0) / (h - 1)) ** 0.5)
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
