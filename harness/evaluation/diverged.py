"""Models that answer NaN: their training, or their compression, has diverged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import HarnessError

if TYPE_CHECKING:
    import numpy as np

FLAG = "nan-predictions"  # on the records of a released model that does so for some test image


def unanswered(logits: np.ndarray) -> int:
    """How many rows hold a NaN, and so predict no class, as in `evasion.right`. logits (n, k)."""
    return int((logits != logits).any(1).sum())


def check_answers(logits: np.ndarray, whose: str) -> None:
    """Raises HarnessError where a model that an attack queries answers NaN: finding little then says nothing."""
    if count := unanswered(logits):
        raise HarnessError(
            f"{whose} answers NaN to {count} of {len(logits)} images: it has diverged, so what it leaks is unknown"
        )
