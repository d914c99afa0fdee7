"""Scenarios → a plan: what their data and models are, which cells make sense, and the stages behind those."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.applicability import reason_not_applicable
from harness.borders import outlined
from harness.data_root import dataset_key
from harness.dataset_cache import load_splits
from harness.entry_points import BUILTIN
from harness.errors import HarnessError, ScenarioError, StoreError, describe_error, with_file
from harness.grid import Cell, DataFacts, cells, select
from harness.identity import digest
from harness.plan import CellPlan, Plan, Planner
from harness.registry import registry
from harness.scenario_data import check_fit, check_installed, remarks, unusable

if TYPE_CHECKING:
    from torch import nn

    from harness.contracts.metric import Metric
    from harness.scenario import Scenario
    from harness.shards import Shard
    from harness.store import Store

logger = logging.getLogger(__name__)


def not_applicable(loaded: Sequence[Scenario]) -> dict[str, Counter[str]]:
    """Scenario -> reason -> how many of its cells are not applicable for it, the most frequent reason first.

    loaded: scenarios that fit their data. Raises ScenarioError for those that cannot be planned.
    """
    planned, _, skipped = plan_scenarios(loaded, "cpu", None, (), fitting=True)
    if skipped:
        raise ScenarioError(_named(skipped))
    found: dict[str, Counter[str]] = {}
    for each in planned.cells:
        if each.reason is not None:
            found.setdefault(each.cell.scenario.name, Counter())[each.reason] += 1
    return {name: Counter(dict(reasons.most_common())) for name, reasons in found.items()}


def _named(skipped: Sequence[tuple[str, str]]) -> str:
    """A line for each scenario and why it cannot be planned."""
    return "\n".join(with_file(name, reason) for name, reason in skipped)


def plan_scenarios(
    loaded: Sequence[Scenario],
    device: str,
    store: Store | None,
    expressions: Sequence[str],
    part: Shard | None = None,
    *,
    fitting: bool = False,
) -> tuple[Plan, dict[str, tuple[Metric, ...]], list[tuple[str, str]]]:
    """The plan, each scenario's metrics by its name, and (scenario, reason) of scenarios that cannot be planned.

    store: keeps facts of the data. expressions: `axis=glob`; only cells that match all of them are planned. part: only
    cells of this shard are planned. fitting: the scenarios are known to fit their data.
    Raises HarnessError where two scenarios have the same name, or a shard is asked for and some scenario cannot be
    planned, and ScenarioError where none can.
    """
    distinct_names(loaded)
    # By object, not by name, so that one scenario's data cannot be taken for another's.
    facts: dict[int, DataFacts] = {}
    modules: dict[int, nn.Module] = {}
    skipped: list[tuple[str, str]] = []
    for scenario in loaded:
        where = str(scenario.path or scenario.name)
        try:
            check_installed(scenario)
            known = data_facts(scenario, store, fit=not fitting)
            modules[id(scenario)] = meta_module(scenario, known)
            facts[id(scenario)] = known
        except StoreError:  # the other scenarios would meet it too
            raise
        except HarnessError as error:
            skipped.append((where, str(error)))
        except (Exception, SystemExit) as error:  # a plugin's own: the other scenarios can still be planned
            who = " ".join(getattr(error, "raised_by", ("the data set or the model",)))
            said = str(error).partition("\n")[0]  # PyTorch adds the stack of its own code
            skipped.append((where, f"{who} raised {type(error).__name__}: {said}"))
    details = _named(skipped)
    if not facts:
        raise ScenarioError(details)
    if part is not None and skipped:
        raise HarnessError(
            f"a shard needs every scenario, or the shards would divide the cells differently:\n{details}"
        )
    usable = [s for s in loaded if id(s) in facts]
    metrics = {id(s): metrics_of(s) for s in usable}
    chosen: list[Cell] = [cell for scenario in usable for cell in cells(scenario)]
    if expressions:
        chosen = select(chosen, expressions)
    planner = Planner(device)
    plans = []
    verdicts: dict[tuple[object, ...], CellPlan] = {}
    for cell in chosen:
        own = id(cell.scenario)
        # For all seeds at once: a combination is applicable with each of them or with none, see
        # `reason_not_applicable`.
        parts = (cell.defences, cell.aggregators, cell.compressors, cell.threat, cell.attack)
        same = (own, *map(id, parts))
        if same not in verdicts:
            verdicts[same] = _verdict(cell, facts[own], modules[own])
        verdict = verdicts[same]
        if verdict.reason or verdict.error:
            plans.append(CellPlan(cell, reason=verdict.reason, error=verdict.error))
        else:
            plans.append(planner.add(cell, facts[own], metrics[own]))
    whole = Plan(plans, planner.stages, {s.name: facts[id(s)] for s in usable}, device)
    by_name = {s.name: metrics[id(s)] for s in usable}
    return whole if part is None else part.of(whole), by_name, skipped


def distinct_names(scenarios: Sequence[Scenario]) -> None:
    """Raises HarnessError where two scenarios share a name: records tell scenarios apart by it."""
    known: dict[str, str] = {}
    for scenario in scenarios:
        where = str(scenario.path or "a scenario that was handed over")
        if scenario.name in known:
            raise HarnessError(
                f"{where}: the scenario name {scenario.name!r} is already used by {known[scenario.name]}"
            )
        known[scenario.name] = where


def _verdict(cell: Cell, facts: DataFacts, module: nn.Module) -> CellPlan:
    """Whether a cell makes sense; a check that crashes fails its cell, like any other part of a plugin."""
    try:
        return CellPlan(cell, reason=reason_not_applicable(cell, facts, module))
    except (Exception, SystemExit) as error:
        return CellPlan(cell, error={"stage": "plan: applicability", **describe_error(error)})


def metrics_of(scenario: Scenario) -> tuple[Metric, ...]:
    """The scenario's metrics, or all built-in ones: what else is installed must not change a score."""
    if scenario.metrics is not None:
        return scenario.metrics
    entries = registry().entries("metric")
    return tuple(entry.plugin.create() for entry in entries if entry.distribution == BUILTIN)  # type: ignore[misc]


def data_facts(scenario: Scenario, store: Store | None, *, fit: bool = False) -> DataFacts:
    """What planning needs to know of the dataset, which is loaded once per content; the store keeps these facts.

    fit: also check that the scenario fits its data; the store remembers that it does. Raises ScenarioError where the
    data cannot be used, or where that check finds something.
    """
    try:
        mark = scenario.dataset.fingerprint(scenario.root)
        key = dataset_key(scenario.dataset, scenario.root, mark)
        name, fits = f"dataset {key}", f"fits {digest([key, scenario.hash()])}"
        known = store.fact(name) if store is not None else None
        fit = fit and not (store is not None and store.fact(fits))
        splits = None if known and not fit else load_splits(scenario.dataset, scenario.root, mark)
    except StoreError:
        raise
    except HarnessError as error:
        raise unusable(scenario, error) from error
    if splits is not None and fit:
        check_fit(scenario, splits)
        if store is not None:
            store.put_fact(fits, {"fits": True})
    if splits is not None and known is None:
        known = {
            "num_classes": splits.num_classes,
            "input_shape": list(splits.input_shape),
            "train": len(splits.train),
            "val": len(splits.val),
            "test": len(splits.test),
        }
        if store is not None:
            # Once per content, when its facts are made; `validate` says it itself.
            for note in remarks(scenario, splits):
                logger.warning("%s", note)
            store.put_fact(name, known)
    assert known is not None  # the store's, or just made
    return DataFacts(fingerprint=mark, **{**known, "input_shape": tuple(known["input_shape"])})


def meta_module(scenario: Scenario, facts: DataFacts) -> nn.Module:
    """The scenario's model without memory for its weights, to look at its layers."""
    return outlined(scenario.model, facts.input_shape, facts.num_classes, scenario.normalization)
