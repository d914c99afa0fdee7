"""How far a run is and how long the rest may take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class _Running:
    kind: str
    started: float
    work: float
    done: float = 0.0  # share, in [0, 1]


@dataclass
class _Seen:
    stages: int = 0
    seconds: float = 0.0
    work: float = 0.0

    def add(self, seconds: float, work: float, stages: int = 0) -> None:
        self.stages += stages
        self.seconds += seconds
        self.work += work


@dataclass
class Estimate:
    """Counts stages and cells, and extrapolates the time left from the stages seen so far.

    A stage's work is the seconds that the plan estimates for it or, for a kind that the plan does not estimate, 1. The
    time left is the sum over kinds of the work left (stages not begun, and the open share of those that run) times the
    seconds that a unit of work of that kind has taken (of all kinds, where none of that kind has been seen), divided
    by the jobs. Before any stage has been seen, it is the plan's own estimate less the time elapsed, or unknown.
    """

    jobs: int = 1
    started: float = 0.0
    planned_seconds: float | None = None
    todo: dict[str, int] = field(default_factory=dict)  # kind -> stages to compute in all
    work: dict[str, dict[str, float]] = field(default_factory=dict)  # kind -> key -> seconds by the plan
    whole: dict[str, float] = field(default_factory=dict)  # kind -> work in all
    finished: dict[str, _Seen] = field(default_factory=dict)  # by kind
    running: dict[str, _Running] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)  # id -> status, of the cells that have ended
    total_cells: int = 0

    @classmethod
    def from_plan(cls, plan: dict[str, Any], now: float) -> Estimate:
        """From `harness.engine.PlanResult.to_dict()`; stages in the store are no work."""
        stages = plan.get("stages") or {}
        cells = [cell for scenario in plan.get("scenarios") or [] for cell in scenario["cells"]]
        todo = {kind: max(0, counts["total"] - counts["cached"]) for kind, counts in stages.items()}
        work = plan.get("stage_seconds") or {}
        return cls(
            jobs=max(1, int(plan.get("jobs") or 1)),
            started=now,
            planned_seconds=plan.get("estimate_seconds"),
            todo=todo,
            work=work,
            whole={kind: sum(work[kind].values()) if kind in work else count for kind, count in todo.items()},
            cells={cell["id"]: cell["status"] for cell in cells if cell["status"] != "ready"},
            total_cells=len(cells),
        )

    def start(self, key: str, kind: str, now: float) -> None:
        self.running[key] = _Running(kind, now, self._work(kind, key))

    def progress(self, key: str, share: float) -> None:
        if key in self.running:
            self.running[key].done = min(1.0, max(0.0, share))

    def finish(self, key: str, kind: str, status: str, seconds: float) -> None:
        """Counts a stage as done. One found in the store was no work and is not counted, unless it had begun."""
        began = self.running.pop(key, None)
        if status != "cached" or began is not None:
            self.finished.setdefault(kind, _Seen()).add(seconds, self._work(kind, key), stages=1)

    def cell(self, key: str, status: str) -> None:
        self.cells[key] = status

    @property
    def total_stages(self) -> int:
        kinds = set(self.todo) | set(self.finished)
        return sum(max(self.todo.get(kind, 0), self.finished.get(kind, _Seen()).stages) for kind in kinds)

    @property
    def finished_stages(self) -> int:
        return sum(seen.stages for seen in self.finished.values())

    @property
    def share(self) -> float:
        """Stages done, with the share of those that run, in [0, 1]."""
        total = self.total_stages
        return (self.finished_stages + sum(r.done for r in self.running.values())) / total if total else 1.0

    def seconds_left(self, now: float) -> float | None:
        """Seconds, or None where nothing is known yet."""
        seen = {kind: replace(done) for kind, done in self.finished.items()}
        for stage in self.running.values():
            if stage.done > 0:
                seen.setdefault(stage.kind, _Seen()).add((now - stage.started) / stage.done, stage.work)
        overall = _Seen()
        for done in seen.values():
            overall.add(done.seconds, done.work)
        if not overall.work:
            if self.planned_seconds is None:
                return None
            return max(0.0, self.planned_seconds - (now - self.started))
        left = 0.0
        for kind, whole in self.whole.items():
            begun = sum(stage.done * stage.work for stage in self.running.values() if stage.kind == kind)
            like = seen[kind] if kind in seen and seen[kind].work else overall
            open_work = max(0.0, whole - self.finished.get(kind, _Seen()).work - begun)
            left += open_work * like.seconds / like.work
        return left / self.jobs

    def _work(self, kind: str, key: str) -> float:
        """The work of a stage; zero for one that the plan did not count."""
        return self.work[kind].get(key, 0.0) if kind in self.work else 1.0
