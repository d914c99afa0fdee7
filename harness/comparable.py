"""What of results does not depend on when, where or how fast they were computed: for telling whether two agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG as MASKED

# Times and sizes that differ from run to run, and where something ran, wherever they stand in a result or record.
MEASURED = frozenset(
    {
        "seconds",
        "train_seconds",
        "elapsed_seconds",
        "peak_memory_bytes",
        "device_name",
    }
)
# Of how clients were trained: what was learned on the way, and which of the ways, whose numbers are the same but for
# rounding, was taken.
BOOKKEEPING = frozenset(
    {"clients", "chunk", "trainings", "alone", "out_of_memory", "at_a_time", "calibration", "ways"}
)
# Of a record's provenance and of a stage's result itself, not deeper: a configuration has an engine too.
ENVIRONMENT = ("engine", "engines", "python", "platform", "device", "recorded")
# What follows from predictions that older stores scored without saying it: its absence is no other result.
LATER = ("constant", "unanswered")


def comparable_result(result: Mapping[str, Any], measured: Collection[str]) -> Any:
    """A stage's result without what was measured. measured: names of such scores."""
    kept = _without({k: v for k, v in result.items() if k not in (*ENVIRONMENT, *LATER)}, MEASURED)
    if "scores" in kept:
        kept["scores"] = {name: value for name, value in kept["scores"].items() if name not in measured}
    return kept


def comparable_record(record: Mapping[str, Any]) -> Any:
    """A record without what was measured, the machine it was made on, and what depends on other cells' records.

    Nor does it count whether a record is old enough to lack the flag of constant predictions.
    """
    kept = comparable_result(record, measured_scores([record]))
    kept["provenance"] = {k: v for k, v in kept["provenance"].items() if k not in ENVIRONMENT}
    kept["flags"] = [flag for flag in record["flags"] if flag not in (MASKED, CONSTANT)]
    return kept


@dataclass(frozen=True)
class Tolerance:
    """Numbers agree that differ by at most `absolute`, or by the share `relative` of the larger one."""

    relative: float
    absolute: float

    def agree(self, first: float, second: float) -> bool:
        if not (math.isfinite(first) and math.isfinite(second)):
            return repr(float(first)) == repr(float(second))
        return abs(first - second) <= max(self.absolute, self.relative * max(abs(first), abs(second)))


# What rounding may amount to where clients train as one program: how many of them do is decided by memory, by which
# cells are missing and, under `clients: auto`, by the clock. Measured: 3e-8 in weights after two rounds.
ROUNDED = Tolerance(1e-4, 1e-5)
# What follows from such weights: a prediction may flip, and compressed bytes are others (0.06 % of them, measured).
# Also for what another device or other libraries computed.
ELSEWHERE = Tolerance(0.05, 0.02)
FOLLOWING = ("scores", "intervals", "history")  # where that stands in results and records


def depends_on_rounding(record: Mapping[str, Any]) -> bool:
    """Whether another run of a cell may give it other last digits: its clients train, or may, as one program."""
    execution = (record.get("training") or {}).get("execution") or {}
    clients = (record["config"].get("compute") or {}).get("clients", "sequential")
    on_gpu = str(record["provenance"]["device"]).startswith("cuda")
    asked = clients == "vectorised" or (clients == "auto" and on_gpu)
    return asked or execution.get("clients") == "vectorised"


def alike(
    first: Any,
    second: Any,
    same_file: Callable[[str, str], bool] | None = None,
    tolerance: Tolerance = ROUNDED,
) -> bool:
    """Whether comparable contents are equal but for rounding: whole numbers are, and others within the tolerance.

    Scores and curves are within ELSEWHERE. same_file: asked of texts that differ, which may name two files. Pictures
    are not compared: scores are, of what they show.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(
            name == "pictures"
            or alike(first[name], second[name], same_file, ELSEWHERE if name in FOLLOWING else tolerance)
            for name in first
        )
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(alike(*pair, same_file, tolerance) for pair in pairs)
    if isinstance(first, float | int) and isinstance(second, float | int):
        whole = isinstance(first, int) and isinstance(second, int)
        return first == second if whole else tolerance.agree(first, second)
    if isinstance(first, str) and isinstance(second, str) and first != second:
        return same_file is not None and same_file(first, second)
    return bool(first == second)


def measured_scores(records: Collection[Mapping[str, Any]]) -> set[str]:
    """Names of the scores that are times or sizes of memory, by what the records say of their units."""
    return {name for record in records for name, unit in record["units"].items() if unit["measured"]}


def _without(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _without(inner, BOOKKEEPING if key == "execution" else names)
            for key, inner in value.items()
            if key not in names
        }
    if isinstance(value, list | tuple):
        return [_without(inner, names) for inner in value]
    return value
