"""Quantity skew: clients of very different sizes, alike in their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Field, Partitioner, Reference
from harness_plugins.partitioners._common import check_request, cuts, ordered, too_uneven

if TYPE_CHECKING:
    import numpy as np


class Quantity(Partitioner):
    """Client sizes are n q with q ~ Dir(alpha, ..., alpha), (clients,); which records is uniformly random.

    Labels are therefore identically distributed over clients. A random permutation of the records is cut at
    floor(n cumsum(q)). The draw of q is repeated until every client has at least min_size records.
    Groups play no part: records of one group (patient) may land on several clients.

    Raises PluginError where n < clients * min_size, or no draw of max_draws left every client enough.
    O(n). Source: Li, Diao, Chen, He 2022, section IV-C (quantity skew).
    """

    name = "quantity"
    reference = Reference(
        title="Federated Learning on Non-IID Data Silos: An Experimental Study",
        authors="Li, Diao, Chen, He",
        venue="ICDE",
        year=2022,
        url="https://arxiv.org/abs/2102.02079",
    )

    alpha: float = Field(
        0.5, gt=0, le=1e6, allow_inf_nan=False, description="concentration, no unit: smaller is more uneven"
    )
    min_size: int = Field(1, ge=1, description="records that every client gets at least")
    max_draws: int = Field(1000, ge=1, description="draws before giving up")

    def partition(
        self, labels: np.ndarray, groups: np.ndarray | None, clients: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        import numpy as np

        check_request(labels, clients, self.min_size)
        n = len(labels)
        for _ in range(self.max_draws):
            at = cuts(rng.dirichlet(np.full(clients, self.alpha)), n)
            if np.diff(at, prepend=0, append=n).min() >= self.min_size:
                return ordered(np.split(rng.permutation(n), at))
        raise too_uneven(self.name, clients, self.min_size, self.max_draws)


PLUGINS = (Quantity,)
