"""What of results does not depend on when, where or how fast they were computed: for telling whether two agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from harness.evaluation.masking import FLAG

# Times and sizes that differ from run to run, and where something ran, wherever they stand in a result or record.
MEASURED = frozenset(
    {
        "seconds",
        "train_seconds",
        "elapsed_seconds",
        "peak_memory_bytes",
        "device_name",
        "at_a_time",
        "calibration",
    }
)
# Of a record's provenance and of a stage's result itself, not deeper: a configuration has an engine too.
ENVIRONMENT = ("engine", "engines", "python", "platform", "device", "recorded")


def comparable_result(result: Mapping[str, Any], measured: Collection[str]) -> Any:
    """A stage's result without what was measured. measured: names of such scores."""
    kept = _without({k: v for k, v in result.items() if k not in ENVIRONMENT}, MEASURED)
    if "scores" in kept:
        kept["scores"] = {name: value for name, value in kept["scores"].items() if name not in measured}
    return kept


def comparable_record(record: Mapping[str, Any]) -> Any:
    """A record without what was measured, the machine it was made on, and what depends on other cells' records."""
    kept = comparable_result(record, measured_scores([record]))
    kept["provenance"] = {k: v for k, v in kept["provenance"].items() if k not in ENVIRONMENT}
    kept["flags"] = [flag for flag in record["flags"] if flag != FLAG]
    return kept


def measured_scores(records: Collection[Mapping[str, Any]]) -> set[str]:
    """Names of the scores that are times or sizes of memory, by what the records say of their units."""
    return {name for record in records for name, unit in record["units"].items() if unit["measured"]}


def _without(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(inner, names) for key, inner in value.items() if key not in names}
    if isinstance(value, list | tuple):
        return [_without(inner, names) for inner in value]
    return value
