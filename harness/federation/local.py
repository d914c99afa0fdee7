"""One client's local training: composed pure functions (loss, gradient, update), stepped by torch's optimisers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness.contracts.defence import ClientHooks, Local, Sampling, UpdateContext
from harness.evaluation.predict import to_pixels
from harness.federation.apply import Apply
from harness.federation.batches import batches
from harness.federation.compose import (
    Hooks,
    composed_batch,
    composed_gradient,
    composed_loss,
)
from harness.federation.dropout import Masks, dropouts, masked
from harness.federation.optimizers import local_optimizer
from harness.federation.returned import checked
from harness.federation.vector import (
    buffer_names,
    float_buffers,
    joined,
    layout,
    load_buffers,
    trainable,
    write,
)
from harness.functional import freeze_batch_norms
from harness.pooling import cheap_pooling
from harness.random import derive, make_key, reseed_plain, seeded, split, torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import GradientFn, LogitsFn, LossFn, Params


Trained = tuple["Tensor", dict[str, "Tensor"]]  # an update (d,) and the float buffers it comes with


@dataclass
class Client:
    """A client as the engine trains it: its records on the device and what runs there.

    hooks: the defences of the stack, then a malicious client's attack. prepared: one dict per hook.
    """

    id: int
    images: Tensor  # (n, c, h, w) uint8 or float in [0, 1]
    labels: Tensor  # (n,)
    steps: int  # per round
    sampling: Sampling
    hooks: tuple[ClientHooks, ...] = ()
    prepared: list[dict[str, Any]] = field(default_factory=list)
    buffers: dict[str, Tensor] | None = None  # its own, where buffers stay local
    attacking: Client | None = None  # the same client while a poisoning attack is on

    @property
    def size(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Start:
    """What a round starts from: the same for all its clients.

    round: from 0. weights (d,): the global ones. moved (d,): how these moved in the last round; None in the first.
    multiplier: factor on the local learning rate. rounds: of the whole training; done: how many of these came before
    round 0, as fine-tuning continues a training. clients, malicious: how many take part, and how many of them attack.
    share: the attackers' part of the round's mean.
    """

    round: int
    weights: Tensor
    moved: Tensor | None = None
    multiplier: float = 1.0
    rounds: int = 1
    done: int = 0
    clients: int = 1
    malicious: int = 0
    share: float = 0.0


@dataclass(frozen=True, eq=False)
class Task:
    """A client's local training in one round. trainer: the one whose seeds, module and precision it uses.

    buffers: the float buffers that it starts from.
    """

    trainer: LocalTrainer
    client: Client
    at: Start
    buffers: dict[str, Tensor]


class LocalTrainer:
    """Trains clients one after another on one module, which it leaves at the last client's weights."""

    def __init__(
        self, module: nn.Module, settings: Any, seed: int, noise_seed: str, precision: str, device: str
    ) -> None:
        self.module = module
        self.settings = settings  # a scenario's federation.local
        self.seed = seed
        # Made of the stage key and the purpose, so that no two stages share mechanism noise.
        self.noise_seed = noise_seed
        self.generator = torch_generator  # makes the generators of mechanism noise and batches
        self.device = device
        self.precision = precision
        self.batch_norm = "train"  # or eval: batch norms use, and leave, the global statistics
        self.layout = layout(module)
        self.parameters = trainable(module)
        self._layers = list(module.modules())
        self.dropouts = dropouts(module)
        self._idle_key = torch.zeros((), dtype=torch.int64, device=device)
        self.buffer_names = buffer_names(module)
        self.seeds_modules = True  # whether each client seeds the global generators that layers and hooks use
        self.facts: dict[str, Any] = {"clients": "sequential"}  # how clients were trained, for the record
        self.ways: dict[str, list[str]] = {}  # what hooks report of their work, by name
        self.spared = 0.0  # seconds that clients one after another would have taken longer
        self._logits = self.in_precision(Apply(module))

    def in_precision(self, apply: LogitsFn) -> LogitsFn:
        """The network in the precision of local training; logits are float32."""
        if self.precision != "bf16":
            return apply

        def lowered(params: Params, x: Tensor) -> Tensor:
            with torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16):
                return apply(params, x).float()

        return lowered

    def tasks(self, clients: Sequence[Client], at: Start, buffers: Sequence[dict[str, Tensor]]) -> list[Task]:
        """Work for `train_all`. buffers: what each client starts from."""
        return [Task(self, client, at, own) for client, own in zip(clients, buffers, strict=True)]

    def train_all(self, tasks: Sequence[Task]) -> list[Trained]:
        """Each client's update (d,) and the float buffers it ends with; tasks may be of several trainings."""
        trained = []
        for task in tasks:
            own = task.trainer
            load_buffers(own.module, task.buffers)
            update = own.train(task.client, task.at)
            trained.append((update, float_buffers(own.module, own.buffer_names)))
        return trained

    def close(self) -> None:
        """Ends the threads that this trainer has started. It may train again."""

    def train(self, client: Client, at: Start) -> Tensor:
        """The client's update (d,) after its local steps from the global weights (d,), hooks applied."""
        s, round = self.settings, at.round
        hooks = tuple(hook.at(at.done + round, at.rounds) for hook in client.hooks)
        params: Params = dict(self.parameters)
        parameters = list(params.values())
        write(parameters, at.weights)
        self.set_modes()
        start = [p.detach().clone() for p in parameters] if s.proximal else []
        optimizer = local_optimizer(s.optimizer, parameters, at.multiplier)
        # Nobody draws noise where there are no hooks.
        noise = (
            self.generator("noise", self.noise_seed, client.id, round, device=self.device)
            if hooks
            else torch.default_generator
        )
        order = self.generator(self.seed, "batches", client.id, round, device=self.device)
        changed = composed_batch(hooks)
        drawing = self._drawing(self.seed, client.id, round)
        masks = Masks([self.mask_generator(client.id, round)]) if self.dropouts else None
        with drawing, masked(self.dropouts, masks), cheap_pooling(self.module):
            gradient = self._gradient(client, hooks, noise, at)
            indices = batches(client.size, s.batch_size, client.steps, client.sampling, order)
            for index, key in zip(indices, self._keys(client, hooks, round), strict=False):
                batch = changed((to_pixels(client.images[index]), client.labels[index]), key)
                grads = gradient(params, batch, key)
                for i, (name, parameter) in enumerate(params.items()):
                    parameter.grad = grads[name]
                    if s.proximal:  # FedProx (Li et al. 2020): mu (w - w_global), which reads no data
                        parameter.grad = parameter.grad + s.proximal * (parameter.detach() - start[i])
                optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        return self.finish(client, hooks, joined(parameters).sub_(at.weights), noise, at)

    def report(self, name: str, value: str) -> None:
        """Keeps how a hook does its work, each value once, for the record."""
        values = self.ways.setdefault(name, [])
        if value not in values:
            values.append(value)
            self.facts["ways"] = self.ways

    def mask_generator(self, client: int, round: int) -> torch.Generator:
        """What a client's dropout draws from."""
        return torch_generator("dropout", self.seed, client, round, device=self.device)

    def set_modes(self) -> None:
        """Sets training mode, only where it is not on already: setting it takes as long as a small layer."""
        if not all(layer.training for layer in self._layers):
            self.module.train()
        if self.batch_norm == "eval":
            freeze_batch_norms(self.module)

    def _keys(self, client: Client, hooks: Hooks, round: int) -> Iterable[Tensor]:
        """One key per step; the same unused one where there is no hook to read it."""
        if not hooks:
            return itertools.repeat(self._idle_key)
        key = make_key(self.seed, "local", client.id, round, device=self.device)
        return split(key, torch.arange(max(client.steps, 1), device=self.device)).unbind()

    def finish(
        self, client: Client, hooks: Hooks, delta: Tensor, noise: torch.Generator, at: Start
    ) -> Tensor:
        """The update (d,) that is sent, after the hooks' `update`."""
        for hook, prepared in zip(hooks, client.prepared, strict=True):
            if hook.overrides("update"):
                context = UpdateContext(
                    at.round, client.id, noise, self.layout, prepared, at.clients, at.malicious, at.share
                )
                name = getattr(hook, "name", "a hook")
                with self._drawing(self.noise_seed, "update", name, client.id, at.round):
                    delta = checked(hook.update(delta, context), delta.shape, name)
        return delta

    def _drawing(self, *parts: object) -> AbstractContextManager[None]:
        return seeded_modules(self.device, *parts) if self.seeds_modules else contextlib.nullcontext()

    def _gradient(self, client: Client, hooks: Hooks, noise: torch.Generator, at: Start) -> GradientFn:
        def local(loss: LossFn, gradient: GradientFn, prepared: dict[str, Any]) -> Local:
            return Local(
                loss=loss,
                gradient=gradient,
                client=client.id,
                batch_size=min(self.settings.batch_size, client.size),
                sampling=client.sampling,
                prepared=prepared,
                module=self.module,
                generator=noise,
                logits=self._logits,
                start=at.weights.clone(),  # other clients start from it too
                moved=None if at.moved is None else at.moved.clone(),
                layout=self.layout,
                report=self.report,
            )

        return composed_gradient(hooks, client.prepared, composed_loss(hooks, self._logits), local)


@contextlib.contextmanager
def seeded_modules(device: str, *parts: object) -> Iterator[None]:
    """Seeds the global generators, so that what layers and plugins draw from them depends on these parts alone.

    Torch's are restored after the block. NumPy's and Python's are not, as that takes as long as a small step: the
    stage restores them at its end.
    """
    devices: Sequence[str] = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it seeds every CUDA device too, which costs half a millisecond where there is none.
        seeded(torch.default_generator, "modules", *parts)
        seed = derive("modules", *parts)
        reseed_plain(seed)
        for name in devices:
            with torch.cuda.device(name):
                torch.cuda.manual_seed(seed)
        yield
