"""What plugins return in a round, checked before anything is computed with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.errors import PluginError


def checked(found: Any, shape: Sequence[int], who: str, *, whole: bool = False) -> Tensor:
    """`found`, if it is a tensor of this shape. Raises PluginError, which names the plugin `who`, for anything else.

    whole: integers are accepted too; without it only floating point is.
    """
    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    if not isinstance(found, Tensor):
        raise PluginError(f"{who} returned {type(found).__name__}, not a tensor {wanted}")
    if found.shape != tuple(shape):
        raise PluginError(f"{who} returned {tuple(found.shape)}, not {wanted}")
    if found.is_meta:
        raise PluginError(f"{who} returned a tensor on the meta device, which holds no numbers")
    if not whole and not found.is_floating_point():
        # An integer update would move the weights by whole numbers, or not at all.
        raise PluginError(f"{who} returned {found.dtype}, not floating point")
    return found


def kept_rows(kept: Any, n: int, who: str) -> list[int]:
    """The positions, of n rows, that a rule reports as kept, by position or boolean mask; else raises PluginError."""
    try:
        rows = torch.as_tensor(kept)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(f"{who} reported kept={kept!r}: positions of rows or a boolean mask") from error
    if rows.dtype == torch.bool:
        if rows.shape != (n,):
            raise PluginError(f"{who} reported kept as a mask {tuple(rows.shape)} of {n} rows")
        return rows.nonzero().squeeze(1).tolist()  # type: ignore[no-any-return]
    found = rows.tolist()
    if rows.ndim != 1 or (found and (rows.is_floating_point() or rows.is_complex())):
        raise PluginError(f"{who} reported kept={found}: positions of rows or a boolean mask")
    wrong = [position for position in found if not 0 <= position < n]
    if wrong:
        raise PluginError(f"{who} reported the kept row {wrong[0]}, and has the rows 0 to {n - 1}")
    return found  # type: ignore[no-any-return]
