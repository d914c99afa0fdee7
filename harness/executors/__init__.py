"""Where stages run. An executor takes stages, and reports events until each is done, failed or lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from harness.plan import Stage
    from harness.stages.train import Progress


@dataclass(frozen=True)
class Event:
    """Something that happened to a stage, by kind; after a kind that has a payload, the keys of the payload.

    queued: the stage waits for room, so its time limit does not run yet · began: a worker has loaded the stage ·
    progress: done, total, text, round (the history entry of a finished round, or None) · done ·
    failed: type, message, traceback · problem: text, about no stage in particular.
    """

    kind: str
    key: str
    payload: dict[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """What the runner asks of an executor. The result of a finished stage is in the store."""

    @property
    def capacity(self) -> int:
        """How many stages may be under way at a time; it may change."""

    @property
    def lends(self) -> bool:
        """Whether one stage may take several of these places, if it can use them."""

    def submit(self, stage: Stage) -> None:
        """Start a stage; the runner never has more than `capacity` under way."""

    def events(self, timeout: float) -> list[Event]:
        """What happened since the last call; waits at most `timeout` seconds for the first event."""

    def cancel(self, key: str, kind: str, reason: str) -> None:
        """End a running stage; it is reported as failed, with this type and message of an error."""

    def close(self) -> None:
        """End everything that still runs, at once."""


def threads_left(before: Iterable[threading.Thread]) -> list[str]:
    """The names of threads that run now and did not before: a plugin's, which may reseed or draw from generators.

    Left out are tqdm's, which only looks after bars, and those that Python did not start, such as torch's own for
    gradients on a GPU.
    """
    known = {*before, threading.current_thread()}
    found = [thread for thread in threading.enumerate() if thread not in known]
    return [thread.name for thread in found if not _harmless(thread)]


def _harmless(thread: threading.Thread) -> bool:
    return isinstance(thread, threading._DummyThread) or type(thread).__module__ == "tqdm._monitor"


def reporter(key: str, send: Callable[[Event], object], every: float) -> Progress:
    """A callback that sends a stage's progress, at most once per `every` seconds.

    Finished rounds and the end are always sent.
    """
    last = 0.0

    def progress(done: int, total: int, text: str, round: dict[str, Any] | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if round is not None or now - last >= every or done == total:
            last = now
            send(Event("progress", key, {"done": done, "total": total, "text": text, "round": round}))

    return progress
