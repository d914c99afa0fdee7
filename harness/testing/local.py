"""A few local steps with hooks, put together as the engine does. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.contracts.aggregator import AggregationContext, Aggregator
from harness.contracts.defence import (
    ClientHooks,
    Defence,
    Local,
    PrepareContext,
    Sampling,
    UpdateContext,
)
from harness.federation.apply import Apply
from harness.federation.compose import composed_batch, composed_gradient, composed_loss
from harness.federation.vector import flatten, layout, trainable
from harness.random import make_key
from harness.stacks import check_stack
from harness.testing.core import Setting
from harness.testing.toy import Toy, generator

if TYPE_CHECKING:
    from harness.contracts.defence import Batch, GradientFn, LossFn, Params

BATCH, STEPS, CLIENTS, ROUNDS, PER_CLIENT = 8, 2, 4, 2, 12


class PlainMean(Aggregator):
    """The mean of the rows: what a defence's server rule is wrapped around here."""

    name = "plain-mean"
    sum_only = True

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        return context.weights.to(updates.dtype) @ updates


def federation(history: list[dict[str, Any]] | None = None) -> PrepareContext:
    """Four clients of 12 records that all take part in two rounds."""
    return PrepareContext(
        sizes=[PER_CLIENT] * CLIENTS,
        steps=[STEPS * ROUNDS] * CLIENTS,
        batch_size=BATCH,
        records=PER_CLIENT * CLIENTS,
        rounds=ROUNDS,
        largest_group=2,
        schedule=[list(range(CLIENTS))] * ROUNDS,
        history=history or [],
    )


@dataclass
class Training:
    """Hooks composed over a module, which `steps` trains in place."""

    module: nn.Module
    hooks: tuple[ClientHooks, ...]
    prepared: list[dict[str, Any]]
    setting: Setting
    alone: bool = True  # False: as where clients train as one program
    round: int = 0
    coins: int = 11  # seed of the mechanism's noise

    def __post_init__(self) -> None:
        self.hooks = tuple(hook.at(self.round, ROUNDS) for hook in self.hooks)
        self.start = flatten(self.module)
        self.params: dict[str, Tensor] = dict(trainable(self.module))
        self.noise = generator(self.setting, self.coins)
        logits = Apply(self.module)

        def local(loss: LossFn, gradient: GradientFn, prepared: dict[str, Any]) -> Local:
            return Local(
                loss=loss, gradient=gradient, client=0, batch_size=BATCH, sampling=Sampling(), prepared=prepared,
                module=self.module if self.alone else None, generator=self.noise, logits=logits, start=self.start,
                moved=self.start / 100 if self.round else None, layout=layout(self.module),
            )  # fmt: skip

        self.base = composed_loss((), logits)
        self.loss = composed_loss(self.hooks, logits)
        self.gradient = composed_gradient(self.hooks, self.prepared, self.loss, local)
        self.batch = composed_batch(self.hooks)

    def _under_vmap(self, params: Params, batch: Batch, key: Tensor) -> Params:
        """The gradient as computed where clients train as one program, here with this client alone in it."""
        program = torch.func.vmap(self.gradient, randomness="different")
        stacked = {name: p.detach().unsqueeze(0) for name, p in params.items()}
        found = program(stacked, (batch[0].unsqueeze(0), batch[1].unsqueeze(0)), key.unsqueeze(0))
        return {name: g.squeeze(0) for name, g in found.items()}

    def key(self, number: int) -> Tensor:
        return make_key("check", number, device=self.setting.device)

    def steps(self, images: Tensor, labels: Tensor, count: int = STEPS) -> Tensor:
        """The update (d,) that the client sends after `count` steps of SGD."""
        for number in range(count):
            index = torch.arange(min(BATCH, len(labels)), device=labels.device)
            index = (index + number * BATCH) % len(labels)
            key = self.key(number)
            batch = self.batch((images[index], labels[index]), key)
            gradients = (self.gradient if self.alone else self._under_vmap)(self.params, batch, key)
            with torch.no_grad():
                for name, parameter in self.params.items():
                    parameter.sub_(0.05 * gradients[name])
        delta = flatten(self.module) - self.start
        for hook, prepared in zip(self.hooks, self.prepared, strict=True):
            context = UpdateContext(self.round, 0, self.noise, layout(self.module), prepared, CLIENTS, 0)
            delta = hook.update(delta, context)
        return delta


def begin(
    hooks: Sequence[ClientHooks], world: Toy, setting: Setting, alone: bool = True, **changes: int
) -> Training:
    """A training that is about to start. changes: its round and coins.

    Raises NotApplicable where a defence of the stack refuses.
    """
    module = world.net
    defences = tuple(hook for hook in hooks if isinstance(hook, Defence))
    for defence in defences:
        module = defence.model(module)
    check_stack(defences, module)
    prepared = [hook.prepare(federation()) if isinstance(hook, Defence) else {} for hook in hooks]
    return Training(module.train(), tuple(hooks), prepared, setting, alone, **changes)
