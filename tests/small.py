"""What tests of several files run: the smallest scenario that trains, and the smallest data of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SCENARIO = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 2, rounds: 1, local: {steps: 1, batch_size: 16}}
metrics: [accuracy]
"""


def write_images(file: Path) -> Path:
    """40, 10 and 10 random images of 8x8 pixels and three classes, as an npz."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(file, **arrays)
    return file
