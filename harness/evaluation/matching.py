"""Which reconstruction belongs to which original."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def match_images(originals: Tensor, guesses: Tensor) -> Tensor:
    """Positions (b,) in guesses (b', c, h, w), one for each of originals (b, c, h, w) with b <= b'.

    The assignment with the least sum of mean squared errors (Kuhn 1955), so the order of guesses plays no part.
    """
    import torch
    from scipy.optimize import linear_sum_assignment

    errors = torch.cdist(originals.flatten(1).double(), guesses.flatten(1).double()).square()
    return torch.from_numpy(linear_sum_assignment(errors.cpu().numpy())[1]).to(guesses.device)
