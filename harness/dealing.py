"""Which training records a training holds out, and which client gets which of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.contracts.data import hold_out
from harness.errors import PluginError, blamed
from harness.random import numpy_generator

if TYPE_CHECKING:
    import numpy as np

    from harness.contracts.privacy import TrainingVariant
    from harness.scenario_parts import Federation


@dataclass(frozen=True)
class Records:
    """The labels (n,) of a training split and, where it has groups, the group of each record (n,)."""

    labels: np.ndarray
    groups: np.ndarray | None


@dataclass(frozen=True)
class Pool:
    """Positions in the training split. clients: the records of each client. members: all that clients hold.

    non_members: those that no client holds. `Training.members` says which members belong to clients that really train.
    """

    clients: list[np.ndarray]
    members: np.ndarray
    non_members: np.ndarray


def set_apart(
    records: Records, holdout: float, seed: int, variant: TrainingVariant | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (members, non-members), sorted: those of the seed, or of a variant that asks for other members.

    Raises HarnessError where no such share can be held out.
    """
    import numpy as np

    everything = np.arange(len(records.labels)), np.empty(0, dtype=np.int64)
    if variant is not None and variant.keep is not None:
        if variant.keep == 1:
            return everything
        rng = numpy_generator(seed, "variant", variant.complement_of or variant.name)
        kept, left = hold_out(records.labels, records.groups, 1 - variant.keep, rng)
        return (kept, left) if variant.complement_of is None else (left, kept)
    if not holdout:
        return everything
    return hold_out(records.labels, records.groups, holdout, numpy_generator(seed, "holdout"))


def deal(
    records: Records,
    federation: Federation,
    holdout: float,
    seed: int,
    variant: TrainingVariant | None = None,
    drawn_by: int | None = None,
) -> Pool:
    """Hold out non-members, then partition the rest; both seeded and by group, the same for every cell of a seed.

    drawn_by: the seed of the partition where that is not `seed`, as for a shadow model, which has its own. Raises
    HarnessError where no such partition can be drawn, PluginError where a partitioner breaks its contract.
    """
    import numpy as np

    members, non_members = set_apart(records, holdout, seed, variant)
    rng = numpy_generator(seed if drawn_by is None else drawn_by, "partition")
    groups = None if records.groups is None else records.groups[members]
    partitioner = federation.partition
    with blamed(partitioner):
        found = partitioner.partition(records.labels[members], groups, federation.clients, rng)
    parts = _positions(partitioner.name, found)
    _check_partition(partitioner.name, parts, federation.clients, len(members))
    return Pool([members[np.sort(part)] for part in parts], members, non_members)


def _positions(name: str, found: Any) -> list[np.ndarray]:
    """What a partitioner returned, as arrays of positions. Raises PluginError where it is anything else."""
    import numpy as np

    if not isinstance(found, Iterable):
        raise PluginError(
            f"partitioner {name} returned {type(found).__name__}, not a list of positions, one array a client"
        )
    parts = [np.asarray(part) for part in found]
    for part in parts:
        if part.ndim != 1 or (part.size and part.dtype.kind not in "iu"):
            raise PluginError(
                f"partitioner {name} returned a part {part.shape} of {part.dtype}, not positions (n,) of whole numbers"
            )
    return parts


def _check_partition(name: str, parts: list[np.ndarray], clients: int, records: int) -> None:
    import numpy as np

    if len(parts) != clients:
        raise PluginError(f"partitioner {name} made {len(parts)} parts for {clients} clients")
    together = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    if len(together) != records or not np.array_equal(np.sort(together), np.arange(records)):
        raise PluginError(f"partitioner {name} must give every record to exactly one client")
    if any(len(part) == 0 for part in parts):
        raise PluginError(f"partitioner {name} left a client without records; use fewer clients or less skew")
