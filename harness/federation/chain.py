"""Which compressors of updates can follow one another. Needs no torch, as plans are made without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import NotApplicable

if TYPE_CHECKING:
    from harness.contracts.compressor import UpdateCompressor


def check_chain(chain: Sequence[UpdateCompressor]) -> None:
    """Raises NotApplicable where a link cannot follow those before it, or cannot be followed."""
    remembering = None
    places_stay = True
    for number, codec in enumerate(chain):
        if codec.remembers and not places_stay:
            raise NotApplicable(
                f"{codec.name} keeps what it did not send for a client's next update, and behind "
                f"{chain[number - 1].name} the places of numbers change from round to round: only without that "
                "memory may it follow"
            )
        if codec.remembers and remembering is not None:
            raise NotApplicable(
                f"{remembering.name} and {codec.name} would both send again what was lost: one of a chain may"
            )
        remembering = codec if codec.remembers else remembering
        if not codec.passed_on and number < len(chain) - 1:
            raise NotApplicable(
                f"{codec.name} must come last: it leaves no numbers for {chain[number + 1].name} to encode"
            )
        places_stay = places_stay and codec.places_stay
