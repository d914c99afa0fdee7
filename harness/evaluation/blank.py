"""A network emptied of what it has learned, to be restored from a file."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def blank(module: M) -> M:
    """Fills the floats of the module's state with NaN, so that a value missing from a file shows; sets eval mode.

    Integers, and buffers that are not part of the state, such as constants, stay as they are.
    """
    for tensor in module.state_dict().values():
        if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.fill_(torch.nan)
    return module.eval()
