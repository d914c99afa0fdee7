"""Trainings in which the server could use few updates: those that were not finite were dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError

FLAG = "updates-dropped"  # on records whose scores come from a training that partly did not happen
MANY = 0.1  # share of a training's updates from which dropping matters


@dataclass(frozen=True)
class Dropped:
    """Updates dropped over all rounds behind a record, fine-tuning included. empty: rounds that lost every update."""

    updates: int
    of: int
    empty: int
    rounds: int

    @property
    def matters(self) -> bool:
        """Whether a round had no usable update, or a share of MANY of all updates was dropped."""
        return self.empty > 0 or (self.updates > 0 and self.updates >= MANY * self.of)


def check_trained(history: Sequence[Mapping[str, Any]], defended: bool) -> None:
    """Raises HarnessError where a training lost every update: scores would be those of its initial weights.

    defended: whether defences took part, whose parameters may be what made the updates infinite.
    """
    found = dropped({"history": history})
    if found.updates == found.of > 0:
        raise HarnessError(
            f"nothing was trained: all {found.of} updates were dropped, as none was finite; lower the learning rate"
            + ", or what scales the loss or the noise in the defences' parameters" * defended
        )


def dropped(record: Mapping[str, Any]) -> Dropped:
    """What was dropped in the rounds of a scored record's history."""
    compression = record.get("compression") or {}
    histories = [
        record.get("history") or (),
        *(part["history"] for part in compression.get("fine_tuning", ())),
    ]
    rounds = [entry for history in histories for entry in history if "clients" in entry]
    gone = [entry.get("dropped", 0) for entry in rounds]
    return Dropped(
        updates=sum(gone),
        of=sum(entry["clients"] for entry in rounds),
        # A round for which no client was drawn, as can happen under Poisson sampling, lost nothing.
        empty=sum(0 < entry["clients"] == lost for entry, lost in zip(rounds, gone, strict=True)),
        rounds=len(rounds),
    )
