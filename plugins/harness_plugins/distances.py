"""Squared Euclidean distances between updates, and the Krum scores built on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_plugins.columns import blocks, middle, sort_clients

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SHARED = 100  # pairs whose squared distance is this much less than their squared norms share an offset
LONGEST = 2.0**230  # of float64 values, whose squares are summed and squared again
FAR = 100  # squared norms this many times the median one lose too many digits in a shared Gram matrix


def squared_distances(updates: Tensor, exact: bool = False) -> Tensor:
    """updates (n, d) -> (n, n) float64 on the CPU: ||x_i - x_j||^2, symmetric, zero on the diagonal.

    From the Gram matrix, blocks of it in the updates' own precision (`exact`: in float64) and their sum in
    float64: ||x_i||^2 + ||x_j||^2 - 2 <x_i, x_j>. A distance loses digits where its two rows are long beside it.
    Where that is so among most rows, they share an offset, which is taken off: the coordinate-wise median, which
    unlike the mean is not moved by outliers. Outliers that may be near one another are measured again among
    themselves. Rows that are not finite are infinitely far from all others. Costs O(n^2 d).
    """
    import numpy as np
    import torch

    gram, distances, exact = _measured(updates, exact)
    norms = gram.diagonal()
    finite = np.isfinite(norms)
    if finite.any():
        far = np.flatnonzero(finite & (norms > FAR * np.median(norms[finite])))
        if 1 < len(far) < len(updates):
            index = torch.from_numpy(far).to(updates.device)
            distances[np.ix_(far, far)] = squared_distances(updates[index], exact).numpy()
    return torch.from_numpy(distances)


def shared_gram(updates: Tensor) -> Tensor:
    """updates (n, d) -> (n, n) float64 on the CPU: <x_i - c, x_j - c>, c the offset that most rows share, else zero.

    Distances to a combination v = sum_j w_j x_j, w of sum 1, follow from it: ||v - x_i||^2 = (e_i - w)' G (e_i - w).
    Through squared distances they would too, but an outlier's is the square of its length R, and w_j R^2 would drown
    the other rows; here it is w_j R times their own length.
    """
    import torch

    return torch.from_numpy(_measured(updates, False)[0])


def scaled_down(updates: Tensor) -> tuple[Tensor, float]:
    """(updates times s, s): a power of two that lets the fourth powers of rows' lengths fit float64; nearly always 1.

    Shorter types cannot hold rows that long.
    """
    import math

    import torch

    if updates.dtype != torch.float64 or not updates.numel():
        return updates, 1.0
    least, most = (float(value) for value in updates.detach().aminmax())
    largest = max(-least, most)
    if not LONGEST < largest < math.inf:
        return updates, 1.0
    scale = 2.0 ** math.floor(math.log2(LONGEST / largest))
    return updates * scale, scale


def _measured(updates: Tensor, exact: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """Inner products (n, n) and squared distances (n, n) about a fitting origin; whether in float64."""
    import numpy as np
    import torch

    exact = exact or updates.dtype != torch.float32
    gram, distances = _from_gram(updates, exact)
    if not exact and not np.isfinite(gram.diagonal()).all():
        exact = True  # a finite row beyond 1e19, whose square float32 cannot hold
        gram, distances = _from_gram(updates, exact)
    if _majority_shares_an_offset(gram.diagonal(), distances):
        gram, distances = _from_gram(updates, True, centred=True)
    return gram, distances, exact


def _majority_shares_an_offset(norms: np.ndarray, distances: np.ndarray) -> bool:
    """Whether more than a quarter of the pairs of different rows are close beside the rows' own lengths.

    More than half of the rows, h >= (n + 1) / 2, have h (h - 1) of the n (n - 1) pairs among themselves, which is
    always more than a quarter: 12 of 20 rows have 0.35 of them. A share of a half would miss such a majority, and the
    median lies among its values whatever the other rows are.
    """
    import numpy as np

    n = len(norms)
    close = distances < (norms[:, None] + norms) / SHARED
    np.fill_diagonal(close, False)
    return bool(close.sum() > n * (n - 1) / 4)


def _from_gram(updates: Tensor, exact: bool, centred: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and squared distances, both (n, n), of the rows, or of the rows minus their median."""
    import numpy as np
    import torch

    n = len(updates)
    total = torch.zeros((n, n), dtype=torch.float64, device=updates.device if updates.is_cuda else "cpu")
    for _, block in blocks(updates):
        rows = block.double() if exact else block
        if centred:
            rows = rows - middle(sort_clients(block))
        total += rows @ rows.T
    gram = total.cpu().numpy()  # small matrices from here on, where NumPy's calls cost less
    gram = (gram + gram.T) / 2
    norms = gram.diagonal()
    with np.errstate(invalid="ignore"):
        distances = np.maximum(norms[:, None] + norms - 2 * gram, 0)
    if not np.isfinite(distances).all():
        distances[~np.isfinite(distances)] = np.inf
    np.fill_diagonal(distances, 0)
    return gram, distances


def gram_about(distances: Tensor, weights: Tensor) -> Tensor:
    """Inner products <x_i - v, x_j - v> (n, n) about v = sum_i weights_i x_i, weights of sum 1, from distances.

    distances (n, n) squared, as from `squared_distances`; finite ones only.
    """
    towards = distances @ weights
    return (towards[:, None] + towards[None, :] - weights @ towards - distances) / 2


def krum_order(updates: Tensor, neighbours: int) -> list[int]:
    """Rows from the best Krum score to the worst; ties go to the lower row.

    The score of a row is the sum of its squared distances to its `neighbours` nearest other rows.
    """
    import numpy as np

    distances = squared_distances(updates).numpy()
    np.fill_diagonal(distances, np.inf)
    nearest = np.partition(distances, min(neighbours, len(distances)) - 1, axis=1)[:, :neighbours]
    order: list[int] = np.sort(nearest, axis=1).sum(1).argsort(kind="stable").tolist()
    return order
