"""Neurotoxin: a backdoor written where honest clients rarely write."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import Field, Reference
from harness_plugins.attacks.poisoning._backdoor import WithBackdoor

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, GradientFn, Local, Params


class Neurotoxin(WithBackdoor):
    """Projects the malicious gradient onto coordinates that the last global update changed little.

    The round(top d) coordinates of the last global update that are largest in magnitude are masked: the
    malicious clients' gradients are zero there, in every local step (Algorithm 1). Without momentum or weight
    decay their updates are then zero there too. In the first round there is no last update, and nothing is
    masked. The authors' code takes the gradient of clean records at the global weights for the last update, and the
    share in each layer unless told to take it over all of them.

    The attackers control their training: they run no client-side defence. Costs O(d log d) a client and round beside
    the backdoor's own.
    """

    name: ClassVar[str] = "neurotoxin"
    controls_training: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="Neurotoxin: Durable Backdoors in Federated Learning",
        authors="Zhang, Panda, Song, Yang, Mahoney, Mittal, Ramchandran, Gonzalez",
        venue="ICML",
        year=2022,
        url="https://arxiv.org/abs/2206.10341",
    )

    top: float = Field(0.05, ge=0, lt=1, description="share of the coordinates masked: the most changed ones")

    def gradient(self, local: Local) -> GradientFn | None:
        import torch

        inner = self.backdoor.gradient(local) or local.gradient
        masked = 0 if local.moved is None else round(self.top * len(local.moved))
        if not masked or local.moved is None:
            return inner
        free = torch.ones_like(local.moved, dtype=torch.bool)
        free[local.moved.abs().topk(masked, sorted=False).indices] = False

        def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
            found = inner(params, batch, key)
            return {name: g * free[local.layout[name]].view_as(g) for name, g in found.items()}

        return gradient


PLUGINS = (Neurotoxin,)
