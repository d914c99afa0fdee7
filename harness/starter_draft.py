"""Answers to the questions of `harness init`, each checked when it is given, with those before it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.scenario import check_data, load_text
from harness.scenario_data import check_fit
from harness.starter import Answers, compose, parse_threats

if TYPE_CHECKING:
    from harness.contracts.data import Splits

SMALLEST = {"clients": 2, "rounds": 1, "device_bytes": 0, "seeds": 1}
# Stands in for what is not answered yet: nothing that an answer could be in conflict with.
_NOTHING_YET = Answers(clients=2, rounds=1, epsilon=0.0, threats=(), seeds=1)


class Draft:
    """Answers so far. file: where the scenario will be; nothing is written.

    splits: the data, once they are known; they are loaded when they are named, and only then.
    """

    def __init__(self, file: Path, name: str = "") -> None:
        self.file = file
        self.answers = replace(_NOTHING_YET, name=name)
        self.splits: Splits | None = None

    def take(self, field: str, text: object) -> None:
        """Raises HarnessError, and keeps what was, where an answer cannot be used with those before it."""
        answers = replace(self.answers, **{field: read_answer(field, str(text))})
        try:
            written = compose(answers, self.file)
            scenario = load_text(written, self.file)
            splits = check_data(scenario, "") if field == "data" else self.splits
            if splits is not None:
                check_fit(scenario, splits, "")
        except HarnessError as error:
            raise HarnessError(_without_places(str(error), self.file)) from error
        self.answers, self.splits = answers, splits


def read_answer(field: str, text: str) -> Any:
    """An answer as `Answers` holds it. Raises HarnessError where it is none, whatever the others are."""
    text = text.strip()
    if field == "model":
        return "" if text == "auto" else text
    if field == "threats":
        return parse_threats(text)
    if field == "epsilon":
        return _epsilon(text)
    return _whole(field, text) if field in SMALLEST else text


def _whole(field: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = SMALLEST[field] - 1
    if number < SMALLEST[field]:
        raise HarnessError(f"this must be a whole number of at least {SMALLEST[field]}, not {text!r}")
    return number


def _epsilon(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise HarnessError(f"epsilon must be a number of at least 0, such as 8, not {text!r}")
    return number


def _without_places(message: str, file: Path) -> str:
    """The reasons alone: nobody has seen the file that they would point into, as it is not there yet."""
    lines = [line for line in message.splitlines() if not line.startswith("    ")]
    return "; ".join(re.sub(rf"^{re.escape(str(file))}:\d+:\d+: ", "", line) for line in lines)
