"""Runs a plan: starts a stage once those that it needs are done, and writes each cell's record as soon as it can.

A failing stage fails the cells that need it and nothing else. Whatever is done is in the store before
what builds on it starts, so a run that was interrupted or killed continues where it stopped.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness import records
from harness.bundles import bundles
from harness.errors import StoreError, UnwritableStore, from_interrupt
from harness.evaluation.masking import flagged
from harness.lending import places
from harness.schedule import Schedule
from harness.stage_specs import training_of

if TYPE_CHECKING:
    from harness.contracts.metric import Metric
    from harness.executors import Event, Executor
    from harness.observers import Observers
    from harness.plan import CellPlan, Plan, Stage
    from harness.store import Store

KINDS = ("train", "compress", "clean", "attack")
COMPARED = ("mode", "norm", "eps", "access", "effort", "samples", "ways")  # in a record's `attack`
RECENT = 256  # how many results of stages are kept in memory: those read last
LOADING = 120.0  # seconds that a new worker may take to import libraries, beyond its stage's time limit


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
        self.outcomes: dict[tuple[str, str], str] = {}  # (scenario, id) -> status; records are in the store
        self._done: set[str] = set()
        self._recent: OrderedDict[str, dict[str, Any]] = OrderedDict()  # results read lately
        self._running: dict[str, tuple[Stage, float]] = {}  # key -> the stage, and since when
        self._loading: set[str] = set()  # keys of stages whose worker has not reported that it began
        self._schedule = Schedule({}, (), set())
        self._bundles: dict[str, tuple[str, ...]] = {}
        self._open: dict[str, list[CellPlan]] = {}  # stage key -> cells that still need it
        self._missing: dict[int, set[str]] = {}
        self._announced: set[str] = set()
        self._places = executor.capacity

    def run(self) -> Tally:
        """Run until every stage is done or failed, or Ctrl-C or fail_fast stops the run. Returns what was done."""
        try:
            self._prepare()
            self._loop()
        except (Exception, KeyboardInterrupt) as error:
            if not from_interrupt(error):
                raise
            self.tally.interrupted = True
        finally:
            self.executor.close()
        self._flag_masking()
        return self.tally

    # progress through the plan ------------------------------------------------------------------

    def _prepare(self) -> None:
        self._done = self._whole(self.store.finished(self.plan.stages))
        for key in self._done:
            self.tally.cached[self.plan.stages[key].kind] += 1
        for plan in self.plan.cells:
            missing = {key for key in plan.stages.values() if key not in self._done}
            if missing:
                self._missing[id(plan)] = missing
            for key in missing:
                self._open.setdefault(key, []).append(plan)
            if plan.error is not None:
                self._write(plan, records.failed(plan, plan.error, *self._about(plan)))
            elif not missing:
                self._finish(plan)
        # A stage that no unfinished cell needs (its downstream is cached) is not computed again.
        self._bundles = bundles(self.plan.stages, self._open, self.plan.device)
        self._schedule = Schedule(self.plan.stages, self._open, self._done, self._bundles)

    def _whole(self, done: set[str]) -> set[str]:
        """Those of the `done` stages that need not be computed again.

        The files of a stage that something new needs are read; a damaged file counts as missing for all of its stages.
        """
        while (whole := self._healed(done)) != done:
            done = self.store.finished(whole)
        return done

    def _healed(self, done: set[str]) -> set[str]:
        """The `done` stages without those that something new needs and whose files are damaged, which are removed."""
        to_come = [key for plan in self.plan.cells for key in plan.stages.values() if key not in done]
        seen = set(to_come)
        while to_come:
            for need in self.plan.stages[to_come.pop()].needs:
                if need in seen:
                    continue
                seen.add(need)
                if need in done and self.store.heal(need):
                    continue
                done = done - {need}
                to_come.append(need)
        return done

    def _loop(self) -> None:
        while self._running or (self._schedule and not self.tally.stopped):
            if self.executor.capacity != self._places:
                self._places = self.executor.capacity
                self.observer.capacity_changed(self._places)
            self._submit()
            for event in self.executor.events(timeout=0.25):
                self._handle(event)
            self._enforce_time_limits()

    def _submit(self) -> None:
        while not self.tally.stopped:
            free = self.executor.capacity - sum(stage.at_a_time for stage, _ in self._running.values())
            stage = self._schedule.take() if free > 0 else None
            if stage is None:
                return
            beside = tuple(self.plan.stages[key] for key in self._bundles.get(stage.key, ()))
            ready = 1 + self._schedule.ready
            lent = places(stage, free, ready, self.plan.device) if self.executor.lends else 1
            stage = replace(stage, beside=beside, at_a_time=lent)
            self._running[stage.key] = (stage, time.monotonic())
            self._loading.add(stage.key)
            for key in (stage.key, *(other.key for other in beside)):
                self._announce(key)
            label = f"{stage.label} and {len(beside)} more" if beside else stage.label
            self.observer.stage_started(stage.key, stage.kind, label)
            for other in beside:
                self.observer.stage_beside(other.key, other.label)
            self.executor.submit(stage)

    def _announce(self, key: str) -> None:
        """Tell observers of the cells that begin with this stage."""
        for plan in self._open.get(key, []):
            if plan.cell.id not in self._announced:
                self._announced.add(plan.cell.id)
                self.observer.cell_started(_cell_facts(plan))

    def _handle(self, event: Event) -> None:
        if event.kind == "problem":
            self.observer.problem(event.payload["text"])
            return
        # Its time starts again: waiting for room and importing libraries do not count.
        if event.kind in ("queued", "began"):
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
        # Where the store was moved, workers write into a new one in its old place, whose results nobody here finds.
        if not self.store.in_place():
            raise StoreError(
                f"the store {self.store.path} was moved or deleted while a run writes into it: put it back, or name "
                "its new place, and run the same command again"
            )
        if event.kind != "done":
            # Not the stage's fault: every later one would be computed and its result lost, as this one is.
            if event.payload["type"] == UnwritableStore.__name__:
                raise UnwritableStore(event.payload["message"])
            self._fail(stage, event.payload, seconds)
            return
        if not self._keep_result(stage, seconds):
            missing = {"type": "StoreError", "message": "the result is not in the store", "traceback": ""}
            self._fail(stage, missing, seconds)
            return
        # One without a result could not be computed together with this one: it will be computed alone.
        for other in stage.beside:
            if self._keep_result(other, seconds):
                self._schedule.drop(other.key)
        self._schedule.finished(stage.key)

    def _keep_result(self, stage: Stage, seconds: float) -> bool:
        """Take a stage's result from the store and write the records that waited for it; False if there is none."""
        result = self.store.stage_result(stage.key)
        if result is None:
            return False
        self._remember(stage.key, result)
        self._done.add(stage.key)
        self.tally.executed[stage.kind] += 1
        self.observer.stage_finished(stage.key, stage.kind, stage.label, "done", seconds, None)
        for plan in self._open.pop(stage.key, []):
            missing = self._missing.get(id(plan))
            if missing is None:  # another of its stages has failed, and so has the cell
                continue
            missing.discard(stage.key)
            if not missing:
                del self._missing[id(plan)]
                self._finish(plan)
        return True

    def _fail(self, stage: Stage, error: dict[str, Any], seconds: float) -> None:
        error = {"stage": f"{stage.kind}: {stage.label}", **error}
        self.store.put_stage(stage.key, stage.kind, stage.signature, stage.label, "failed", error, seconds)
        self.observer.stage_finished(
            stage.key, stage.kind, stage.label, "failed", seconds, f"{error['type']}: {error['message']}"
        )
        for key in self._schedule.failed(stage.key):
            for plan in self._open.pop(key, []):
                if self._missing.pop(id(plan), None) is not None:
                    self._write(plan, records.failed(plan, error, *self._about(plan)))
        if self.fail_fast:
            self.tally.stopped = True
            for key in list(self._running):
                self.executor.cancel(key, "Stopped", "another stage failed, and --fail-fast was given")

    def _enforce_time_limits(self) -> None:
        now = time.monotonic()
        for key, (stage, started) in self._running.items():
            limit = (
                self.timeout if self.timeout is not None else training_of(stage.spec).compute.stage_timeout
            )
            limit = None if limit is None else limit * (1 + len(stage.beside))
            grace = LOADING if key in self._loading else 0.0
            if limit is not None and now - started > limit + grace:
                self.executor.cancel(
                    key, "TimeoutError", f"took longer than the limit of {limit:g} s per stage"
                )

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
            and known["scenario"]["hash"] == self._hash(plan)
        ):
            self._keep(known)
            return
        if plan.reason is not None:
            self._write(plan, records.not_applicable(plan, *self._about(plan)))
            return
        results = {role: self._result(key) for role, key in plan.stages.items()}
        self._write(plan, records.scored(plan, results, *self._about(plan)))

    def _result(self, key: str) -> dict[str, Any]:
        """The result of a finished stage. Few are kept in memory, as cells of one training follow each other."""
        found = self._recent.get(key)
        if found is None:
            found = self.store.stage_result(key)
            if found is None:
                raise StoreError(f"{self.store.path}: the result of a stage is gone while a run reads it")
            self._remember(key, found)
        return found

    def _remember(self, key: str, result: dict[str, Any]) -> None:
        self._recent[key] = result
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _write(self, plan: CellPlan, record: dict[str, Any]) -> None:
        self.store.put_record(record, records.fingerprint(plan))
        self._keep(record)
        self.observer.cell_finished(_cell_facts(plan), record)

    def _keep(self, record: dict[str, Any]) -> None:
        self.outcomes[record["scenario"]["name"], record["id"]] = record["status"]

    @staticmethod
    def _hash(plan: CellPlan) -> str:
        return plan.cell.memo.of(records.scenario_hash, plan.cell.scenario)

    def _flag_masking(self) -> None:
        """Flag suspected gradient masking; this compares all attacks on a model, so it comes last."""
        for scenario in self.plan.facts:
            plans = {p.cell.id: p for p in self.plan.cells if p.cell.scenario.name == scenario}
            if not plans:
                continue
            mark = self._hash(next(iter(plans.values())))
            # With --select, cells of earlier runs are compared as well.
            known = (r for r in self.store.each_record(scenario, lost=[]) if r["scenario"]["hash"] == mark)
            compared = [_compared(record) for record in known if record["attack"] or record["flags"]]
            for record, now in zip(compared, flagged(compared), strict=True):
                plan = plans.get(record["id"])
                if plan is None or (scenario, record["id"]) not in self.outcomes:
                    continue
                if record["flags"] != now["flags"]:
                    fingerprint = records.fingerprint(plan)
                    whole = self.store.record(scenario, record["id"], fingerprint)
                    if whole is not None:
                        self.store.put_record(whole | {"flags": now["flags"]}, fingerprint)


def _compared(record: dict[str, Any]) -> dict[str, Any]:
    """What the comparison of attacks needs of a record, and no more: thousands are in memory at once."""
    own = {name: record[name] for name in ("id", "cell", "scores", "flags")}
    attack = {k: v for k, v in (record["attack"] or {}).items() if k in COMPARED}
    config = {name: record["config"][name] for name in ("threat", "attack")}
    return {**own, "attack": attack, "config": config}


def _cell_facts(plan: CellPlan) -> dict[str, Any]:
    return {"id": plan.cell.id, "scenario": plan.cell.scenario.name, **plan.cell.axes}
