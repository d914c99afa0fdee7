"""Stages in this process, one at a time: for notebooks, debuggers and plugins that no other process can import."""

from __future__ import annotations

import copy
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import describe_error, from_interrupt
from harness.executors import Event, reporter, threads_left
from harness.store import Store

if TYPE_CHECKING:
    from harness.plan import Stage


class InlineExecutor:
    """`submit` returns when the stage has ended. Time limits cannot be enforced here."""

    capacity = 1
    lends = False

    def __init__(self, store: Path, device: str) -> None:
        self._store = Store(store.absolute())  # a plugin may change the working directory
        self._device = device
        self._events: list[Event] = []

    def submit(self, stage: Stage) -> None:
        from harness.stages import execute

        threads = threading.enumerate()
        try:
            # A copy, as a worker would have: what a plugin stores on itself must not reach other stages.
            own = copy.deepcopy(stage)
            execute(own, self._store, self._device, partial(reporter, send=self._events.append, every=0.0))
        except BaseException as error:  # a plugin must not end the run
            if from_interrupt(error):
                raise
            self._events.append(Event("failed", stage.key, describe_error(error)))
        else:
            self._events.append(Event("done", stage.key))
        if left := threads_left(threads):
            text = (
                f"{stage.kind} {stage.label}: threads still run that it has started ({', '.join(left)}); they may "
                "change the numbers of later stages in this process, and keep it from ending: use --jobs 1, which "
                "ends them"
            )
            self._events.append(Event("problem", "", {"text": text}))

    def events(self, timeout: float) -> list[Event]:
        found, self._events = self._events, []
        return found

    def cancel(self, key: str, kind: str, reason: str) -> None:
        raise NotImplementedError("a stage in this process cannot be ended; use jobs >= 1")

    def close(self) -> None:
        self._store.close()
