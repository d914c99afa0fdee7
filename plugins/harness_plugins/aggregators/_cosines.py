"""Cosine similarities between updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_plugins.columns import blocks

if TYPE_CHECKING:
    from torch import Tensor


def gram_matrix(updates: Tensor) -> Tensor:
    """updates (n, d) -> (n, n) float64 on the CPU: inner products, summed in float64. Costs O(n^2 d)."""
    import torch

    gram = torch.zeros((len(updates), len(updates)), dtype=torch.float64)
    for _, block in blocks(updates):
        exact = block.double()
        gram += (exact @ exact.T).cpu()
    return (gram + gram.T) / 2


def cosines(gram: Tensor) -> Tensor:
    """Inner products (n, n) -> cosines (n, n), 1 on the diagonal; those with a zero row are 0."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    return (gram / (norms[:, None] * norms[None, :])).nan_to_num(nan=0.0).clamp(-1, 1).fill_diagonal_(1)
