"""Many clients' local training as one program: parameters stacked, one row per client, under torch.func.vmap.

The numbers are those of clients that train one after another, to float tolerance: the same generators give the same
batches, coins and noise, and the same hooks are composed by the same functions. Where a step hinges on the last digit
(the sign of a gradient next to 0, a ReLU or a maximum at its kink), other rounding gives another step, and a training
may end elsewhere, as it does when its initial weights are rounded differently. In float64 both ways agree.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from harness.evaluation.predict import modes_restored, own_pixels, to_pixels
from harness.federation.calibration import pace_of
from harness.federation.cohort import Cohort
from harness.federation.dropout import Masks, dropouts, masked
from harness.federation.local import Client, LocalTrainer, Task, Trained, seeded_modules
from harness.federation.separation import couples
from harness.federation.threads import plain_values
from harness.functional import batch_norms
from harness.random import generator_states, torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn


logger = logging.getLogger(__name__)


class VectorisedTrainer(LocalTrainer):
    """Trains clients that are alike together, `chunk` at a time, and the others one after another.

    Clients are alike if they have the same hooks, kind of sampling and shape of images. Where records of a batch meet
    (batch normalisation, a defence that couples them), batches may not be padded, so clients must also have equally
    many records; likewise with dropout layers, which draw from each client's generator (harness.federation.dropout).
    Clients train one after another where the network draws other random numbers in training, where a `gradient` does
    not declare `vectorises`, and where vmap refuses. `facts` says what was done, for the record.

    chunk: None for as many as fit the memory, by an estimate; running out of memory halves it for good. apart: whether
    each client has its own convolutions in the program (harness.federation.convolutions). calibrates: whether a few
    steps are first timed each way, as one program is not faster where one client fills the device.
    """

    def __init__(
        self, *args: Any, chunk: int | None = None, apart: bool = False, calibrates: bool = False
    ) -> None:
        super().__init__(*args)
        self.chunk = chunk
        self.apart = apart
        self.calibrates = calibrates
        self._apart: set[tuple[int, ...]] = set()  # hooks whose clients were faster so
        self._calibrated: set[tuple[int, ...]] = set()
        self._refused: dict[tuple[int, ...], str] = {}  # hooks, by identity -> why they train alone
        self._nature: str | None = None
        self._sizes: dict[tuple[int, ...], int] = {}  # hooks -> clients that fit
        self.facts |= {"chunk": 1, "alone": []}

    def train_all(self, tasks: Sequence[Task]) -> list[Trained]:
        trained: list[Trained | None] = [None] * len(tasks)
        groups = self._alike(tasks)
        if len(groups) == len(tasks) > 1 and not self.facts["alone"]:
            self.facts["alone"].append("no two clients are alike")
        for group in groups:
            for part, found in self._train_group(group, tasks):
                for position, own in zip(part, found, strict=True):
                    trained[position] = own
        return [own for own in trained if own is not None]

    def _train_group(
        self, group: list[int], tasks: Sequence[Task]
    ) -> Iterator[tuple[list[int], list[Trained]]]:
        """Yields (positions, what they trained), in parts that fit the memory."""
        mark = tuple(map(id, tasks[group[0]].client.hooks))
        while group:
            size = self._chunk(mark, tasks[group[0]].client) if mark not in self._refused else 1
            part, group = group[:size], group[size:]
            own = [tasks[i] for i in part]
            if len(part) > 1 and self.calibrates and mark not in self._calibrated:
                self._calibrated.add(mark)
                if self._calibrate(mark, own):  # they train one after another from now on
                    group = part + group
                    continue
            if len(part) == 1:
                yield part, super().train_all(own)
                continue
            apart = self.apart or mark in self._apart
            found, trouble = self._attempt(own, apart)
            if found is not None:
                way = "semi-vectorised" if apart else "vectorised"
                self.facts |= {"clients": way, "chunk": max(self.facts["chunk"], len(part))}
                yield part, found
                continue
            group = part + group
            if isinstance(trouble, torch.cuda.OutOfMemoryError):
                self._halve(mark, len(part))
            else:
                first_line = str(trouble).strip().partition("\n")[0]
                self._refuse(mark, f"{type(trouble).__name__}: {first_line}")

    def _calibrate(self, mark: tuple[int, ...], tasks: list[Task]) -> bool:
        """Takes the fastest way from now on, by the clock; whether that is one client after another."""
        try:
            pace = pace_of(self, tasks)
        except Exception:  # comes up again when they train, and is reported then
            return False
        self.facts.setdefault("calibration", []).append({"clients": len(tasks), **pace._asdict()})
        if pace.best == "semi-vectorised":
            self._apart.add(mark)
        if pace.best != "sequential":
            return False
        self._refuse(mark, "one after another they are faster")
        return True

    def _attempt(self, tasks: list[Task], apart: bool) -> tuple[list[Trained] | None, Exception | None]:
        """What they trained, or the exception, without frames, its own or its context's, which keep tensors alive."""
        try:
            return self._together(tasks, apart), None
        except Exception as error:  # an error in hooks comes up again when a client trains alone
            error.__context__ = error.__cause__ = None
            return None, error.with_traceback(None)

    def _refuse(self, mark: tuple[int, ...], reason: str) -> None:
        self._refused[mark] = reason
        self.facts["alone"].append(reason)
        logger.info("clients train one after another: %s", reason)

    # which clients, how many ---------------------------------------------------------------------

    def _alike(self, tasks: Sequence[Task]) -> list[list[int]]:
        """Groups of positions of clients that can train as one program, ordered by their first."""
        groups: list[list[int]] = []
        known: dict[tuple[Any, ...], list[int]] = {}
        for position, task in enumerate(tasks):
            if not self.mergeable(task.client):
                groups.append([position])
                continue
            group = known.setdefault(self._sort(task), [])
            if not group:
                groups.append(group)
            group.append(position)
        return groups

    def _sort(self, task: Task) -> tuple[Any, ...]:
        """What clients must share to train as one program."""
        client, at = task.client, task.at
        how = (client.sampling.method, client.images.shape[1:], client.images.dtype)
        when = (at.round, at.rounds, at.done, at.multiplier)
        exact = (client.size, client.steps) if self._exact(client) else ()
        return (*map(id, client.hooks), *how, *when, *exact)

    def _exact(self, client: Client) -> bool:
        """Whether batches may not be padded, as their records see each other or share the draw of a dropout mask."""
        return self._kind(client) == "coupled" or bool(self.dropouts) or any(map(couples, client.hooks))

    def mergeable(self, client: Client) -> bool:
        """Whether clients like this one can train together, as far as is known."""
        mark = tuple(map(id, client.hooks))
        if mark not in self._refused and (reason := self._obstacle(client)) is not None:
            self._refuse(mark, reason)
        return mark not in self._refused

    def _obstacle(self, client: Client) -> str | None:
        """Why clients like this one cannot train together; None if nothing is known to prevent it."""
        kind = self._kind(client)
        if kind == "random":
            return "the network draws random numbers in training, or counts"
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

    def _chunk(self, mark: tuple[int, ...], client: Client) -> int:
        if mark not in self._sizes:
            self._sizes[mark] = self.chunk or self._fitting(client)
        return self._sizes[mark]

    def _fitting(self, client: Client) -> int:
        """How many clients fit in half of the device's memory, by what a forward pass keeps for the backward pass.

        By the device's size, not by what is free on it, so that the same plan gives the same chunks.
        """
        x = own_pixels(client.images[: self.settings.batch_size])  # own: a network may work in place
        d = sum(p.numel() for p in self.module.parameters())
        kept = 0

        nothing = torch.empty(0)

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return nothing  # returning the tensor would tie the graph to itself, never to be freed

        state = {n: b.clone() for n, b in self.module.named_buffers()}
        masks = Masks([self.mask_generator(client.id, 0)])
        with (
            torch.enable_grad(),
            masked(self.dropouts, masks),
            torch.autograd.graph.saved_tensors_hooks(count, lambda _: nothing),
        ):
            torch.func.functional_call(self.module, {**self.parameters, **state}, (x,))
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

    def _together(self, tasks: list[Task], apart: bool) -> list[Trained]:
        # Clients with the most steps first, as Cohort needs them.
        order = sorted(range(len(tasks)), key=lambda i: -tasks[i].client.steps)
        cohort = Cohort(self, [tasks[i] for i in order], apart=apart)
        before = generator_states()
        cohort.train()
        # A number drawn here is one for all clients; one after another, each client draws its own.
        if generator_states() != before:
            raise ValueError("they draw from a global generator")
        found = cohort.updates()
        cohort.count_batches()  # last, as clients that do not fit the memory train again
        return [found[order.index(i)] for i in range(len(tasks))]


def nature(module: nn.Module, x: Tensor) -> str:
    """How a network in training treats the records of a batch: `apart`, `coupled`, or `random`. x (1, c, h, w).

    A network that counts its calls is also `random`: as one program it would count once for all clients.

    Found by running the network, as third parties' layers may do any of these. One with batch normalisation is never
    `apart`: behind a layer that starts at zero, the coupling would not show.
    """
    rows, others = torch.cat([x, *[1 - x] * 7]), torch.cat([x, *[x / 2 + 0.25] * 7])
    with modes_restored(module), torch.no_grad(), seeded_modules(str(x.device), "nature"):
        module.train()

        def outputs(batch: Tensor) -> Tensor:
            values: dict[str, Tensor] = {n: b.clone() for n, b in module.named_buffers()}
            with masked(dropouts(module), Masks([torch_generator("nature", device=str(x.device))])):
                return torch.func.functional_call(module, values, (batch,))

        before = plain_values(module)
        once, again, beside = outputs(rows), outputs(rows), outputs(others)
        counts = plain_values(module) != before

    def equal(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)

    if counts or not equal(once, again):
        return "random"
    return "apart" if equal(once[0], beside[0]) and not batch_norms(module) else "coupled"


def memory(device: str) -> int:
    """Bytes of the device's memory; on a CPU 4 GiB, which other processes can spare."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return 4 << 30
