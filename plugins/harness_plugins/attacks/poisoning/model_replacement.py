"""Model replacement: a backdoored update, scaled to survive the average."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import Field, Reference, UpdateContext
from harness_plugins.attacks.poisoning._backdoor import WithBackdoor

if TYPE_CHECKING:
    from torch import Tensor


class ModelReplacement(WithBackdoor):
    """Trains a backdoor and sends gamma times the update, so that the average becomes the attacker's model.

    gamma = 1 / w, with w the malicious clients' share of the round's weight, makes the mean of the updates that of the
    malicious ones, up to what honest ones add (equation 3 with server learning rate 1): n / m where m of n clients
    are malicious and all weigh the same. `bound` scales the result down to a norm, to pass norm-based rules
    (train-and-scale); the paper's anomaly term in the loss (constrain-and-scale) is not part of it.

    The attackers control their training: they run no client-side defence. Costs O(d) beside the backdoor's own.
    """

    name: ClassVar[str] = "model-replacement"
    controls_training: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="How To Backdoor Federated Learning",
        authors="Bagdasaryan, Veit, Hua, Estrin, Shmatikov",
        venue="AISTATS",
        year=2020,
        url="https://arxiv.org/abs/1807.00459",
    )

    scale: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="factor gamma on the update; null: 1 / w of the round"
    )
    bound: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest norm of what is sent, in units of an update"
    )

    def update(self, delta: Tensor, context: UpdateContext) -> Tensor:
        delta = self.backdoor.update(delta, context)
        scale = self.scale if self.scale is not None else 1 / context.share if context.share else 1.0
        sent = scale * delta
        norm = float(sent.double().norm())
        if self.bound is not None and norm > self.bound:
            sent = sent * (self.bound / norm)
        return sent


PLUGINS = (ModelReplacement,)
