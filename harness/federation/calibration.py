"""Whether clients train faster as one program or one after another, found by training a few steps each way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from harness.federation.cohort import Cohort
from harness.federation.local import LocalTrainer, Task

if TYPE_CHECKING:
    from harness.federation.vectorised import VectorisedTrainer

logger = logging.getLogger(__name__)

STEPS = 3  # local steps of each client that are timed, after as many to warm up


class Pace(NamedTuple):
    """Seconds that all these clients together took for the timed steps, by each way.

    semi_vectorised: None where that is not another way or not possible: there is no convolution, or vmap refuses.
    """

    vectorised: float
    semi_vectorised: float | None
    sequential: float

    @property
    def best(self) -> str:
        """The name of the fastest way, as the scenario's `compute.clients` has it."""
        known = {name: seconds for name, seconds in self._asdict().items() if seconds is not None}
        return min(known, key=known.__getitem__).replace("_", "-")


_PACES: dict[Hashable, Pace] = {}  # what this process has measured


def pace_of(trainer: VectorisedTrainer, tasks: Sequence[Task]) -> Pace:
    """How fast these clients train by each way; measured once a process for trainings that have the same to compute.

    Raises whatever training them as one program raises.
    """
    kind = _kind(trainer, tasks)
    if kind not in _PACES:
        _PACES[kind] = _measured(trainer, tasks)
    return _PACES[kind]


def _kind(trainer: VectorisedTrainer, tasks: Sequence[Task]) -> Hashable:
    """What the pace depends on, but for the values of weights and records, and what else the device has to do."""
    client = tasks[0].client
    return (
        (trainer.device, trainer.precision, torch.backends.cudnn.allow_tf32, torch.get_num_threads()),
        tuple((type(layer), layer.extra_repr()) for layer in trainer.module.modules()),
        tuple((name, p.shape, p.stride(), p.dtype) for name, p in trainer.module.named_parameters()),
        str(trainer.settings),
        (repr(client.hooks), client.images.shape[1:], client.images.dtype, client.sampling.method),
        tuple((min(t.client.steps, STEPS), min(t.client.size, trainer.settings.batch_size)) for t in tasks),
    )


def _measured(trainer: VectorisedTrainer, tasks: Sequence[Task]) -> Pace:
    """Times a few steps of these clients each way and discards the results; the modules' buffers stay as they were."""
    short = [replace(t, client=replace(t.client, steps=min(t.client.steps, STEPS))) for t in tasks]
    short.sort(key=lambda task: -task.client.steps)
    modules = {task.trainer: task.trainer.module for task in tasks}
    held = {own: [buffer.clone() for buffer in own.buffers()] for own in modules.values()}

    def one_by_one() -> None:
        LocalTrainer.train_all(trainer, short)

    def together(apart: bool) -> None:
        Cohort(trainer, short, apart=apart).train()

    def semi_vectorised() -> float | None:
        if not any(isinstance(layer, nn.Conv2d) for layer in trainer.module.modules()):
            return None
        try:
            return _seconds(lambda: together(apart=True), trainer.device)
        except Exception as error:  # there are other ways to train these clients
            logger.info("convolutions client by client: %s: %s", type(error).__name__, error)
            return None

    try:
        return Pace(
            _seconds(lambda: together(apart=False), trainer.device),
            semi_vectorised(),
            _seconds(one_by_one, trainer.device),
        )
    finally:
        with torch.no_grad():
            for module, values in held.items():
                for buffer, value in zip(module.buffers(), values, strict=True):
                    buffer.copy_(value)


def _seconds(run: Callable[[], None], device: str) -> float:
    run()
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
