"""A dataset on the device, and how its training records are dealt out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.contracts.data import hold_out
from harness.dataset_cache import load_splits
from harness.errors import PluginError
from harness.random import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.data import Dataset, Split
    from harness.contracts.privacy import TrainingVariant


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
    """Loaded and checked once per process, then kept. On a CPU, images are mapped from the cache, not copied."""
    splits = load_splits(dataset, root, fingerprint)

    def part(split: Split) -> Part:
        images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
        return Part(images, torch.from_numpy(split.labels.astype(np.int64)).to(device), split.groups)

    return DeviceData(
        part(splits.train), part(splits.val), part(splits.test), splits.num_classes, splits.input_shape
    )


@dataclass(frozen=True)
class Pool:
    """Positions in the training split. clients: each one's records. members: all that clients hold.

    non_members: held by nobody. Of the members, whose clients train is for `Training.members` to say.
    """

    clients: list[np.ndarray]
    members: np.ndarray
    non_members: np.ndarray


def deal(
    data: DeviceData,
    federation: Any,
    holdout: float,
    variant: TrainingVariant | None,
    seed: int,
    drawn_by: int,
) -> Pool:
    """Hold out non-members, then partition the rest; both seeded and by group, the same for every cell of a seed.

    drawn_by: the seed of the partition, which is a shadow model's own.
    """
    labels = data.train.labels.cpu().numpy()
    groups = data.train.groups
    members, non_members = np.arange(len(labels)), np.empty(0, dtype=np.int64)
    if holdout:
        members, non_members = hold_out(labels, groups, holdout, numpy_generator(seed, "holdout"))
    if variant is not None and variant.keep is not None:
        members, non_members = np.arange(len(labels)), np.empty(0, dtype=np.int64)
        if variant.keep < 1:
            rng = numpy_generator(seed, "variant", variant.complement_of or variant.name)
            members, non_members = hold_out(labels, groups, 1 - variant.keep, rng)
            if variant.complement_of is not None:
                members, non_members = non_members, members
    partitioner = federation.partition
    pool_groups = None if groups is None else groups[members]
    parts = partitioner.partition(
        labels[members], pool_groups, federation.clients, numpy_generator(drawn_by, "partition")
    )
    _check_partition(partitioner.name, parts, federation.clients, len(members))
    return Pool([members[np.sort(p)] for p in parts], members, non_members)


def _check_partition(name: str, parts: list[np.ndarray], clients: int, records: int) -> None:
    if len(parts) != clients:
        raise PluginError(f"partitioner {name} made {len(parts)} parts for {clients} clients")
    together = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    if len(together) != records or not np.array_equal(np.sort(together), np.arange(records)):
        raise PluginError(f"partitioner {name} must give every record to exactly one client")
    if any(len(p) == 0 for p in parts):
        raise PluginError(f"partitioner {name} left a client without records; use fewer clients or less skew")
