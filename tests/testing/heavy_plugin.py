"""A plugin whose module imports torch at the top: the fault of the file itself."""

from __future__ import annotations

import torch

from harness.api import Aggregator, Reference


class Eager(Aggregator):
    """The mean of the updates, from a module that loads torch at once. Costs O(n d)."""

    name = "broken-eager"
    reference = Reference(title="A method made up for tests", url="https://example.org/method")

    def aggregate(self, updates, context):
        return torch.mean(updates, dim=0)
