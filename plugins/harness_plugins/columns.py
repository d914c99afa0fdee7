"""Walks over the coordinates of updates (n, d) in blocks, so that extra memory stays small.

Sorting and sums along clients are float64 inside a block: that costs little beside reading the updates. Products
with a matrix of weights stay in the updates' own precision, see `combine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Values in a block: on a CPU its float64 copy stays in the cache, on a GPU it keeps the device busy.
CPU_BLOCK = 2**19
GPU_BLOCK = 2**25
FEW = 12  # clients that a network of exchanges sorts faster than NumPy does
FEW_SELECTED = 32  # clients of which it finds order statistics faster
NETWORK_BLOCK = 2**15  # coordinates that it takes at a time: an exchange's rows stay in the cache
PRODUCT_BLOCK = 2**17  # values that a product takes at a time on a CPU: the rows stay in the cache


def blocks(updates: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(columns, updates[:, columns]) over all columns; read-only views, on a device that has float64."""
    host = updates.device.type not in ("cpu", "cuda")  # others, such as mps, have no float64
    width = max(1, (GPU_BLOCK if updates.is_cuda else CPU_BLOCK) // len(updates))
    for first in range(0, updates.shape[1], width):
        columns = slice(first, first + width)
        block = updates.detach()[:, columns]
        yield columns, block.cpu() if host else block


def sort_clients(block: Tensor) -> Tensor:
    """block (n, c) -> (c, n): the n values of each coordinate in ascending order, NaN last; a new tensor."""
    import numpy as np
    import torch

    if block.dtype not in (torch.float32, torch.float64):
        block = block.float()
    if block.is_cuda:
        return torch.sort(block.T.contiguous(), dim=1).values
    # A sum is NaN where a value is; of infinities too, which NumPy sorts as well.
    if len(block) <= FEW and not block.sum().isnan():
        parts = [np.stack(rows) for rows in _exchanged(block, exchanges(len(block)))]
        return torch.from_numpy(np.concatenate(parts, axis=1).T)
    # NumPy's sort of contiguous rows is vectorised: tens of times faster than torch's on a CPU.
    values = np.array(block.numpy().T, order="C", copy=True)
    values.sort(axis=1)
    return torch.from_numpy(values)


def mean_between(updates: Tensor, low: int, high: int) -> Tensor:
    """updates (n, d) -> (d,): of each coordinate the mean of its order statistics low to high - 1.

    0 <= low < high <= n. Summed in float64; NaN counts as larger than all.
    """
    import torch

    few = not updates.is_cuda and len(updates) <= FEW_SELECTED
    result = updates.new_empty(updates.shape[1])
    for columns, block in blocks(updates):
        if not (few and _mean_by_network(block, low, high, result[columns])):
            kept = sort_clients(block)[:, low:high]
            # Of one or two, as the median's, a reduction would take longer.
            result[columns] = middle(kept) if high - low <= 2 else kept.mean(1, dtype=torch.float64)
    return result


def _mean_by_network(block: Tensor, low: int, high: int, out: Tensor) -> bool:
    """Writes `mean_between` of a block (n, c) to out (c,), by a network that sorts no further than it must.

    False where a value is NaN, which an exchange would spread: out then holds anything.
    """
    import numpy as np
    import torch

    if block.dtype not in (torch.float32, torch.float64):
        block = block.float()
    first = 0
    with np.errstate(all="ignore"):  # infinities of both signs
        for rows in _exchanged(block, selection(len(block), low, high)):
            mean = rows[low].astype(np.float64)
            for row in rows[low + 1 : high]:
                mean += row
            mean /= high - low
            if np.isnan(mean.sum()):
                return False
            out[first : first + len(mean)] = torch.from_numpy(mean)
            first += len(mean)
    return True


def _exchanged(block: Tensor, network: list[tuple[int, int]]) -> Iterator[list[np.ndarray]]:
    """The rows of a block (n, c) after a network's exchanges, whole rows at once, for some columns after others."""
    import numpy as np

    values = block.numpy()
    for first in range(0, max(1, block.shape[1]), NETWORK_BLOCK):
        rows = list(values[:, first : first + NETWORK_BLOCK].copy())
        spare = np.empty_like(rows[0])
        for i, j in network:
            np.minimum(rows[i], rows[j], out=spare)
            np.maximum(rows[i], rows[j], out=rows[j])
            rows[i], spare = spare, rows[i]
        yield rows


@cache
def selection(n: int, low: int, high: int) -> list[tuple[int, int]]:
    """Exchanges after which rows low to high - 1 hold these order statistics in some order, and those before and after
    them what is smaller and larger: a sorting network without the exchanges that only order rows among themselves."""
    kept: list[tuple[int, int]] = []
    settled = [(row >= low) + (row >= high) for row in range(n)]
    read: set[int] = set()  # rows that a later exchange looks at
    for i, j in reversed(exchanges(n)):
        if i in read or j in read or settled[i] != settled[j]:
            kept.append((i, j))
            read |= {i, j}
    return kept[::-1]


@cache
def exchanges(n: int) -> list[tuple[int, int]]:
    """The odd-even merge sort's network for n values (Batcher 1968): (low, high) to be put in order, one by one."""
    found, sorted_runs = [], 1
    while sorted_runs < n:
        distance = sorted_runs
        while distance:
            for start in range(distance % sorted_runs, n - distance, 2 * distance):
                for low in range(start, min(start + distance, n - distance)):
                    if low // (2 * sorted_runs) == (low + distance) // (2 * sorted_runs):
                        found.append((low, low + distance))
            distance //= 2
        sorted_runs *= 2
    return found


def middle(ordered: Tensor) -> Tensor:
    """ordered (c, n) -> (c,) float64: the median, the mean of the middle two where n is even."""
    n = ordered.shape[1]
    return ordered[:, (n - 1) // 2].double() / 2 + ordered[:, n // 2].double() / 2


def nearest_to_median(ordered: Tensor, k: int) -> Tensor:
    """ordered (c, n) ascending -> (c,) float64: the mean of the k values nearest the median, 1 <= k <= n.

    These are neighbours in the order: of the n - k values that may go at either end, as many go at the low
    end as lie farther from the median than the value that would come in for them at the high end. Of two that
    are equally far the lower one stays.
    """
    import torch

    n = ordered.shape[1]
    spare = n - k
    if not spare:
        return ordered.mean(1, dtype=torch.float64)
    centre = middle(ordered)[:, None]
    low, high = ordered[:, :spare].double(), ordered[:, k:].double()
    swapped = (centre - low) > (high - centre)
    if k < spare:  # the two ends overlap: as many values as are swapped is where the k start
        index = swapped.sum(1, keepdim=True) + torch.arange(k, device=ordered.device)
        return ordered.gather(1, index).mean(1, dtype=torch.float64)
    core = ordered[:, spare:k].sum(1, dtype=torch.float64)  # these are always among the nearest
    return (core + torch.where(swapped, high, low).sum(1)) / k


def combine(weights: Tensor, updates: Tensor) -> Tensor:
    """weights (k, n) @ updates (n, d) -> (k, d) in the updates' dtype and device; a new tensor.

    One product in the updates' own precision (float32 at least): a weight of zero takes nothing from its row, so
    outliers that are left out cost no digits, and a float64 product would take three times as long.
    """
    import torch

    exact = updates.detach() if updates.dtype in (torch.float32, torch.float64) else updates.detach().float()
    weights = weights.to(exact)
    if exact.is_cuda:
        return (weights @ exact).to(updates.dtype)
    result = exact.new_empty(len(weights), exact.shape[1])
    width = max(1, PRODUCT_BLOCK // len(exact))
    for block, out in zip(exact.split(width, dim=1), result.split(width, dim=1), strict=True):
        torch.mm(weights, block, out=out)
    return result.to(updates.dtype)


def mean_of(updates: Tensor, rows: list[int], factors: Tensor | None = None) -> Tensor:
    """The mean (d,) of some rows, each first multiplied by its factor, factors (n,) over all rows, if given."""
    import torch

    weights = torch.zeros((1, len(updates)), dtype=torch.float64)
    weights[0, rows] = 1 / len(rows)
    if factors is not None:
        weights *= factors.cpu().double()
    return combine(weights, updates)[0]


def clip_factors(norms: Tensor, radius: float | Tensor) -> Tensor:
    """min(1, radius / norm) for norms (n,); 1 for a row that is zero."""
    return (radius / norms.clamp(min=radius)).nan_to_num(nan=1.0)


def scaled(updates: Tensor, factors: Tensor) -> Tensor:
    """updates (n, d) with row i multiplied by factors (n,) float64; a new tensor of the same dtype."""
    return updates.detach() * factors.to(updates)[:, None]


def inner_products(updates: Tensor, vector: Tensor) -> Tensor:
    """(n,) float64 on the CPU: the inner product of each row with a vector (d,)."""
    import torch

    total = torch.zeros(len(updates), dtype=torch.float64)
    for columns, block in blocks(updates):
        total += (block.double() @ vector[columns].to(block.device).double()).cpu()
    return total


def squared_norms(updates: Tensor) -> Tensor:
    """(n,) float64 on the CPU: the squared Euclidean norm of each row; blocks are summed in float64."""
    return squared_distances_to(updates, None)


def squared_distances_to(updates: Tensor, vector: Tensor | None) -> Tensor:
    """(n,) float64 on the CPU: ||x_i - vector||^2, vector (d,) or None for zero."""
    import torch

    total = torch.zeros(len(updates), dtype=torch.float64)
    parts = [(slice(None), updates.detach())] if _small(updates) else blocks(updates)
    for columns, block in parts:
        # Within a block in the updates' own precision: three times as fast, and a block is short.
        rows = block if vector is None else block - vector[columns].to(block)
        norms = torch.linalg.vector_norm(rows, dim=1).double()
        if not bool(norms.isfinite().all()):  # a square beyond float32, of a row that is not endless
            exact = block.double() if vector is None else block.double() - vector[columns].to(block).double()
            norms = torch.linalg.vector_norm(exact, dim=1)
        total += norms.square_().cpu()
    return total


def _small(updates: Tensor) -> bool:
    """Whether one block holds them."""
    return updates.numel() <= CPU_BLOCK and updates.device.type == "cpu"
