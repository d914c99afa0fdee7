"""Alternating minimisation: steps towards the backdoor, and steps that hide them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import ClientData, Field, PoisonContext, Reference
from harness_plugins.attacks.poisoning._backdoor import WithBackdoor

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, GradientFn, Local, LogitsFn, LossFn, Params


class AlternatingMinimisation(WithBackdoor):
    """Alternates boosted steps on the malicious objective with steps on a stealth objective.

    Malicious step: `boost` times the gradient of the loss on the batch with the backdoor's trigger and target
    class. Then `stealth_steps` steps on the loss of the batch as it is, plus rho ||delta - previous||_2,
    where delta is what the client has moved so far and previous is how the global weights moved in the last
    round (zero in the first), the attacker's estimate of what honest clients send. The distance is part of
    what is differentiated: its gradient is rho (delta - previous) / ||delta - previous||. The client's
    records stay clean (section 3.3 and 4). The authors' code begins with the stealth steps, takes half the squared
    distance for the distance, and none of it in the first round.

    The paper boosts the step. With SGD without momentum that is a boosted gradient; momentum carries the boost into the
    stealth steps, and optimisers that scale gradients themselves, as Adam does, undo most of it.

    The attackers control their training: they run no client-side defence. Raises PluginError for a backdoor without
    a trigger. Costs one gradient a step, as honest training.
    """

    name: ClassVar[str] = "alternating-minimisation"
    controls_training: ClassVar[bool] = True
    vectorises: ClassVar[bool] = False  # its gradient counts steps
    reference: ClassVar[Reference | None] = Reference(
        title="Analyzing Federated Learning through an Adversarial Lens",
        authors="Bhagoji, Chakraborty, Mittal, Calo",
        venue="ICML",
        year=2019,
        url="https://arxiv.org/abs/1811.12470",
    )

    boost: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="factor on malicious steps; the paper's is its number of clients",
    )
    rho: float = Field(
        1e-4, ge=0, allow_inf_nan=False, description="weight of the distance to the last global move"
    )
    stealth_steps: int = Field(1, ge=1, description="stealth steps after each malicious one")

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        return data

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        return loss

    def gradient(self, local: Local) -> GradientFn | None:
        import torch

        start, previous, layout = local.start, local.moved, local.layout
        target = self.backdoor.backdoor_target
        assert start is not None
        assert target is not None
        step = 0

        def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
            nonlocal step
            malicious = step % (1 + self.stealth_steps) == 0
            step += 1
            x, y = batch
            if malicious:
                poisoned = (self.backdoor.trigger(x), torch.full_like(y, target))
                return {n: self.boost * g for n, g in local.gradient(params, poisoned, key).items()}
            found = local.gradient(params, batch, key)
            apart = {
                name: p.detach() - self._at(start, previous, layout[name]).view_as(p)
                for name, p in params.items()
            }
            distance = torch.stack([a.square().sum() for a in apart.values()]).sum().sqrt()
            if float(distance) == 0:
                return found
            return {name: g + self.rho * apart[name] / distance for name, g in found.items()}

        return gradient

    @staticmethod
    def _at(start: Tensor, previous: Tensor | None, part: slice) -> Tensor:
        return start[part] if previous is None else start[part] + previous[part]


PLUGINS = (AlternatingMinimisation,)
