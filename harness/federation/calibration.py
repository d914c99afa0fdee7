"""Whether clients train faster as one program or one after another, found by training a few steps both ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.federation.cohort import Cohort
from harness.federation.local import LocalTrainer, Task

if TYPE_CHECKING:
    from harness.federation.vectorised import VectorisedTrainer

STEPS = 3  # local steps of each client that are timed, after as many to warm up


class Pace(NamedTuple):
    """Seconds that all these clients together took for the timed steps, either way."""

    together: float
    one_by_one: float


def measure(trainer: VectorisedTrainer, tasks: Sequence[Task]) -> Pace:
    """Times a few steps of these clients both ways and discards the results; the modules' buffers stay as they were.

    Raises whatever training them as one program raises.
    """
    short = [replace(t, client=replace(t.client, steps=min(t.client.steps, STEPS))) for t in tasks]
    short.sort(key=lambda task: -task.client.steps)
    modules = {task.trainer: task.trainer.module for task in tasks}
    held = {own: [buffer.clone() for buffer in own.buffers()] for own in modules.values()}

    def one_by_one() -> None:
        LocalTrainer.train_all(trainer, short)

    def together() -> None:
        Cohort(trainer, short).train()

    try:
        return Pace(_seconds(together, trainer.device), _seconds(one_by_one, trainer.device))
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
