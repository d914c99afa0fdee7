"""Which records a client trains on in each step, on the device, from (seed, client, round) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.defence import Sampling


def steps_per_round(size: int, batch_size: int, epochs: int | None, steps: int | None) -> int:
    """Local steps a client with `size` records takes in one round."""
    return steps if steps is not None else (epochs or 0) * math.ceil(size / batch_size)


def batches(
    size: int, batch_size: int, steps: int, sampling: Sampling, generator: torch.Generator
) -> Iterator[Tensor]:
    """`steps` index tensors into a client's records.

    shuffle: one permutation an epoch, the last batch of it possibly smaller. poisson: every record by its own
    coin of probability `sampling.rate`, so a batch may be empty.
    """
    if sampling.method == "poisson":
        if sampling.rate is None:
            raise ValueError("poisson sampling needs a rate")
        for _ in range(steps):
            coins = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
            yield torch.nonzero(coins < sampling.rate).squeeze(1)
        return
    if sampling.method != "shuffle":
        raise ValueError(f"unknown sampling {sampling.method!r}")
    per_epoch = math.ceil(size / batch_size)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        position = step % per_epoch
        if position == 0:
            order = torch.randperm(size, generator=generator, device=generator.device)
        yield order[position * batch_size : (position + 1) * batch_size]
