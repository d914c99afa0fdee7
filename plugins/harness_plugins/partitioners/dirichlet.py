"""Label skew by a Dirichlet distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Field, Partitioner, Reference
from harness_plugins.partitioners._common import check_request, cuts, ordered, too_uneven

if TYPE_CHECKING:
    import numpy as np


class Dirichlet(Partitioner):
    """Label skew: for each class k, p_k ~ Dir(alpha, ..., alpha) says how the clients share its records.

    p_k is (clients,) with sum 1; class k's n_k records, in random order, are cut at floor(n_k cumsum(p_k)).
    alpha -> infinity approaches equal shares of each class; alpha -> 0 gives each class to one client.
    Client sizes vary with the draw. The whole draw is repeated until every client has at least min_size
    records. Groups play no part: records of one group (patient) may land on several clients.

    Raises PluginError where n < clients * min_size, or no draw of max_draws left every client enough. O(n +
    classes * clients) a draw. Source: Yurochkin et al. 2019, section 4 (heterogeneous partition). Hsu, Qi,
    Brown 2019 (arXiv 1909.06335) draw a mixture of classes for each client instead, at equal client sizes.
    """

    name = "dirichlet"
    reference = Reference(
        title="Bayesian Nonparametric Federated Learning of Neural Networks",
        authors="Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni",
        venue="ICML",
        year=2019,
        url="https://arxiv.org/abs/1905.12022",
    )

    alpha: float = Field(
        0.5, gt=0, le=1e6, allow_inf_nan=False, description="concentration, no unit: smaller is more skewed"
    )
    min_size: int = Field(1, ge=1, description="records that every client gets at least")
    max_draws: int = Field(1000, ge=1, description="draws before giving up")

    def partition(
        self, labels: np.ndarray, groups: np.ndarray | None, clients: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        import numpy as np

        check_request(labels, clients, self.min_size)
        classes = [np.flatnonzero(labels == value) for value in np.unique(labels)]
        counts = np.array([len(members) for members in classes])
        concentration = np.full(clients, self.alpha)
        for _ in range(self.max_draws):
            at = [cuts(rng.dirichlet(concentration), n) for n in counts]
            sizes = sum(np.diff(cut, prepend=0, append=n) for cut, n in zip(at, counts, strict=True))
            if np.min(sizes) >= self.min_size:
                break
        else:
            raise too_uneven(self.name, clients, self.min_size, self.max_draws)
        pieces = [np.split(rng.permutation(members), cut) for members, cut in zip(classes, at, strict=True)]
        return ordered([np.concatenate(client) for client in zip(*pieces, strict=True)])


PLUGINS = (Dirichlet,)
