"""Stage results → one cell's record: scores, guarantee and everything needed to trust or repeat them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.contracts.metric import Metric
from harness.contracts.privacy import PrivacyAttack
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.diverged import FLAG as UNANSWERED
from harness.evaluation.dropped import FLAG as DROPPED
from harness.evaluation.dropped import dropped
from harness.evaluation.unscored import FLAG as UNSCORED
from harness.evaluation.unscored import unscored
from harness.identity import digest
from harness.provenance import environment, of_stages, plugin_list
from harness.registry import registry

if TYPE_CHECKING:
    from harness.contracts.attack import Attack
    from harness.grid import DataFacts
    from harness.plan import CellPlan
    from harness.scenario import Scenario

SCHEMA = 1


def fingerprint(plan: CellPlan) -> str:
    """A hash of what a record is made from: records with equal fingerprints have equal scores."""
    return digest([plan.stages, plan.reason])


def scored(
    plan: CellPlan,
    results: Mapping[str, dict[str, Any]],
    facts: DataFacts,
    metrics: tuple[Metric, ...],
    device: str,
) -> dict[str, Any]:
    """The record of a cell whose stages are all done. results: by role of the stage."""
    train, clean, attack = results["train"], results["clean"], results.get("attack")
    compress = results.get("compress")
    base = _base(plan, facts, metrics, device)
    # The code and the machines that computed the stages, which need not be those that write the record.
    base["provenance"] |= of_stages(results.values())
    scores = dict(clean["scores"]) | dict(attack["scores"] if attack else {})
    record = base | {
        "status": "scored",
        "scores": scores,
        "intervals": attack.get("intervals", {}) if attack else {},
        "units": units(metrics, scores, plan.cell.attack),
        "flags": list(attack.get("flags", ())) if attack else [],
        "guarantee": clean["guarantee"],
        "lineage": clean["lineage"],
        "attack": attack["attack"] if attack else _training_attack(plan, train),
        "history": train["history"],
        "train_seconds": train["training"]["train_seconds"] + _fine_tuning_seconds(compress),
        "seconds": {role: result["seconds"] for role, result in results.items()},
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results.values()),
        "training": {
            k: train[k] for k in ("client_sizes", "records", "non_members", "malicious", "dropped_updates")
        }
        | {k: train["training"][k] for k in ("elapsed_seconds", "execution")},
        "compression": None if compress is None else {k: compress[k] for k in ("links", "fine_tuning")},
        "test_samples": clean["samples"],
    }
    if attack and unscored(attack["scores"]):
        record["flags"].append(UNSCORED)
    if dropped(record).matters:
        record["flags"].append(DROPPED)
    # These flags are about the cell's own released model, whatever attacks it. Stages in older stores do not say.
    if clean.get("constant", False):
        record["flags"].append(CONSTANT)
    if clean.get("unanswered", 0):
        record["flags"].append(UNANSWERED)
    return record


def failed(
    plan: CellPlan, error: dict[str, Any], facts: DataFacts, metrics: tuple[Metric, ...], device: str
) -> dict[str, Any]:
    """The record of a cell one of whose stages failed. error: stage, type, message, traceback."""
    return _base(plan, facts, metrics, device) | {"status": "failed", "error": error}


def not_applicable(
    plan: CellPlan, facts: DataFacts, metrics: tuple[Metric, ...], device: str
) -> dict[str, Any]:
    """The record of a cell that makes no sense, with the reason."""
    return _base(plan, facts, metrics, device) | {"status": "not-applicable", "reason": plan.reason}


def units(
    metrics: tuple[Metric, ...], scores: Mapping[str, float], attack: Attack | None = None
) -> dict[str, dict[str, Any]]:
    """Unit, direction and meaning of each score present, whether a metric declares it or the attack."""
    known = dict(attack.scores) if isinstance(attack, PrivacyAttack) else {}
    known |= {name: score for metric in metrics for name, score in metric.scores.items()}
    return {
        name: {"unit": s.unit, "direction": s.direction, "measured": s.measured, "description": s.description}
        for name in scores
        if (s := known.get(name)) is not None
    }


def _fine_tuning_seconds(compress: dict[str, Any] | None) -> float:
    return sum(part["train_seconds"] for part in compress["fine_tuning"]) if compress else 0.0


def _training_attack(plan: CellPlan, train: dict[str, Any]) -> dict[str, Any] | None:
    attack = plan.cell.attack
    if attack is None:
        return None
    threat = plan.cell.threat
    return {
        "family": attack.family,
        "malicious": train["malicious"],
        "mode": threat.knowledge,
        "capability": threat.capability_with(attack),
    }


def _base(plan: CellPlan, facts: DataFacts, metrics: tuple[Metric, ...], device: str) -> dict[str, Any]:
    cell, scenario = plan.cell, plan.cell.scenario
    plugins = [
        scenario.dataset,
        scenario.model,
        scenario.federation.partition,
        *cell.defences,
        *cell.aggregators,
    ]
    plugins += [*cell.compressors, *([cell.attack] if cell.attack else []), *metrics]
    memo = cell.memo
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "scenario": {
            "name": scenario.name,
            "version": scenario.version,
            "hash": memo.of(scenario_hash, scenario),
        },
        "cell": dict(cell.axes),
        "reason": None,
        "error": None,
        "scores": {},
        "units": {},
        "flags": [],
        "intervals": {},
        "guarantee": None,
        "lineage": [],
        "attack": None,
        "config": memo.of(common_settings, scenario) | cell.config,
        "provenance": {
            **environment(device),
            "plugins": plugin_list(plugins, memo),
            # They decide no score, so they need not be registered.
            "trackers": plugin_list(filter(registry().knows, scenario.trackers), memo),
            "dataset": {
                "fingerprint": facts.fingerprint,
                "train": facts.train,
                "val": facts.val,
                "test": facts.test,
            },
            "nested_datasets": plan.data,
            "stages": dict(plan.stages),
            "recorded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }


def scenario_hash(scenario: Scenario) -> str:
    """`scenario.hash()` as a plain function, for a Memo."""
    return scenario.hash()


def other_settings(records: Sequence[Mapping[str, Any]], scenario: Scenario) -> dict[str, list[str]]:
    """Record id -> the settings, such as `federation`, in which a record differs from the scenario.

    records: all that a store holds of a scenario of the same name. Those without a difference are left out, and so are
    settings that decide no score. A cell's id does not show these differences: it is made from the values of its axes.

    By default the share that robust rules are told is the largest of any threat, which no record says. For records of
    another content of the scenario it is taken from all records of that content.
    """

    def scoring(config: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in config.items() if name not in scenario.unscored}
        return kept | {"compute": {k: v for k, v in kept["compute"].items() if k != "stage_timeout"}}

    now = scoring(json.loads(json.dumps(common_settings(scenario))))
    told = {scenario.hash(): scenario.tolerance}
    for record in records:
        mark, share = record["scenario"]["hash"], record["config"]["threat"]["malicious"]
        told[mark] = max(told.get(mark, 0.0), share)
    derived = scenario.federation.byzantine_tolerance is None
    found = {}
    for record in records:
        then = scoring(record["config"])
        found[record["id"]] = [name for name, value in now.items() if then.get(name) != value]
        if derived and told[record["scenario"]["hash"]] != scenario.tolerance:
            found[record["id"]].append("byzantine_tolerance")
    return {key: names for key, names in found.items() if names}


def common_settings(scenario: Scenario) -> dict[str, Any]:
    """What all cells of a scenario have in common."""
    axes = ("defences", "aggregators", "compressors", "threats", "seeds")
    return {name: value for name, value in scenario.to_dict().items() if name not in axes}
