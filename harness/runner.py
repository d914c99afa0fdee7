"""Runs a plan: starts stages as what they need gets done, writes each cell's record as soon as it can.

A failing stage fails the cells that need it and nothing else. Whatever was done is in the store before
the next thing starts, so a run that is interrupted or killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import records
from harness.evaluation.masking import FLAG, suspect_masking
from harness.plan import training_of

if TYPE_CHECKING:
    from harness.contracts.metric import Metric
    from harness.executors import Event, Executor
    from harness.observers import Observers
    from harness.plan import CellPlan, Plan, Stage
    from harness.store import Store

KINDS = ("train", "compress", "clean", "attack")
LOADING = 120.0  # seconds that a new worker may take to import libraries before its stage's time limit runs


@dataclass
class Tally:
    """What a run did, by kind of stage."""

    executed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    cached: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    interrupted: bool = False
    stopped: bool = False  # by fail_fast


class Runner:
    """One run of one plan on one executor."""

    def __init__(
        self,
        plan: Plan,
        metrics: dict[str, tuple[Metric, ...]],
        store: Store,
        executor: Executor,
        observer: Observers,
        *,
        fail_fast: bool = False,
        timeout: float | None = None,
    ) -> None:
        self.plan = plan
        self.metrics = metrics  # by scenario name
        self.store = store
        self.executor = executor
        self.observer = observer
        self.fail_fast = fail_fast
        self.timeout = timeout
        self.tally = Tally()
        self.records: dict[str, dict[str, Any]] = {}  # scenario/id -> record
        self._results: dict[str, dict[str, Any]] = {}
        self._errors: dict[str, dict[str, Any]] = {}
        self._running: dict[str, tuple[Stage, float]] = {}  # key -> the stage, and since when
        self._loading: set[str] = set()  # keys whose worker has not said that it began
        self._waiting: list[Stage] = []
        self._open: dict[str, list[CellPlan]] = {}  # stage key -> cells that still need it
        self._missing: dict[int, set[str]] = {}
        self._announced: set[str] = set()

    def run(self) -> Tally:
        """Until everything is done, failed or, on Ctrl-C, interrupted."""
        try:
            self._prepare()
            self._loop()
        except KeyboardInterrupt:
            self.tally.interrupted = True
        finally:
            self.executor.close()
        self._flag_masking()
        return self.tally

    # progress through the plan ------------------------------------------------------------------

    def _prepare(self) -> None:
        for key, stage in self.plan.stages.items():
            result = self.store.stage_result(key)
            if result is None:
                self._waiting.append(stage)
            else:
                self._results[key] = result
                self.tally.cached[stage.kind] += 1
        for plan in self.plan.cells:
            missing = {key for key in plan.stages.values() if key not in self._results}
            self._missing[id(plan)] = missing
            for key in missing:
                self._open.setdefault(key, []).append(plan)
            if plan.error is not None:
                self._write(plan, records.failed(plan, plan.error, *self._about(plan)))
            elif not missing:
                self._finish(plan)
        # A stage that no unfinished cell needs (its downstream is cached) is not computed again.
        needed = set(self._open)
        self._waiting = [stage for stage in self._waiting if stage.key in needed]

    def _loop(self) -> None:
        while self._running or (self._waiting and not self.tally.stopped):
            self._submit()
            if not self._running and not self._waiting:
                break
            for event in self.executor.events(timeout=0.25):
                self._handle(event)
            self._enforce_time_limits()

    def _submit(self) -> None:
        while len(self._running) < self.executor.capacity and not self.tally.stopped:
            stage = next((s for s in self._waiting if all(k in self._results for k in s.needs)), None)
            if stage is None:
                return
            self._waiting.remove(stage)
            self._running[stage.key] = (stage, time.monotonic())
            self._loading.add(stage.key)
            for plan in self._open.get(stage.key, []):
                if plan.cell.id not in self._announced:
                    self._announced.add(plan.cell.id)
                    self.observer.cell_started(_cell_facts(plan))
            self.observer.stage_started(stage.key, stage.kind, stage.label)
            self.executor.submit(stage)

    def _handle(self, event: Event) -> None:
        if event.kind == "problem":
            self.observer.problem(event.payload["text"])
            return
        if event.kind in ("queued", "began"):  # time counts from here, once its worker has imported libraries
            self._running[event.key] = (self._running[event.key][0], time.monotonic())
            (self._loading.discard if event.kind == "began" else self._loading.add)(event.key)
            return
        if event.kind == "progress":
            p = event.payload
            self.observer.stage_progress(event.key, p["done"], p["total"], p["text"], p["round"])
            return
        self._loading.discard(event.key)
        stage, started = self._running.pop(event.key)
        seconds = time.monotonic() - started
        if event.kind == "done":
            result = self.store.stage_result(event.key)
            if result is None:
                self._fail(
                    stage,
                    {"type": "StoreError", "message": "the result is not in the store", "traceback": ""},
                    seconds,
                )
                return
            self._results[event.key] = result
            self.tally.executed[stage.kind] += 1
            self.observer.stage_finished(stage.key, stage.kind, stage.label, "done", seconds, None)
            for plan in self._open.pop(event.key, []):
                missing = self._missing[id(plan)]
                if not missing:  # another of its stages has failed, and so has the cell
                    continue
                missing.discard(event.key)
                if not missing:
                    self._finish(plan)
        else:
            self._fail(stage, event.payload, seconds)

    def _fail(self, stage: Stage, error: dict[str, Any], seconds: float) -> None:
        error = {"stage": f"{stage.kind}: {stage.label}", **error}
        self.store.put_stage(stage.key, stage.kind, stage.signature, stage.label, "failed", error, seconds)
        self.observer.stage_finished(
            stage.key, stage.kind, stage.label, "failed", seconds, f"{error['type']}: {error['message']}"
        )
        lost = {stage.key}
        self._errors[stage.key] = error
        for other in self._waiting:  # in plan order, so what follows from what follows is met in one pass
            if lost & set(other.needs):
                lost.add(other.key)
                self._errors[other.key] = error
        self._waiting = [s for s in self._waiting if s.key not in lost]
        for key in lost:
            for plan in self._open.pop(key, []):
                if self._missing[id(plan)]:
                    self._missing[id(plan)].clear()
                    self._write(plan, records.failed(plan, error, *self._about(plan)))
        if self.fail_fast:
            self.tally.stopped = True
            for key in list(self._running):
                self.executor.cancel(key, "stopped: another stage failed and --fail-fast was given")

    def _enforce_time_limits(self) -> None:
        now = time.monotonic()
        for key, (stage, started) in self._running.items():
            limit = (
                self.timeout if self.timeout is not None else training_of(stage.spec).compute.stage_timeout
            )
            grace = LOADING if key in self._loading else 0.0
            if limit is not None and now - started > limit + grace:
                self.executor.cancel(key, f"took longer than the limit of {limit:g} s per stage")

    # records ------------------------------------------------------------------------------------

    def _about(self, plan: CellPlan) -> tuple[Any, tuple[Metric, ...], str]:
        name = plan.cell.scenario.name
        return self.plan.facts[name], self.metrics[name], self.plan.device

    def _finish(self, plan: CellPlan) -> None:
        mark = records.fingerprint(plan)
        known = self.store.record(plan.cell.scenario.name, plan.cell.id, mark)
        if (
            known is not None
            and known["status"] != "failed"
            and known["scenario"]["hash"] == plan.cell.scenario.hash()
        ):
            self._keep(known)
            return
        if plan.reason is not None:
            self._write(plan, records.not_applicable(plan, *self._about(plan)))
            return
        results = {role: self._results[key] for role, key in plan.stages.items()}
        self._write(plan, records.scored(plan, results, *self._about(plan)))

    def _write(self, plan: CellPlan, record: dict[str, Any]) -> None:
        self.store.put_record(record, records.fingerprint(plan))
        self._keep(record)
        self.observer.cell_finished(_cell_facts(plan), record)

    def _keep(self, record: dict[str, Any]) -> None:
        self.records[f"{record['scenario']['name']}/{record['id']}"] = record

    def _flag_masking(self) -> None:
        """Compares the attacks on each model, so it comes last."""
        for scenario in self.plan.facts:
            plans = {p.cell.id: p for p in self.plan.cells if p.cell.scenario.name == scenario}
            if not plans:
                continue
            mark = next(iter(plans.values())).cell.scenario.hash()
            # With --select, cells of earlier runs are compared as well.
            known = {r["id"]: r for r in self.store.records(scenario) if r["scenario"]["hash"] == mark}
            flags = suspect_masking(known.values())
            for identifier, plan in plans.items():
                record = self.records.get(f"{scenario}/{identifier}")
                if record is None:
                    continue
                own = [flag for flag in record["flags"] if flag != FLAG]
                wanted = [*own, *flags.get(identifier, [])]
                if record["flags"] != wanted:
                    record["flags"] = wanted
                    self.store.put_record(record, records.fingerprint(plan))


def _cell_facts(plan: CellPlan) -> dict[str, Any]:
    return {"id": plan.cell.id, "scenario": plan.cell.scenario.name, **plan.cell.axes}


def in_order(plan: Plan, found: dict[str, dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The records of a run in the plan's order."""
    for cell_plan in plan.cells:
        record = found.get(f"{cell_plan.cell.scenario.name}/{cell_plan.cell.id}")
        if record is not None:
            yield record
