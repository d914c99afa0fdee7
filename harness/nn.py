"""Layers that models share. Imports torch."""

from __future__ import annotations

import torch
from torch import nn

from harness.contracts.model import Normalization
from harness.errors import PluginError


class Normalize(nn.Module):
    """(x - mean) / std per channel, for pixels in [0, 1]; both are constants, not parameters or in the state dict."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def normalization_layer(normalization: Normalization | None, channels: int) -> nn.Module:
    """The first layer of a model: Normalize, or Identity. Raises PluginError on a wrong number of channels."""
    if normalization is None:
        return nn.Identity()
    values = []
    for name in ("mean", "std"):
        value = getattr(normalization, name)
        per_channel = value if isinstance(value, list) else [value] * channels
        if len(per_channel) != channels:
            raise PluginError(
                f"normalization.{name} has {len(per_channel)} values, the images {channels} channels"
            )
        values.append([float(v) for v in per_channel])
    return Normalize(*values)
