"""Where stages run. An executor takes stages, and reports events until each is done, failed or lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from harness.plan import Stage


@dataclass(frozen=True)
class Event:
    """began: a worker has loaded the stage · progress: done, total, text, round (its history entry, or None) ·
    done · failed: type, message, traceback.
    """

    kind: str
    key: str
    payload: dict[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """What the runner asks of an executor. The result of a finished stage is in the store."""

    capacity: int

    def submit(self, stage: Stage) -> None:
        """Start a stage; the runner never has more than `capacity` under way."""

    def events(self, timeout: float) -> list[Event]:
        """What happened since, waiting at most `timeout` seconds for the first event."""

    def cancel(self, key: str, reason: str) -> None:
        """End a running stage; it is reported as failed with this reason."""

    def close(self) -> None:
        """End everything that still runs, at once."""
