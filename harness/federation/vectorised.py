"""Many clients' local training as one program: parameters stacked, clients first, under torch.func.vmap.

The numbers are those of clients that train one after another, to float tolerance: the same generators give the same
batches, coins and noise, and the same hooks are composed by the same functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from harness.contracts.defence import Local, Sampling
from harness.evaluation.predict import modes_restored, to_pixels
from harness.federation.apply import Apply
from harness.federation.batches import stacked_batches
from harness.federation.compose import composed_batch, composed_gradient, composed_loss
from harness.federation.local import Client, LocalTrainer, Start
from harness.federation.optimizers import keep_first, local_optimizer
from harness.federation.vector import trainable
from harness.functional import freeze_batch_norms, masked_mean
from harness.random import derive, split, torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import GradientFn, LossFn, Params

logger = logging.getLogger(__name__)

Trained = tuple["Tensor", dict[str, "Tensor"]]  # an update (d,) and the float buffers it comes with


class VectorisedTrainer(LocalTrainer):
    """Trains like clients together, `chunk` at a time; alone where they cannot.

    Alike are clients with the same hooks, kind of sampling and shape of images. Where records of a batch meet (batch
    normalisation, a defence that couples them) nothing may be filled up: they must also have equally many records.
    A network that draws random numbers in training (dropout), a `gradient` that does not declare `vectorises`, and
    whatever vmap refuses train one after another. `facts` says what was done, for the record.

    chunk: None for as many as fit the memory, by an estimate; out of memory halves it, for good.
    """

    def __init__(self, *args: Any, chunk: int | None = None) -> None:
        super().__init__(*args)
        self.chunk = chunk
        self._refused: dict[tuple[int, ...], str] = {}  # hooks, by identity -> why they train alone
        self._nature: str | None = None
        self._sizes: dict[tuple[int, ...], int] = {}  # hooks -> clients that fit
        self.facts |= {"chunk": 1, "alone": []}

    def train_all(
        self, clients: Sequence[Client], at: Start, buffers: Sequence[dict[str, Tensor]]
    ) -> list[Trained]:
        trained: list[Trained | None] = [None] * len(clients)
        groups = self._alike(clients)
        if len(groups) == len(clients) > 1 and not self.facts["alone"]:
            self.facts["alone"].append("no two clients are alike")
        for group in groups:
            for part, found in self._train_group(group, clients, at, buffers):
                for position, own in zip(part, found, strict=True):
                    trained[position] = own
        return [own for own in trained if own is not None]

    def _train_group(
        self,
        group: list[int],
        clients: Sequence[Client],
        at: Start,
        buffers: Sequence[dict[str, Tensor]],
    ) -> Iterator[tuple[list[int], list[Trained]]]:
        """(positions, what they trained), in parts that fit the memory."""
        mark = tuple(map(id, clients[group[0]].hooks))
        while group:
            size = self._chunk(mark, [clients[i] for i in group]) if mark not in self._refused else 1
            part, group = group[:size], group[size:]
            own, held = [clients[i] for i in part], [buffers[i] for i in part]
            if len(part) == 1:
                yield part, super().train_all(own, at, held)
                continue
            found, trouble = self._attempt(own, at, held)
            if found is not None:
                self.facts |= {"clients": "vectorised", "chunk": max(self.facts["chunk"], len(part))}
                yield part, found
                continue
            group = part + group
            if isinstance(trouble, torch.cuda.OutOfMemoryError):
                self._halve(mark, len(part))
            else:
                self._refuse(mark, f"{type(trouble).__name__}: {str(trouble).strip().splitlines()[0]}")

    def _attempt(
        self, clients: list[Client], at: Start, buffers: list[dict[str, Tensor]]
    ) -> tuple[list[Trained] | None, Exception | None]:
        """What they trained, or what went wrong; without its frames, which would keep tensors alive."""
        try:
            return self._together(clients, at, buffers), None
        except Exception as error:  # what is wrong with the hooks shows again where a client trains alone
            return None, error.with_traceback(None)

    def _refuse(self, mark: tuple[int, ...], reason: str) -> None:
        self._refused[mark] = reason
        self.facts["alone"].append(reason)
        logger.info("clients train one after another: %s", reason)

    # which clients, how many ---------------------------------------------------------------------

    def _alike(self, clients: Sequence[Client]) -> list[list[int]]:
        """Positions of clients that can train as one program, in the order of their first."""
        groups: list[list[int]] = []
        for position, client in enumerate(clients):
            group = next((g for g in groups if self._same(clients[g[0]], client)), None)
            if group is not None and self._mergeable(client):
                group.append(position)
            else:
                groups.append([position])
        return groups

    def _same(self, a: Client, b: Client) -> bool:
        return (
            len(a.hooks) == len(b.hooks)
            and all(x is y for x, y in zip(a.hooks, b.hooks, strict=True))
            and a.prepared == b.prepared
            and a.sampling.method == b.sampling.method
            and a.images.shape[1:] == b.images.shape[1:]
            and a.images.dtype == b.images.dtype
            and (not self._exact(a) or (a.size == b.size and a.steps == b.steps))
        )

    def _exact(self, client: Client) -> bool:
        """Whether a batch may not be filled up, as its records see each other. A hook that does not say might."""
        names = ("batch", "loss", "gradient")
        return self._kind(client) == "coupled" or any(
            hook.couples_samples and any(map(hook.overrides, names)) for hook in client.hooks
        )

    def _mergeable(self, client: Client) -> bool:
        mark = tuple(map(id, client.hooks))
        if mark not in self._refused and (reason := self._obstacle(client)) is not None:
            self._refuse(mark, reason)
        return mark not in self._refused

    def _obstacle(self, client: Client) -> str | None:
        """Why clients like this one cannot train together, None: nothing speaks against it."""
        kind = self._kind(client)
        if kind == "random":
            return "the network draws random numbers in training"
        for hook in client.hooks:
            if hook.overrides("gradient") and not hook.vectorises:
                return f"the gradient of {getattr(hook, 'name', type(hook).__name__)} is not vectorised"
        if kind == "coupled" and any(hook.overrides("gradient") for hook in client.hooks):
            return "running statistics cannot be followed through a defence's gradient"
        if client.sampling.method == "poisson" and self._exact(client):
            return "Poisson batches differ in size, and records of a batch see each other"
        return None

    def _kind(self, client: Client) -> str:
        if self._nature is None:
            self._nature = nature(self.module, to_pixels(client.images[:1]))
        return self._nature

    def _chunk(self, mark: tuple[int, ...], clients: list[Client]) -> int:
        if mark not in self._sizes:
            fits = self.chunk or self._fitting(clients[0])
            self._sizes[mark] = fits
        return self._sizes[mark]

    def _fitting(self, client: Client) -> int:
        """How many clients fit half of the device's memory, by what one forward pass keeps for the backward one.

        From the card's size, not from what is free on it: the same plan gives the same chunks.
        """
        x = to_pixels(client.images[: self.settings.batch_size])
        d = sum(p.numel() for p in self.module.parameters())
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        state = {n: b.clone() for n, b in self.module.named_buffers()}
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            torch.func.functional_call(self.module, {**trainable(self.module), **state}, (x,))
        per_record = len(x) if any(hook.overrides("gradient") for hook in client.hooks) else 1
        needed = 2 * kept + 4 * d * (per_record + 4)  # gradients, optimiser state and the weights themselves
        return max(1, memory(self.device) // (2 * needed))

    def _halve(self, mark: tuple[int, ...], size: int) -> None:
        self._sizes[mark] = max(1, size // 2)
        self.facts["out_of_memory"] = f"{size} clients at once did not fit; {self._sizes[mark]} from then on"
        logger.warning("out of memory: %s", self.facts["out_of_memory"])
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    # the program -----------------------------------------------------------------------------------

    def _together(
        self, clients: list[Client], at: Start, buffers: list[dict[str, Tensor]]
    ) -> list[Trained]:
        order = sorted(range(len(clients)), key=lambda i: -clients[i].steps)  # those who go on stay in front
        cohort = Cohort(self, [clients[i] for i in order], at, [buffers[i] for i in order])
        cohort.train()
        cohort.count_batches()
        found = cohort.updates()
        return [found[order.index(i)] for i in range(len(clients))]


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
        self, trainer: VectorisedTrainer, clients: list[Client], at: Start, buffers: list[dict[str, Tensor]]
    ) -> None:
        self.trainer, self.clients, self.at = trainer, clients, at
        self.module = trainer.module
        self.hooks = tuple(hook.at(at.done + at.round, at.rounds) for hook in clients[0].hooks)
        self.by_gradient = any(hook.overrides("gradient") for hook in self.hooks)
        n, device = len(clients), trainer.device
        self.start: Params = {
            name: at.weights[part].view_as(p)
            for (name, p), part in zip(
                trainable(self.module).items(), trainer.layout.values(), strict=True
            )
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
        self.module.train()
        if self.trainer.batch_norm == "eval":
            freeze_batch_norms(self.module)
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
        orders = [
            torch_generator(seed, "batches", c.id, self.at.round, device=device) for c in self.clients
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
        drawn = _OwnNoise.apply(self.who, like, self.cohort.noise)
        return drawn


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


def nature(module: nn.Module, x: Tensor) -> str:
    """How a network in training treats the records of a batch: `apart`, `coupled`, or `random`. x (1, c, h, w).

    Asked of the network itself, not of its layers' names.
    """
    pair, other = torch.cat([x, 1 - x]), torch.cat([x, x / 2 + 0.25])
    with modes_restored(module), torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        module.train()

        def first(batch: Tensor) -> Tensor:
            values: dict[str, Tensor] = {n: b.clone() for n, b in module.named_buffers()}
            return torch.func.functional_call(module, values, (batch,))[0]

        once, again, beside = first(pair), first(pair), first(other)
    if not torch.equal(once, again):
        return "random"
    return "apart" if torch.allclose(once, beside, rtol=1e-4, atol=1e-5, equal_nan=True) else "coupled"


def make_trainer(
    module: nn.Module, settings: Any, seed: int, noise_seed: str, compute: Any, device: str
) -> LocalTrainer:
    """The trainer that a scenario's `compute` asks for.

    auto: together on a GPU, where one client's kernels leave most of the card idle; one after another on a CPU,
    where a stacked convolution is slower than its parts.
    """
    together = compute.clients == "vectorised" or (compute.clients == "auto" and device.startswith("cuda"))
    arguments = (module, settings, seed, noise_seed, compute.precision, device)
    return VectorisedTrainer(*arguments, chunk=compute.chunk) if together else LocalTrainer(*arguments)


def memory(device: str) -> int:
    """Bytes of the device's memory; on a CPU a share that other processes can spare."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return 4 << 30
