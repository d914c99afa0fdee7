"""Records dealt at random in equal shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Partitioner, Reference
from harness_plugins.partitioners._common import check_request, ordered

if TYPE_CHECKING:
    import numpy as np


class Iid(Partitioner):
    """A random permutation of the records, cut into equal shares; sizes differ by at most one.

    Labels and groups play no part: records of one group (patient) may land on several clients.
    Raises PluginError where there are fewer records than clients. O(n).
    """

    name = "iid"
    reference = Reference(
        title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
        authors="McMahan, Moore, Ramage, Hampson, Agüera y Arcas",
        venue="AISTATS",
        year=2017,
        url="https://arxiv.org/abs/1602.05629",
    )

    def partition(
        self, labels: np.ndarray, groups: np.ndarray | None, clients: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        import numpy as np

        check_request(labels, clients)
        return ordered(np.array_split(rng.permutation(len(labels)), clients))


PLUGINS = (Iid,)
