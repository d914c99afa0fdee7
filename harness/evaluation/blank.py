"""A network without what it has learned, to be restored from a file."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def blank(module: M) -> M:
    """The module, in eval mode, with NaN, in place, for every float of its state: a value that no file gave shows.

    Integers, and buffers that are no part of the state, such as constants, stay as they are.
    """
    for tensor in module.state_dict().values():
        if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.fill_(torch.nan)
    return module.eval()
