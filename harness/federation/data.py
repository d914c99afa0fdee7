"""A dataset on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.dataset_cache import load_splits

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.data import Dataset, Split


@dataclass(frozen=True)
class Part:
    """One split on the device: images (n, c, h, w) as stored, labels (n,); groups stay in NumPy."""

    images: Tensor
    labels: Tensor
    groups: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """(images, labels) at these positions."""
        index = torch.as_tensor(positions, device=self.labels.device)
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class DeviceData:
    """Train, val and test on one device."""

    train: Part
    val: Part
    test: Part
    num_classes: int
    input_shape: tuple[int, int, int]


@lru_cache(maxsize=2)
def load(dataset: Dataset, root: Path, device: str, fingerprint: str = "") -> DeviceData:
    """A dataset on a device, loaded and checked; a process keeps the last two.

    On a CPU, images are mapped from the cache, not copied.
    """
    splits = load_splits(dataset, root, fingerprint)

    def part(split: Split) -> Part:
        images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
        return Part(images, torch.from_numpy(split.labels.astype(np.int64)).to(device), split.groups)

    return DeviceData(
        part(splits.train), part(splits.val), part(splits.test), splits.num_classes, splits.input_shape
    )
