"""Mean and standard deviation over the honest updates, coordinate by coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.api import ByzantineAttack, ByzantineContext, PluginError
from harness_plugins.columns import blocks

if TYPE_CHECKING:
    from torch import Tensor


def moments(honest: Tensor, deviation: bool = True) -> tuple[Tensor, Tensor]:
    """honest (h, d) -> mean (d,) and standard deviation (d,), ddof = 1, computed in float64.

    The deviation is zero where h = 1, for which ddof = 1 leaves it undefined, and where it isn't wanted.
    """
    import numpy as np
    import torch

    mean, std = honest.new_empty(honest.shape[1]), honest.new_zeros(honest.shape[1])
    h = len(honest)
    for columns, block in blocks(honest):
        exact: Any = block.to(torch.float64, copy=True)
        if not block.is_cuda:
            exact = exact.numpy()  # whose sums and steps in place are faster than torch's
        with np.errstate(over="ignore"):
            centre = exact.sum(0) / h
            mean[columns] = torch.as_tensor(centre)
            if deviation and h > 1:
                exact -= centre
                exact *= exact
                std[columns] = torch.as_tensor((exact.sum(0) / (h - 1)) ** 0.5)
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


def unit(vector: Tensor) -> Tensor:
    """vector (d,) -> (d,): of length one, as measured in float64; zero stays zero."""
    length = float(vector.double().norm())
    return vector / length if length > 0 else vector
