"""`harness.run(...)` and `plan`, for scripts and notebooks; the command line calls them too."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.database import is_store
from harness.devices import check_name, gpu_count, resolve_device
from harness.errors import HarnessError, StoreError
from harness.executors.choice import connection, job_count, ray_executor, resources, worker_devices
from harness.grid import cells
from harness.grid import select as choose
from harness.observers import Observers
from harness.plan import Plan, Stage
from harness.runner import Runner
from harness.scenario import Scenario, load_many
from harness.scenario_plan import distinct_names, metrics_of, plan_scenarios
from harness.shards import Shard
from harness.store import Store

if TYPE_CHECKING:
    import pandas

    from harness.contracts.base import Plugin

ScenarioArgument = str | Path | Scenario | Sequence[str | Path | Scenario]


@dataclass(repr=False)
class RunResult:
    """The outcome of a run: records in the plan's order, and counts.

    cells: (scenario, id, status) of every cell that has a record. The records stay in the store, and are read when
    they are first asked for. executed, cached: stages by kind that were computed, and that were in the store.
    """

    cells: list[tuple[str, str, str]]
    store: Path
    seconds: float
    executed: dict[str, int]
    cached: dict[str, int]
    interrupted: bool = False
    stopped: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (scenario file, reason)
    problems: list[str] = field(default_factory=list)  # observers that raised
    planned: int = 0  # cells of the plan; more than have a record where the run ended early

    def __post_init__(self) -> None:
        # Absolute, so that the records are found even after a change of the working directory.
        self._folder = self.store.absolute()

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """One per cell, in the plan's order. Raises StoreError where the store was deleted before they were read."""
        if not is_store(self._folder):
            raise StoreError(f"{self._folder}: the store that holds this run's records is gone")
        with Store.reading(self._folder) as store:
            return [record for name, id, _ in self.cells if (record := store.record(name, id)) is not None]

    def __repr__(self) -> str:
        """Counts and seconds, not the cells: there may be thousands."""
        said = [f"{name}={getattr(self, name)}" for name in ("scored", "failed", "not_applicable")]
        ended = [f"{name}=True" for name in ("interrupted", "stopped") if getattr(self, name)]
        return f"RunResult({', '.join([*said, *ended, f'seconds={self.seconds:.1f}', f'store={str(self.store)!r}'])})"

    def _count(self, status: str) -> int:
        return sum(found == status for _, _, found in self.cells)

    @property
    def scored(self) -> int:
        return self._count("scored")

    @property
    def failed(self) -> int:
        return self._count("failed")

    @property
    def not_applicable(self) -> int:
        return self._count("not-applicable")

    def to_pandas(self) -> pandas.DataFrame:
        """One row per cell: scenario, axes, status, then one column per score."""
        from harness.export import to_frame

        return to_frame(self.records)


def run(
    scenarios: ScenarioArgument,
    *,
    device: str = "auto",
    jobs: str | int = "auto",
    store: str | Path = "runs",
    select: str | Sequence[str] | None = None,
    fail_fast: bool = False,
    timeout: float | None = None,
    observer: Any = None,
    shard: str | None = None,
    executor: str = "local",
    address: str = "auto",
    artifacts: str = "objects",
) -> RunResult:
    """Score every cell that the store does not have yet.

    scenarios: files or loaded scenarios. device: auto, cpu, cuda or cuda:i. jobs: worker processes, auto for
    one per core (on CUDA as many per GPU as fit its memory), 0 for this process; on Ray, stages at a time, auto for
    all there is room for. select: `axis=glob` expressions. timeout: seconds a stage may take. observer: a display,
    see harness.observers. shard: `i/n`, one of n parts of the cells, see harness.shards. executor: local, or ray with
    the cluster's address and how artifacts travel, see harness.executors.ray. Raises HarnessError on bad input;
    failures of cells are in the records.
    """
    started = time.monotonic()
    loaded = _load(scenarios)
    part = None if shard is None else Shard.parse(shard)
    folder = Path(store)
    wanted = _selection(select, loaded)
    if executor == "local":
        check_name(device)
        if timeout is not None and str(jobs) == "0":
            raise HarnessError("a time limit needs worker processes: use jobs >= 1")
    with ExitStack() as held:
        held.enter_context(connection(executor, address, artifacts))
        if executor == "local" and str(jobs) != "0":
            from harness.executors.local import warm_up

            warm_up(_heavy_modules(loaded))  # in parallel with planning, which imports libraries of its own
        device, limit = resources(executor, device, jobs)
        # Opened last, so that a bad argument leaves no empty store behind.
        opened = held.enter_context(Store(folder))
        held.enter_context(opened.lock())
        planned, metrics, skipped = plan_scenarios(loaded, device, opened, wanted, part)
        if executor == "local":
            peak = _peak(planned, opened)
            devices = worker_devices(jobs, device, peak)

            def more() -> list[str]:
                return worker_devices(jobs, device, _peak(planned, opened))

            grows = jobs == "auto" and device.startswith("cuda") and peak is None
            running = _executor(folder, device, devices, more if grows else None)
            workers = len(devices)
        else:
            running = ray_executor(folder, device, planned, metrics, limit, artifacts)
            workers = running.capacity
        observers = Observers(observer, [t for s in loaded for t in s.trackers])
        facts = {
            "id": uuid.uuid4().hex[:12],
            "scenarios": [s.name for s in loaded],
            "cells": len(planned.cells),
            "stages": len(planned.stages),
            "jobs": workers,
            "device": device,
            "store": str(folder),
        }
        observers.run_started(facts, _describe(planned, opened, workers))
        runner = Runner(planned, metrics, opened, running, observers, fail_fast=fail_fast, timeout=timeout)
        tally = runner.run()
        result = RunResult(
            cells=[
                (scenario, identifier, runner.outcomes[scenario, identifier])
                for scenario, identifier in ((p.cell.scenario.name, p.cell.id) for p in planned.cells)
                if (scenario, identifier) in runner.outcomes
            ],
            store=folder,
            seconds=time.monotonic() - started,
            executed=tally.executed,
            cached=tally.cached,
            interrupted=tally.interrupted,
            stopped=tally.stopped,
            planned=len(planned.cells),
            skipped=skipped,
            problems=observers.problems,
        )
        counts = {"scored": result.scored, "failed": result.failed, "not_applicable": result.not_applicable}
        observers.run_finished({**facts, **counts, "seconds": result.seconds}, result)
    return result


@dataclass
class PlanResult:
    """A plan as data: see `to_dict`."""

    description: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Scenarios (cells with id, axes, status, reason, stages), stages (total and cached by kind), and estimates.

        stage_seconds: kind -> key -> estimated seconds of each stage that has to be computed. estimate_seconds: of all
        of them, on `jobs` workers.
        """
        return self.description


def plan(
    scenarios: ScenarioArgument,
    *,
    device: str = "auto",
    jobs: str | int = "auto",
    store: str | Path = "runs",
    select: str | Sequence[str] | None = None,
    shard: str | None = None,
) -> PlanResult:
    """What `run` would do: cells, unique stages, what is cached, an estimate of the time. Writes no store."""
    loaded = _load(scenarios)
    wanted = _selection(select, loaded)
    device = resolve_device(device)
    part = None if shard is None else Shard.parse(shard)
    with _existing(Path(store)) as opened:
        planned, _, skipped = plan_scenarios(loaded, device, opened, wanted, part)
        description = _describe(planned, opened, job_count(jobs, device, _peak(planned, opened)))
    description["skipped"] = [{"scenario": name, "reason": reason} for name, reason in skipped]
    return PlanResult(description)


# parts --------------------------------------------------------------------------------------------


def _load(scenarios: ScenarioArgument) -> list[Scenario]:
    several = isinstance(scenarios, Iterable) and not isinstance(scenarios, str | dict | Scenario)
    given: list[Any] = [*scenarios] if several else [scenarios]  # type: ignore[misc]
    for scenario in given:
        if not isinstance(scenario, str | Path | Scenario):
            found = type(scenario).__name__
            raise HarnessError(f"a scenario is a path, or what harness.scenario.load returned, not a {found}")
    if not given:
        raise HarnessError("no scenario given")
    files = [Path(s) for s in given if not isinstance(s, Scenario)]
    ready = [s for s in given if isinstance(s, Scenario)]
    loaded = [*load_many(files), *ready] if files else ready
    distinct_names(loaded)  # before a store is made or a worker is warmed up
    return loaded


def _selection(select: str | Sequence[str] | None, scenarios: Sequence[Scenario]) -> list[str]:
    """The expressions, as a list. Raises HarnessError, before data are read, where no cell of the scenarios fits."""
    wanted = [] if select is None else [select] if isinstance(select, str) else list(select)
    if wanted:
        choose([cell for scenario in scenarios for cell in cells(scenario)], wanted)
    return wanted


@contextmanager
def _existing(path: Path) -> Iterator[Store | None]:
    if not is_store(path):
        yield None
        return
    with Store.reading(path) as store:
        yield store


def _executor(
    store: Path, device: str, workers: Sequence[str], more: Callable[[], Sequence[str]] | None = None
) -> Any:
    """The executor on this machine. workers: the device of each worker process; none: stages run in this process.

    more: as in LocalExecutor.
    """
    if not workers:
        from harness.executors.inline import InlineExecutor

        return InlineExecutor(store, device)
    from harness.executors.local import LocalExecutor

    return LocalExecutor(store, workers, more)


def _heavy_modules(scenarios: Sequence[Scenario]) -> list[str]:
    """The modules that the plugins and optimisers of these scenarios name in `requires`."""
    names: dict[str, None] = {}
    for scenario in scenarios:
        stacks = (*scenario.defences, *scenario.aggregators, *scenario.compressors)
        attacks = (attack for threat in scenario.threats for attack in threat.attacks)
        others = (*metrics_of(scenario), scenario.model, scenario.dataset)
        plugins: tuple[Plugin, ...] = (*(p for stack in stacks for p in stack), *attacks, *others)
        for needed in (*(p.requires for p in plugins), scenario.federation.local.optimizer.requires):
            names.update(dict.fromkeys(needed))
    return list(names)


def _peak(planned: Plan, store: Store | None) -> int | None:
    """The most bytes on a GPU that stages like those of this plan have used; None where unknown, and on a CPU."""
    if store is None or not planned.device.startswith("cuda"):
        return None
    return store.peak_memory({(stage.kind, stage.signature) for stage in planned.stages.values()})


def _describe(planned: Plan, store: Store | None, jobs: int) -> dict[str, Any]:
    from harness.estimate import elapsed, estimate

    finished = store.finished(planned.stages) if store is not None else set()
    needed: set[str] = set()
    scenarios: dict[str, dict[str, Any]] = {}
    for cell_plan in planned.cells:
        cell = cell_plan.cell
        missing = set(cell_plan.stages.values()) - finished
        needed |= missing
        status = "not-applicable" if cell_plan.reason else "ready" if missing or cell_plan.error else "cached"
        entry = scenarios.setdefault(cell.scenario.name, {"name": cell.scenario.name, "cells": []})
        entry["cells"].append(
            {
                "id": cell.id,
                "axes": dict(cell.axes),
                "status": status,
                "reason": cell_plan.reason,
                "stages": dict(cell_plan.stages),
            }
        )
    counts = {
        kind: {"total": planned.count(kind), "cached": 0} for kind in ("train", "compress", "clean", "attack")
    }
    for key in finished:
        counts[planned.stages[key].kind]["cached"] += 1
    pending: list[Stage] = [stage for key, stage in planned.stages.items() if key in needed]
    known = store.seconds_by_signature() if store is not None else {}
    seconds = estimate(planned, pending, known)
    by_kind: dict[str, dict[str, float]] = {}
    for stage in pending:
        by_kind.setdefault(stage.kind, {})[stage.key] = seconds[stage.key]
    return {
        "scenarios": list(scenarios.values()),
        "stages": counts,
        "stage_seconds": by_kind,
        "estimate_seconds": elapsed(seconds.values(), jobs),
        "jobs": jobs,
        "gpus": gpu_count(planned.device),
        "device": planned.device,
        "shard": planned.shard,
    }
