"""The pathological split: few classes on each client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Field, Partitioner, PluginError, Reference
from harness_plugins.partitioners._common import check_request, ordered

if TYPE_CHECKING:
    import numpy as np


class Shards(Partitioner):
    """Records sorted by label, cut into clients * shards_per_client equal shards, dealt at random.

    Every client gets shards_per_client shards, so at most about that many classes. Records of one class
    come in random order; shard sizes differ by at most one. Groups play no part: records of one group
    (patient) may land on several clients. Raises PluginError where there are fewer records than shards. O(n
    log n). Source: McMahan et al. 2017, section 3 ("pathological non-IID": 200 shards of 300, 2 a client).
    """

    name = "shards"
    reference = Reference(
        title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
        authors="McMahan, Moore, Ramage, Hampson, Agüera y Arcas",
        venue="AISTATS",
        year=2017,
        url="https://arxiv.org/abs/1602.05629",
    )

    shards_per_client: int = Field(2, ge=1, description="shards that each client gets")

    def partition(
        self, labels: np.ndarray, groups: np.ndarray | None, clients: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        import numpy as np

        check_request(labels, clients)
        count = clients * self.shards_per_client
        if len(labels) < count:
            raise PluginError(f"{len(labels)} records cannot fill {count} shards ({clients} clients)")
        shuffled = rng.permutation(len(labels))
        by_label = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
        shards = np.array_split(by_label, count)
        hands = rng.permutation(count).reshape(clients, self.shards_per_client)
        return ordered([np.concatenate([shards[i] for i in hand]) for hand in hands])


PLUGINS = (Shards,)
