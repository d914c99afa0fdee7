"""The part of results that does not depend on when, where or how fast they were computed: used to compare them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG as MASKED

# Left out at any depth of a result or record: times and memory sizes, which differ from run to run, and where it ran.
MEASURED = frozenset(
    {
        "seconds",
        "train_seconds",
        "elapsed_seconds",
        "peak_memory_bytes",
        "device_name",
    }
)
# Left out of `execution`, which tells how clients were trained: what was found out meanwhile, and which of several
# ways was taken, as their numbers differ only by rounding.
BOOKKEEPING = frozenset(
    {"clients", "chunk", "trainings", "alone", "out_of_memory", "at_a_time", "calibration", "ways"}
)
# Left out at the top level of a stage's result and of a record's provenance, not deeper: a configuration has an
# `engine` too.
ENVIRONMENT = ("engine", "engines", "python", "platform", "device", "recorded")
# Left out because older stores lack them: they follow from the same predictions as the scores, so their absence does
# not make a different result.
LATER = ("constant", "unanswered")


def comparable_result(result: Mapping[str, Any], measured: Collection[str]) -> Any:
    """A stage's result without measurements and environment. measured: names of the scores that are measurements."""
    kept = _without({k: v for k, v in result.items() if k not in (*ENVIRONMENT, *LATER)}, MEASURED)
    if "scores" in kept:
        kept["scores"] = {name: value for name, value in kept["scores"].items() if name not in measured}
    return kept


def comparable_record(record: Mapping[str, Any]) -> Any:
    """A record without what was measured, the machine it was made on, and what depends on other cells' records.

    The flag of constant predictions is left out as well, because older records lack it.
    """
    kept = comparable_result(record, measured_scores([record]))
    kept["provenance"] = {k: v for k, v in kept["provenance"].items() if k not in ENVIRONMENT}
    kept["flags"] = [flag for flag in record["flags"] if flag not in (MASKED, CONSTANT)]
    return kept


@dataclass(frozen=True)
class Tolerance:
    """Numbers agree if they differ by at most `absolute`, or by at most the share `relative` of the larger one."""

    relative: float
    absolute: float

    def agree(self, first: float, second: float) -> bool:
        if not (math.isfinite(first) and math.isfinite(second)):
            return repr(float(first)) == repr(float(second))
        return abs(first - second) <= max(self.absolute, self.relative * max(abs(first), abs(second)))


# The largest difference that counts as rounding where clients train as one program. How many train together depends on
# memory, on which cells are missing and, under `clients: auto`, on the clock. Measured: 3e-8 in weights after two
# rounds.
ROUNDED = Tolerance(1e-4, 1e-5)
# For what is computed from such weights: a prediction may flip, and some compressed bytes differ (0.06 % of them,
# measured). Also for results that another device or other libraries computed.
ELSEWHERE = Tolerance(0.05, 0.02)
FOLLOWING = ("scores", "intervals", "history")  # the keys of results and records under which that stands


def depends_on_rounding(record: Mapping[str, Any]) -> bool:
    """Whether another run may change a cell's last digits, because its clients train, or may train, as one program."""
    execution = (record.get("training") or {}).get("execution") or {}
    clients = (record["config"].get("compute") or {}).get("clients", "sequential")
    on_gpu = str(record["provenance"]["device"]).startswith("cuda")
    asked = on_gpu if clients == "auto" else clients != "sequential"
    return asked or execution.get("clients", "sequential") != "sequential"


def alike(
    first: Any,
    second: Any,
    same_file: Callable[[str, str], bool] | None = None,
    tolerance: Tolerance = ROUNDED,
) -> bool:
    """Whether comparable contents are equal but for rounding: whole numbers exactly, others within the tolerance.

    Scores, their intervals and training curves may differ by ELSEWHERE. same_file: asked about two texts that differ,
    since they may name files whose contents agree; None: texts must be equal. Pictures are not compared: the scores of
    what they show are.
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
    """Names of the scores that are times or memory sizes, according to the units in the records."""
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
