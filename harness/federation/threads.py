"""Clients that train at the same time on a CPU, each in one thread on a module of its own.

The numbers are those of clients that train one after another, to the last bit: a client's arithmetic depends on its
records, seeds and weights alone. Whether to use threads may therefore be decided by the clock.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from harness.federation.local import LocalTrainer, Task, Trained
from harness.functional import batch_norms
from harness.random import generator_states, restore_generators

if TYPE_CHECKING:
    from torch import Tensor

TRIALS = 2  # rounds each way before one is chosen
SMALL = 1000  # a container with more items is compared by their number alone
REGISTERED = frozenset(vars(nn.Module()))  # where a module keeps its parameters, buffers, parts and hooks

logger = logging.getLogger(__name__)


class ThreadedTrainer(LocalTrainer):
    """Trains up to `at_a_time` clients at once where that is faster.

    The first four rounds alternate between one client after another and threads, and the faster way is kept from then
    on: with short steps, threads wait for the interpreter and only get in each other's way. Clients train one after
    another in any case where a network or a defence draws from a global generator of torch, NumPy or Python, which
    all threads share; where a network keeps more from one client to the next than counts in buffers; and where it
    cannot be copied.
    """

    def __init__(self, *args: Any, at_a_time: int) -> None:
        super().__init__(*args)
        self.at_a_time = at_a_time
        self._twins: SimpleQueue[LocalTrainer] = SimpleQueue()  # those that no thread is using
        self._pool: ThreadPoolExecutor | None = None
        self._pace: dict[bool, list[float]] = {False: [], True: []}  # in threads or not -> seconds per step
        # Without a momentum, batch norms average over all batches so far, which depends on the clients before.
        self._alone = any(self.module.get_submodule(n).momentum is None for n in batch_norms(self.module))

    def train_all(self, tasks: Sequence[Task]) -> list[Trained]:
        steps = sum(task.client.steps for task in tasks)
        if self._alone or len(tasks) < 2 or not steps:
            return super().train_all(tasks)
        threaded = self._in_threads_next()
        started = time.perf_counter()
        trained = self._in_threads(tasks) if threaded else super().train_all(tasks)
        if len(self._pace[threaded]) < TRIALS:
            self._pace[threaded].append((time.perf_counter() - started) / steps)
        return trained

    def close(self) -> None:
        pool, self._pool, self._twins = self._pool, None, SimpleQueue()
        if pool is not None:
            pool.shutdown()

    def _in_threads_next(self) -> bool:
        one_by_one, threads = self._pace[False], self._pace[True]
        if len(threads) < TRIALS:
            return len(threads) < len(one_by_one)
        return min(threads) < min(one_by_one)

    def _in_threads(self, tasks: Sequence[Task]) -> list[Trained]:
        if self._pool is None:
            try:
                self._pool = self._start()
            except Exception as error:  # a network may hold what cannot be copied
                return self._one_by_one(tasks, f"the network cannot be copied ({type(error).__name__})")
        values = plain_values(self.module)
        held = {n: b.clone() for n, b in self.module.named_buffers() if n not in self.buffer_names}
        before = generator_states()
        started = time.perf_counter()
        done = self._share_out(self._pool, tasks, held, values)
        elapsed = time.perf_counter() - started
        if generator_states() != before:
            restore_generators(before)
            return self._one_by_one(tasks, "they draw from a global generator")
        for one in done:
            if isinstance(one, Exception):
                raise one
        left = [own for _, own, _, _ in done]
        fixed = {name: value for name, value in held.items() if not _counts(value)}
        moved = any(not torch.equal(own[name], value) for own in left for name, value in fixed.items())
        if moved or not all(kept for _, _, kept, _ in done):
            return self._one_by_one(tasks, "the network keeps values between them")
        for name, buffer in self.module.named_buffers():
            if name in held and _counts(buffer):  # summed over clients, as when one follows the other
                buffer.copy_(held[name] + torch.stack([own[name] - held[name] for own in left]).sum(0))
        self.spared += sum(seconds for _, _, _, seconds in done) - elapsed
        self.facts["at_a_time"] = self.at_a_time
        return [trained for trained, _, _, _ in done]

    def _share_out(
        self,
        pool: ThreadPoolExecutor,
        tasks: Sequence[Task],
        held: dict[str, Tensor],
        values: dict[tuple[str, str], Any],
    ) -> list[Any]:
        """`_train_one` of every task, or what it raised. Each thread, this one too, takes task after task.

        If this thread is interrupted, the others take no more tasks.
        """
        waiting = deque(enumerate(tasks))
        found: dict[int, Any] = {}

        def work() -> None:
            while True:
                try:
                    position, task = waiting.popleft()
                except IndexError:
                    return
                try:
                    found[position] = self._train_one(task, held, values)
                except Exception as error:
                    found[position] = error

        helpers = [pool.submit(work) for _ in range(self.at_a_time - 1)]
        try:
            work()
        finally:
            waiting.clear()
            wait(helpers)
        return [found[position] for position in range(len(tasks))]

    def _one_by_one(self, tasks: Sequence[Task], reason: str) -> list[Trained]:
        self._alone = True
        logger.info("clients train one after another: %s", reason)
        return super().train_all(tasks)

    def _start(self) -> ThreadPoolExecutor:
        for module in [copy.deepcopy(self.module) for _ in range(self.at_a_time)]:
            own = (module, self.settings, self.seed, self.noise_seed)
            twin = LocalTrainer(*own, self.precision, self.device)
            twin.seeds_modules, twin.generator = False, self.generator
            twin.report = self.report  # type: ignore[method-assign]
            self._twins.put(twin)
        return ThreadPoolExecutor(self.at_a_time - 1, thread_name_prefix="client")

    def _train_one(
        self, task: Task, held: dict[str, Tensor], values: dict[tuple[str, str], Any]
    ) -> tuple[Trained, dict[str, Tensor], bool, float]:
        """What a client trained, the module's other buffers afterwards, whether plain values stayed, and the seconds.

        held: what those other buffers start from. values: the plain values that the module must have before and after.
        """
        started = time.thread_time()  # of this thread: waiting for the interpreter does not count
        twin = self._twins.get()
        try:
            twin.batch_norm = self.batch_norm
            kept = plain_values(twin.module) == values
            buffers = {n: b for n, b in twin.module.named_buffers() if n in held} if held else {}
            for name, buffer in buffers.items():
                buffer.copy_(held[name])
            (trained,) = twin.train_all([Task(twin, task.client, task.at, task.buffers)])
            left = {name: buffer.clone() for name, buffer in buffers.items()}
            kept = kept and plain_values(twin.module) == values
        finally:
            self._twins.put(twin)
        return trained, left, kept, time.thread_time() - started


def _counts(buffer: Tensor) -> bool:
    return not buffer.is_floating_point() and buffer.dtype != torch.bool


def plain_values(module: nn.Module) -> dict[tuple[str, str], Any]:
    """What a network's layers keep beside parameters and buffers, by (layer, attribute), for comparison by ==.

    Numbers, strings, arrays, tensors and containers of them (of a large one only the length), but no parameter or
    buffer under another attribute's name. Anything else, None included, is left out.
    """
    known = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    found = {
        (name, attribute): _plain(value, known)
        for name, layer in module.named_modules()
        for attribute, value in vars(layer).items()
        if attribute not in REGISTERED
    }
    return {place: value for place, value in found.items() if value is not None}


def _plain(value: Any, known: set[int], depth: int = 4) -> Any:
    """A snapshot of a value that == compares; None for a value of any other kind."""
    if isinstance(value, float | complex | np.generic):
        return repr(value)  # so that NaN equals itself
    if isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, torch.Tensor):
        return None if id(value) in known else _bytes(value)
    if isinstance(value, np.ndarray):
        return None if value.dtype.hasobject else (str(value.dtype), value.shape, value.tobytes())
    if not isinstance(value, Mapping | Set | list | tuple | deque):
        return None
    if len(value) > SMALL or not depth:
        return len(value)
    if isinstance(value, Mapping):
        return {_plain(key, known, 0): _plain(item, known, depth - 1) for key, item in value.items()}
    items = tuple(_plain(item, known, depth - 1) for item in value)
    return frozenset(items) if isinstance(value, Set) else items


def _bytes(tensor: Tensor) -> Any:
    """A tensor's type, shape and content."""
    try:
        values = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
        return str(tensor.dtype), tuple(tensor.shape), values.view(torch.uint8).numpy().tobytes()
    except (RuntimeError, NotImplementedError, TypeError):  # a wrapper that outlived its torch.func transform
        return None
