"""Gaussian noise that a record's key decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.api import split, uniform

if TYPE_CHECKING:
    from torch import Tensor


def gaussian(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """N(0, 1) numbers, float32, from what `record_keys` gives: by Box and Muller, two uniform numbers make one."""
    first, second = (uniform(split(keys, i), shape) for i in (0, 1))
    return (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()
