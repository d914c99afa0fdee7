"""Squared Euclidean distances between updates, and the Krum scores built on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_plugins.aggregators._columns import blocks, middle, sort_clients

if TYPE_CHECKING:
    from torch import Tensor

FAR = 1e6  # squared norms this many times the median one lose too many digits in a shared Gram matrix


def squared_distances(updates: Tensor) -> Tensor:
    """updates (n, d) -> (n, n) float64 on the CPU: ||x_i - x_j||^2, symmetric, zero on the diagonal.

    From the Gram matrix of the updates minus their coordinate-wise median, accumulated in float64:
    ||x_i||^2 + ||x_j||^2 - 2 <x_i, x_j>. The median removes a common offset and, unlike the mean, is
    not moved by outliers, so distances between the other rows keep their digits. Outliers that
    may be near one another are measured again about a median of their own.
    Rows that are not finite are infinitely far from all others. Costs O(n^2 d).
    """
    import torch

    n = len(updates)
    gram = torch.zeros((n, n), dtype=torch.float64, device=updates.device if updates.is_cuda else "cpu")
    for _, block in blocks(updates):
        centred = block.double() - middle(sort_clients(block))
        gram += centred @ centred.T
    gram = gram.cpu()
    gram = (gram + gram.T) / 2
    norms = gram.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0)
    distances = torch.where(distances.isfinite(), distances, torch.inf).fill_diagonal_(0)

    finite = norms.isfinite()
    if finite.any():
        far = torch.nonzero(finite & (norms > FAR * norms[finite].median())).flatten()
        if 1 < len(far) < n:
            distances[far[:, None], far] = squared_distances(updates[far.to(updates.device)])
    return distances


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
    import torch

    distances = squared_distances(updates).fill_diagonal_(torch.inf)
    scores = distances.sort(dim=1).values[:, :neighbours].sum(1)
    return scores.sort(stable=True).indices.tolist()
