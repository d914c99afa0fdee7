"""The program that trains many clients at once: parameters stacked, one row per client, under torch.func.vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from harness.contracts.defence import Local, Sampling
from harness.evaluation.predict import modes_restored, to_pixels
from harness.federation.apply import Apply
from harness.federation.batches import stacked_batches
from harness.federation.compose import composed_batch, composed_gradient, composed_loss
from harness.federation.convolutions import ConvolutionsApart
from harness.federation.dropout import Masks, dropouts, masked
from harness.federation.local import seeded_modules
from harness.federation.optimizers import local_optimizer
from harness.federation.threads import plain_values
from harness.functional import masked_mean
from harness.pooling import cheap_pooling
from harness.random import derive, split, torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import GradientFn, LossFn, Params
    from harness.federation.local import LocalTrainer, Start, Task, Trained


class _Step(NamedTuple):
    """One step of the k clients that still have steps to take: each field has k rows, or is None."""

    x: Tensor  # (k, b, c, h, w) in [0, 1]
    y: Tensor
    keys: Tensor
    mask: Tensor | None  # (k, b)
    who: Tensor  # (k,) their places in the cohort


class Cohort:
    """Clients that train together, those with the most steps first.

    apart: whether each of them has its own convolutions in the program, see harness.federation.convolutions.
    """

    def __init__(self, trainer: LocalTrainer, tasks: list[Task], *, apart: bool = False) -> None:
        self.trainer, self.tasks, self.apart = trainer, tasks, apart
        self.clients = [task.client for task in tasks]
        self.at = at = tasks[0].at  # all tasks share the round and its place in the training
        self.module = trainer.module
        self.hooks = tuple(hook.at(at.done + at.round, at.rounds) for hook in self.clients[0].hooks)
        self.by_gradient = any(hook.overrides("gradient") for hook in self.hooks)
        self.prepared = [_Prepared(own) for own in zip(*(c.prepared for c in self.clients), strict=True)]
        n, device = len(tasks), trainer.device
        starts = list({id(task.at): task.at for task in tasks}.values())  # one for each training
        self.starts = torch.stack([start.weights for start in starts])  # (trainings, d)
        self.moved = None if at.moved is None else torch.stack([_moved(start) for start in starts])
        places = {id(start): place for place, start in enumerate(starts)}
        self.training = torch.tensor([places[id(task.at)] for task in tasks], device=device)  # (n,)
        own = self.starts if len(starts) == 1 else self.starts[self.training]
        self.start: Params = {  # one row per client, or one for all
            name: own[:, part].view(len(own), *p.shape)
            for (name, p), part in zip(trainer.parameters.items(), trainer.layout.values(), strict=True)
        }
        # One row per client; what is trained are views of the first k rows.
        self.weights = {name: v.expand(n, *v.shape[1:]).clone() for name, v in self.start.items()}
        modules = {id(task.trainer): dict(task.trainer.module.named_buffers()) for task in tasks}
        self.buffers = {
            name: torch.stack([task.buffers.get(name, modules[id(task.trainer)][name]) for task in tasks])
            for name, _ in self.module.named_buffers()
        }
        self.buffers |= _own_frozen(tasks)  # passed to the network as buffers are
        self.noise = [
            task.trainer.generator("noise", task.trainer.noise_seed, task.client.id, at.round, device=device)
            for task in tasks
        ]
        seeds = [derive(task.trainer.seed, "local", task.client.id, at.round) for task in tasks]
        steps = torch.arange(max(self.clients[0].steps, 1), device=device)
        self.keys = split(torch.tensor(seeds, device=device)[:, None], steps)
        self._batch = composed_batch(self.hooks)
        self.masks = None
        if trainer.dropouts:
            self.masks = Masks([task.trainer.mask_generator(task.client.id, at.round) for task in tasks])

    def train(self) -> None:
        """Takes all local steps; `weights` and `buffers` change."""
        self.trainer.set_modes()
        way = ConvolutionsApart() if self.apart else nullcontext()
        with masked(self.trainer.dropouts, self.masks), cheap_pooling(self.module), way:
            self._train()

    def _train(self) -> None:
        s = self.trainer.settings
        leaves = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
        optimizer = local_optimizer(s.optimizer, list(leaves.values()), self.at.multiplier)
        k = len(self.clients)
        for step in self._steps():
            if len(step.who) < k:
                k = len(step.who)
                leaves = dict(zip(leaves, optimizer.keep_first(k), strict=True))
            grads = self.gradients(leaves, step)
            for name, leaf in leaves.items():
                leaf.grad = grads[name]
                if s.proximal:
                    leaf.grad = leaf.grad + s.proximal * (leaf.detach() - self.start[name][:k])
            optimizer.step()

    def _steps(self) -> Iterator[_Step]:
        device = self.trainer.device
        images = torch.cat([c.images for c in self.clients])
        labels = torch.cat([c.labels for c in self.clients])
        sizes = [c.size for c in self.clients]
        ends = torch.tensor(sizes, device=device).cumsum(0)
        first = (ends - torch.tensor(sizes, device=device))[:, None]
        places = torch.arange(len(sizes), device=device)
        orders = [
            t.trainer.generator(t.trainer.seed, "batches", t.client.id, self.at.round, device=device)
            for t in self.tasks
        ]
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
        """What each client steps along, one row per client."""
        k = len(step.who)
        buffers = {name: b[:k] for name, b in self.buffers.items()}
        dims = _Step(0, 0, 0, None if step.mask is None else 0, 0)  # type: ignore[arg-type]
        program = torch.func.vmap(self._client, in_dims=(0, 0, dims))
        if self.by_gradient:
            return program({name: leaf.detach() for name, leaf in leaves.items()}, buffers, step)
        # Without a hook on the gradient, plain autograd through the vmapped losses is enough: each client's mean loss
        # depends on its own row alone, so each row of the gradient of their sum is that client's gradient.
        with torch.enable_grad():
            means = program(leaves, buffers, step)
        found = torch.autograd.grad(means.sum(), list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found, strict=True)
        }

    def _client(self, params: Params, buffers: dict[str, Tensor], step: _Step) -> Any:
        """One client's gradient, or its mean loss where no hook changes the gradient. Runs under vmap."""
        if self.masks is not None:
            self.masks.who = step.who
        batch = self._batch((step.x, step.y), step.keys)
        if step.mask is not None and len(batch[1]) != len(step.mask):
            raise ValueError("a hook changes the size of the batch")
        logits = self.trainer.in_precision(Apply(self.module, params, buffers))
        loss = composed_loss(self.hooks, logits)
        if not self.by_gradient:
            return masked_mean(loss(params, batch, step.keys), step.mask)

        def local(loss: LossFn, gradient: GradientFn, prepared: Any) -> Local:
            size = min(self.trainer.settings.batch_size, max(c.size for c in self.clients))
            view = CohortLocal(
                loss=loss,
                gradient=gradient,
                client=None,  # type: ignore[arg-type]
                batch_size=size,
                sampling=Sampling(self.clients[0].sampling.method),
                prepared=prepared.shared,
                module=None,
                generator=None,  # type: ignore[arg-type]
                logits=logits,
                start=self._own(self.starts, step.who),
                moved=None if self.moved is None else self._own(self.moved, step.who),
                layout=self.trainer.layout,
                mask=step.mask,
                report=self._report,
            )
            view.cohort, view.who, view.each = self, step.who, prepared.each
            sizes = [min(self.trainer.settings.batch_size, c.size) for c in self.clients]
            view.batch_size = view.of_rows(sizes)  # type: ignore[assignment]
            return view

        return composed_gradient(self.hooks, self.prepared, loss, local, step.mask)(params, batch, step.keys)

    def _report(self, name: str, value: str) -> None:
        """Keeps what a hook says of its work, for each training that has clients here."""
        for trainer in {id(task.trainer): task.trainer for task in self.tasks}.values():
            trainer.report(name, value)

    def _own(self, rows: Tensor, who: Tensor) -> Tensor:
        """The row (d,) of the client's training, out of one row per training; under vmap over `who`."""
        return rows[0] if len(rows) == 1 else _at(rows, _at(self.training, who))

    @torch.no_grad()
    def count_batches(self) -> None:
        """Adds up in a module's integer buffers what all its clients counted, as when they train one after another."""
        members: dict[LocalTrainer, list[int]] = {}
        for row, task in enumerate(self.tasks):
            members.setdefault(task.trainer, []).append(row)
        # Memory may run out, and the clients then train again: nothing is added before everything is known.
        added = []
        for trainer, own in members.items():
            rows = torch.tensor(own, device=trainer.device)
            for name, buffer in trainer.module.named_buffers():
                if not buffer.is_floating_point():
                    added.append((buffer, (self.buffers[name][rows] - buffer).sum(0)))
        for buffer, counted in added:
            buffer += counted

    def updates(self) -> list[Trained]:
        """Each client's update, after its hooks, and its float buffers, in the cohort's order."""
        flat = torch.cat([w.reshape(len(self.tasks), -1) for w in self.weights.values()], 1)
        moved = flat - (self.starts if len(self.starts) == 1 else self.starts[self.training])
        names = self.trainer.buffer_names
        return [
            (
                task.trainer.finish(task.client, self.hooks, delta, noise, task.at),
                {name: b[i].clone() for name, b in self.buffers.items() if name in names},
            )
            for i, (task, delta, noise) in enumerate(zip(self.tasks, moved, self.noise, strict=True))
        ]


def _own_frozen(tasks: Sequence[Task]) -> dict[str, Tensor]:
    """The parameters that are not trained but differ between trainings, one row per client."""
    frozen = {
        id(task.trainer): {
            n: p.detach() for n, p in task.trainer.module.named_parameters() if not p.requires_grad
        }
        for task in tasks
    }
    first, *others = frozen.values()
    return {
        name: torch.stack([frozen[id(task.trainer)][name] for task in tasks])
        for name, value in first.items()
        if any(not torch.equal(own[name], value) for own in others)
    }


def alike(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether networks differ only in the values of parameters and buffers, so that the first can stand for all.

    x (b, c, h, w) in [0, 1]: a few records. Given the first one's parameters and buffers, each network must give
    exactly the outputs of the first, in evaluation and in training.
    """
    first, *others = modules
    shapes, values = _shapes(first), plain_values(first)
    if any(_shapes(module) != shapes or plain_values(module) != values for module in others):
        return False
    rows = torch.cat([x, 1 - x])
    state = {**dict(first.named_parameters()), **dict(first.named_buffers())}
    expected = _outputs(first, state, rows)
    return all(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for module in others
        for a, b in zip(expected, _outputs(module, state, rows), strict=True)
    )


def _shapes(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    parameters = {name: (p.shape, p.dtype, p.requires_grad) for name, p in module.named_parameters()}
    return parameters | {name: (b.shape, b.dtype) for name, b in module.named_buffers()}


def _outputs(module: nn.Module, state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """A network's outputs for x with these parameters and buffers, in evaluation and in training; changes neither."""
    found = []
    with modes_restored(module), torch.no_grad(), seeded_modules(str(x.device), "alike"):
        for training in (False, True):
            module.train(training)
            own = {name: value.detach().clone() for name, value in state.items()}
            with masked(dropouts(module), Masks([torch_generator("alike", device=str(x.device))])):
                found.append(torch.func.functional_call(module, own, (x.clone(),)))
    return found


class _Prepared:
    """What a hook prepared. each: client by client; shared: for all where it is the same, else a `_Differs`."""

    def __init__(self, each: tuple[dict[str, Any], ...]) -> None:
        self.each = each
        self.shared: Any = each[0] if all(own == each[0] for own in each) else _Differs()


class _Differs(Mapping[str, Any]):
    """Stands in where clients of several trainings have had different things prepared: reading it is an error."""

    def __getitem__(self, name: str) -> Any:
        raise self._refusal()

    def __iter__(self) -> Iterator[str]:
        raise self._refusal()

    def __len__(self) -> int:
        raise self._refusal()

    def _refusal(self) -> ValueError:
        return ValueError("what was prepared is of one client among others: it is read inside of own()")


def _at(table: Tensor, place: Tensor) -> Tensor:
    """table[place] for a scalar `place` under vmap, where torch 2.6 does not take a scalar as an index."""
    return table.index_select(0, place[None])[0]


def _moved(start: Start) -> Tensor:
    """`moved`, which all trainings of a cohort have or none has, as they are in the same round."""
    assert start.moved is not None
    return start.moved


class CohortLocal(Local):
    """What a hook sees of one client among vectorised ones."""

    cohort: Cohort
    who: Tensor  # a scalar: the client's place
    each: tuple[dict[str, Any], ...]  # what was prepared for each client

    def own(self, number: Callable[[int], float]) -> float | Tensor:
        shared, numbers = self.prepared, []
        try:
            for client, prepared in zip(self.cohort.clients, self.each, strict=True):
                self.prepared = prepared
                numbers.append(number(client.id))
        finally:
            self.prepared = shared
        return self.of_rows(numbers)

    def of_rows(self, numbers: Sequence[float]) -> float | Tensor:
        """This client's number, out of one per client; a plain number where all are equal."""
        if min(numbers) == max(numbers):
            return numbers[0]
        starts = self.cohort.starts
        return _at(torch.tensor(numbers, dtype=starts.dtype, device=starts.device), self.who)

    def normal(self, like: Tensor) -> Tensor:
        return _OwnNoise.apply(self.who, like, self.cohort.noise)  # type: ignore[no-any-return]


class _OwnNoise(torch.autograd.Function):
    """Standard normal numbers, each row from its client's generator, as vmap cannot map over generators."""

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
