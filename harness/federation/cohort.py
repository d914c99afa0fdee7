"""The program that trains many clients at once: parameters stacked, clients first, under torch.func.vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from harness.contracts.defence import Local, Sampling
from harness.evaluation.predict import to_pixels
from harness.federation.apply import Apply
from harness.federation.batches import stacked_batches
from harness.federation.compose import composed_batch, composed_gradient, composed_loss
from harness.federation.optimizers import keep_first, local_optimizer
from harness.functional import masked_mean
from harness.random import derive, split, torch_generator

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.defence import GradientFn, LossFn, Params
    from harness.federation.local import Client, LocalTrainer, Start, Trained


class _Step(NamedTuple):
    """One step of the k clients that are not done: each field has k rows, or is None."""

    x: Tensor  # (k, b, c, h, w) in [0, 1]
    y: Tensor
    keys: Tensor
    mask: Tensor | None  # (k, b)
    who: Tensor  # (k,) their places in the cohort


class Cohort:
    """Clients in training together, those with the most steps first."""

    def __init__(
        self, trainer: LocalTrainer, clients: list[Client], at: Start, buffers: list[dict[str, Tensor]]
    ) -> None:
        self.trainer, self.clients, self.at = trainer, clients, at
        self.module = trainer.module
        self.hooks = tuple(hook.at(at.done + at.round, at.rounds) for hook in clients[0].hooks)
        self.by_gradient = any(hook.overrides("gradient") for hook in self.hooks)
        n, device = len(clients), trainer.device
        self.start: Params = {
            name: at.weights[part].view_as(p)
            for (name, p), part in zip(trainer.parameters.items(), trainer.layout.values(), strict=True)
        }
        # A row a client; what is trained are views of the first k rows.
        self.weights = {name: v.expand(n, *v.shape).clone() for name, v in self.start.items()}
        self.buffers = {
            name: torch.stack([own.get(name, b) for own in buffers])
            for name, b in self.module.named_buffers()
        }
        self.noise = [
            torch_generator("noise", trainer.noise_seed, c.id, at.round, device=device) for c in clients
        ]
        seed = trainer.seed
        own = [derive(seed, "local", c.id, at.round) for c in clients]
        self.keys = split(
            torch.tensor(own, device=device)[:, None], torch.arange(max(clients[0].steps, 1), device=device)
        )
        self._batch = composed_batch(self.hooks)

    def train(self) -> None:
        """All local steps; `weights` and `buffers` change."""
        s = self.trainer.settings
        self.trainer.set_modes()
        leaves = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
        optimizer = local_optimizer(s.optimizer, list(leaves.values()), self.at.multiplier)
        k = len(self.clients)
        for step in self._steps():
            if len(step.who) < k:
                k = len(step.who)
                leaves = dict(zip(leaves, keep_first(optimizer, k), strict=True))
            grads = self.gradients(leaves, step)
            for name, leaf in leaves.items():
                leaf.grad = grads[name]
                if s.proximal:
                    leaf.grad = leaf.grad + s.proximal * (leaf.detach() - self.start[name])
            optimizer.step()

    def _steps(self) -> Iterator[_Step]:
        seed, device = self.trainer.seed, self.trainer.device
        images = torch.cat([c.images for c in self.clients])
        labels = torch.cat([c.labels for c in self.clients])
        sizes = [c.size for c in self.clients]
        ends = torch.tensor(sizes, device=device).cumsum(0)
        first = (ends - torch.tensor(sizes, device=device))[:, None]
        places = torch.arange(len(sizes), device=device)
        orders = [torch_generator(seed, "batches", c.id, self.at.round, device=device) for c in self.clients]
        drawn = stacked_batches(
            sizes,
            self.trainer.settings.batch_size,
            [c.steps for c in self.clients],
            [c.sampling for c in self.clients],
            orders,
        )
        for number, (index, mask) in enumerate(drawn):
            k = len(index)
            index = index + first[:k]
            yield _Step(to_pixels(images[index]), labels[index], self.keys[:k, number], mask, places[:k])

    def gradients(self, leaves: Params, step: _Step) -> Params:
        """What each client steps along, a row a client."""
        k = len(step.who)
        buffers = {name: b[:k] for name, b in self.buffers.items()}
        dims = _Step(0, 0, 0, None if step.mask is None else 0, 0)  # type: ignore[arg-type]
        program = torch.func.vmap(self._client, in_dims=(0, 0, dims))
        if self.by_gradient:
            return program({name: leaf.detach() for name, leaf in leaves.items()}, buffers, step)
        # Without a hook on the gradient, plain autograd through the vmapped losses does: each client's mean loss
        # depends on its own row alone, so the gradient of their sum has every client's in its row.
        with torch.enable_grad():
            means = program(leaves, buffers, step)
        found = torch.autograd.grad(means.sum(), list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found, strict=True)
        }

    def _client(self, params: Params, buffers: dict[str, Tensor], step: _Step) -> Any:
        """One client's gradient, or its mean loss where no hook changes the gradient. Runs under vmap."""
        batch = self._batch((step.x, step.y), step.keys)
        if step.mask is not None and len(batch[1]) != len(step.mask):
            raise ValueError("a hook changes the size of the batch")
        logits = self.trainer.in_precision(Apply(self.module, params, buffers))
        loss = composed_loss(self.hooks, logits)
        if not self.by_gradient:
            return masked_mean(loss(params, batch, step.keys), step.mask)

        def local(loss: LossFn, gradient: GradientFn, prepared: dict[str, Any]) -> Local:
            size = min(self.trainer.settings.batch_size, max(c.size for c in self.clients))
            view = CohortLocal(
                loss=loss,
                gradient=gradient,
                client=None,  # type: ignore[arg-type]
                batch_size=size,
                sampling=Sampling(self.clients[0].sampling.method),
                prepared=prepared,
                module=None,
                generator=None,  # type: ignore[arg-type]
                logits=logits,
                start=self.at.weights,
                moved=self.at.moved,
                layout=self.trainer.layout,
                mask=step.mask,
            )
            view.cohort, view.who = self, step.who
            sizes = {c.id: min(self.trainer.settings.batch_size, c.size) for c in self.clients}
            view.batch_size = view.own(sizes.__getitem__)  # type: ignore[assignment]
            return view

        prepared = self.clients[0].prepared
        return composed_gradient(self.hooks, prepared, loss, local, step.mask)(params, batch, step.keys)

    @torch.no_grad()
    def count_batches(self) -> None:
        """The module's integer buffers count what all clients did, as they do where one follows the other."""
        for name, buffer in self.module.named_buffers():
            if not buffer.is_floating_point():
                buffer += (self.buffers[name] - buffer).sum(0)

    def updates(self) -> list[Trained]:
        """Each client's update, after its hooks, and its float buffers, in the cohort's order."""
        flat = torch.cat([w.reshape(len(self.clients), -1) for w in self.weights.values()], 1)
        names = self.trainer.buffer_names
        return [
            (
                self.trainer.finish(client, self.hooks, delta, noise, self.at),
                {name: b[i].clone() for name, b in self.buffers.items() if name in names},
            )
            for i, (client, delta, noise) in enumerate(
                zip(self.clients, flat - self.at.weights, self.noise, strict=True)
            )
        ]


class CohortLocal(Local):
    """What a hook sees of one client among vectorised ones."""

    cohort: Cohort
    who: Tensor  # a scalar: the client's place

    def own(self, number: Callable[[int], float]) -> float | Tensor:
        numbers = [number(client.id) for client in self.cohort.clients]
        if min(numbers) == max(numbers):
            return numbers[0]
        weights = self.cohort.at.weights
        return torch.tensor(numbers, dtype=weights.dtype, device=weights.device)[self.who]

    def normal(self, like: Tensor) -> Tensor:
        return _OwnNoise.apply(self.who, like, self.cohort.noise)  # type: ignore[no-any-return]


class _OwnNoise(torch.autograd.Function):
    """Standard normal numbers, each row from its client's generator: vmap over generators does not exist."""

    @staticmethod
    def forward(who: Tensor, like: Tensor, generators: list[torch.Generator]) -> Tensor:
        raise RuntimeError("noise of vectorised clients is drawn under one vmap over clients")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: noise has no gradient."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, who: Tensor, like: Tensor, generators: list[torch.Generator]
    ) -> tuple[Tensor, int]:
        shape = list(like.shape)
        if in_dims[1] is not None:
            shape.pop(in_dims[1])
        drawn = torch.empty(info.batch_size, *shape, dtype=like.dtype, device=like.device)
        for row, generator in zip(drawn, generators[: info.batch_size], strict=True):
            torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device, out=row)
        return drawn, 0
