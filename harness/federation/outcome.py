"""What is counted over the rounds of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Detection:
    """How many malicious and honest clients the server excluded or down-weighted (flagged), and how many it kept.

    Summed over the rounds in which a rule reported which rows it kept, or rows were dropped as not finite.
    """

    flagged_malicious: int = 0
    flagged_honest: int = 0
    kept_malicious: int = 0
    kept_honest: int = 0

    def count(self, ids: list[int], kept: set[int], malicious: list[int]) -> None:
        """One round: ids took part, `kept` of them entered the result, `malicious` of them attacked."""
        for i in ids:
            if i in kept:
                self.kept_malicious += i in malicious
                self.kept_honest += i not in malicious
            else:
                self.flagged_malicious += i in malicious
                self.flagged_honest += i not in malicious


@dataclass
class Outcome:
    """What a training leaves behind, beside the weights in its module."""

    history: list[dict[str, Any]] = field(default_factory=list)
    uplink_bytes: int = 0  # sum over rounds and clients
    downlink_bytes: int = 0
    messages: int = 0
    dropped: int = 0  # updates dropped as not finite
    seconds: float = 0.0  # training without evaluation, as if clients trained one after another
    elapsed: float = 0.0  # the same, as the clock measured it
    detection: Detection | None = None  # None: no rule reported rows as kept, and none was dropped
