"""Which records a client trains on in each step: drawn on the device, from (seed, client, round) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.defence import Sampling


def steps_per_round(size: int, batch_size: int, epochs: int | None, steps: int | None) -> int:
    """Local steps a client with `size` records takes in one round."""
    return steps if steps is not None else (epochs or 0) * math.ceil(size / batch_size)


AHEAD = 1 << 24  # coins that are thrown before the first batch of a block is taken


def _blocks(steps: int, coins: int, device: torch.device) -> Iterator[range]:
    """The steps, in blocks whose coins are thrown at once: one step each on a CPU.

    How many records a batch has is known once the coins have fallen, and a GPU would stand still for it in every step.
    """
    ahead = 1 if device.type == "cpu" else max(1, AHEAD // max(coins, 1))
    return (range(start, min(start + ahead, steps)) for start in range(0, steps, ahead))


def batches(
    size: int, batch_size: int, steps: int, sampling: Sampling, generator: torch.Generator
) -> Iterator[Tensor]:
    """`steps` index tensors into a client's records.

    shuffle: one permutation per epoch, whose last batch may be smaller. poisson: each record is drawn by a coin of
    its own with probability `sampling.rate`, so a batch may be empty.
    """
    if sampling.method == "poisson":
        if sampling.rate is None:
            raise ValueError("poisson sampling needs a rate")
        for ahead in _blocks(steps, size, generator.device):
            drawn = torch.stack(
                [
                    torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
                    < sampling.rate
                    for _ in ahead
                ]
            )
            found = torch.nonzero(drawn)[:, 1]
            yield from [found] if len(ahead) == 1 else found.split(drawn.sum(1).tolist())
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


def stacked_batches(
    sizes: Sequence[int],
    batch_size: int,
    steps: Sequence[int],
    samplings: Sequence[Sampling],
    generators: Sequence[torch.Generator],
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The same batches for many clients at once: indices (k, b), and a mask (k, b) bool of the real ones.

    steps: in falling order; k clients have a step left. b: the size of the largest of their batches. A shorter batch
    is padded with its first record, an empty one with the client's first record. With `shuffle` the mask is None
    where nothing is padded.
    """
    if samplings[0].method == "poisson":
        yield from _stacked_coins(sizes, steps, samplings, generators)
        return
    each = [
        batches(n, batch_size, s, how, g)
        for n, s, how, g in zip(sizes, steps, samplings, generators, strict=True)
    ]
    for step in range(steps[0]):
        parts = [next(own) for own, count in zip(each, steps, strict=True) if count > step]
        lengths = [len(part) for part in parts]
        longest = max(lengths)
        if min(lengths) == longest:
            yield torch.stack(parts), None
            continue
        filled = [torch.cat([p, p[:1].expand(longest - len(p))]) if len(p) < longest else p for p in parts]
        counts = torch.tensor(lengths, device=filled[0].device)[:, None]
        yield torch.stack(filled), torch.arange(longest, device=counts.device) < counts


def _stacked_coins(
    sizes: Sequence[int],
    steps: Sequence[int],
    samplings: Sequence[Sampling],
    generators: Sequence[torch.Generator],
) -> Iterator[tuple[Tensor, Tensor]]:
    device = generators[0].device
    rates = torch.tensor([s.rate for s in samplings], dtype=torch.float64, device=device)[:, None]
    # A coin of 1 is never drawn: it stays where a client has no record.
    coins = torch.ones(len(sizes), max(sizes), dtype=torch.float64, device=device)
    for ahead in _blocks(steps[0], coins.numel(), device):
        drawn = []
        for step in ahead:
            k = sum(count > step for count in steps)
            for row, size, generator in zip(coins[:k], sizes[:k], generators[:k], strict=True):
                row[:size] = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
            drawn.append(coins[:k] < rates[:k])
        counts = [own.sum(1, keepdim=True) for own in drawn]
        most = torch.stack([count.max() for count in counts]).tolist()
        for own, count, largest in zip(drawn, counts, most, strict=True):
            longest = max(1, largest)
            # A stable sort puts the drawn records first, in their order.
            index = own.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
            mask = torch.arange(longest, device=device) < count
            yield index.where(mask, index[:, :1]), mask
