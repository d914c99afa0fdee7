"""Answers to the questions of `harness init`, each checked when it is given, together with those before it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.scenario import check_data, load_text
from harness.scenario_data import check_fit
from harness.starter import Answers, compose, parse_threats, without_places

if TYPE_CHECKING:
    from harness.contracts.data import Splits

SMALLEST = {"clients": 2, "rounds": 1, "device_bytes": 0, "seeds": 1}
# Stands in for the answers not given yet, with values that no answer conflicts with.
_NOTHING_YET = Answers(clients=2, rounds=1, epsilon=0.0, threats=(), seeds=1)


class Draft:
    """The answers so far. file: where the scenario will be; a draft does not write it.

    splits: the data, loaded when an answer names them, and only then; None before.
    """

    def __init__(self, file: Path, name: str = "") -> None:
        self.file = file
        self.answers = replace(_NOTHING_YET, name=name)
        self.splits: Splits | None = None

    def take(self, field: str, text: object) -> None:
        """Take an answer. Raises HarnessError, and changes nothing, where it cannot be used with those before it."""
        answers = replace(self.answers, **{field: read_answer(field, str(text))})
        try:
            written = compose(answers, self.file)
            scenario = load_text(written, self.file)
            splits = check_data(scenario, "") if field == "data" else self.splits
            if splits is not None:
                check_fit(scenario, splits, "")
        except HarnessError as error:
            raise HarnessError(without_places(str(error), self.file)) from error
        self.answers, self.splits = answers, splits


def read_answer(field: str, text: str) -> Any:
    """An answer as `Answers` holds it. Raises HarnessError where it would be wrong whatever the others are."""
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
