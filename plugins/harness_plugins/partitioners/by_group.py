"""The natural split: a patient or site stays on one client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Partitioner, PluginError, Reference
from harness_plugins.partitioners._common import check_request, ordered

if TYPE_CHECKING:
    import numpy as np


class ByGroup(Partitioner):
    """Whole groups (patients, sites) dealt to clients, sizes balanced greedily.

    Longest-processing-time rule: groups from the largest to the smallest, each to the client with the fewest
    records so far; ties, of groups and of clients, are broken at random. The largest client then has at most
    4/3 - 1/(3 clients) times the records of the best possible assignment (Graham 1969, theorem 2).

    Raises PluginError where the dataset has no groups, or fewer groups than clients.
    O(n log n + groups * clients).
    """

    name = "by-group"
    reference = Reference(
        title="Bounds on Multiprocessing Timing Anomalies",
        authors="Graham",
        venue="SIAM Journal on Applied Mathematics 17(2)",
        year=1969,
        url="https://doi.org/10.1137/0117039",
    )

    def partition(
        self, labels: np.ndarray, groups: np.ndarray | None, clients: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        import numpy as np

        if groups is None:
            raise PluginError("by-group needs a dataset with groups (patients, sites), and this one has none")
        check_request(labels, clients)
        if np.shape(groups) != np.shape(labels):
            raise PluginError(f"groups must be {np.shape(labels)} like labels, not {np.shape(groups)}")
        units, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
        if len(sizes) < clients:
            raise PluginError(f"{len(sizes)} groups cannot be dealt to {clients} clients")
        order = rng.permutation(len(sizes))
        order = order[np.argsort(-sizes[order], kind="stable")]
        owner = np.empty(len(sizes), dtype=np.int64)
        load = np.zeros(clients, dtype=np.int64)
        for group in order:
            owner[group] = rng.choice(np.flatnonzero(load == load.min()))
            load[owner[group]] += sizes[group]
        holder = owner[units]
        return ordered([np.flatnonzero(holder == client) for client in range(clients)])


PLUGINS = (ByGroup,)
