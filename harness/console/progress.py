"""Run observers: live bars on a terminal, one line per event elsewhere, only failures and problems with --quiet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from harness.console.estimate import Estimate
from harness.console.output import count_of, duration, shorten

LOG_EVERY = 60.0  # seconds between two lines about one running stage, off a terminal
BAR = 1000  # steps of a bar


class Observer:
    """Keeps count of what a run reports, and prints only failures and problems."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.estimate = Estimate(started=clock())
        self._labels: dict[str, str] = {}

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was found, also after an error."""

    def plan_ready(self, plan: dict[str, Any]) -> None:
        self.estimate = Estimate.from_plan(plan, self.clock())

    def stage_started(self, key: str, kind: str, label: str) -> None:
        self._labels[key] = named(kind, label)
        self.estimate.start(key, kind, self.clock())

    def stage_progress(self, key: str, done: float, total: float, text: str = "") -> None:
        self.estimate.progress(key, done / total if total else 0.0)

    def stage_finished(
        self, key: str, kind: str, label: str, status: str, seconds: float, error: str | None = None
    ) -> None:
        self.estimate.finish(key, kind, status, seconds)
        self._labels.pop(key, None)
        if status == "failed":
            self.failure(f"failed: {named(kind, label)}: {first_line(error)}")

    def capacity_changed(self, jobs: int) -> None:
        self.estimate.jobs = max(1, jobs)

    def cell_finished(self, record: dict[str, Any]) -> None:
        self.estimate.cell(str(record["id"]), str(record["status"]))

    def problem(self, text: str) -> None:
        self.failure(f"warning: {text}")

    def run_finished(self, result: Any) -> None:
        """Prints nothing: the final table is the caller's task."""

    def failure(self, line: str) -> None:
        self.console.print(Text(line, style="red"), soft_wrap=True)


class LogObserver(Observer):
    """One line per event, for files and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._last: dict[str, float] = {}

    def plan_ready(self, plan: dict[str, Any]) -> None:
        super().plan_ready(plan)
        cached = sum(stage["cached"] for stage in (plan.get("stages") or {}).values())
        left = self.estimate.seconds_left(self.clock())
        about = "" if left is None or not self.estimate.total_stages else f", about {duration(left)}"
        self._print(
            f"{count_of(self.estimate.total_cells, 'cell')}; "
            f"{count_of(self.estimate.total_stages, 'stage')} to compute, "
            f"{cached} in the store; {count_of(self.estimate.jobs, 'job')}{about}"
        )

    def stage_started(self, key: str, kind: str, label: str) -> None:
        super().stage_started(key, kind, label)
        self._last[key] = self.clock()

    def stage_progress(self, key: str, done: float, total: float, text: str = "") -> None:
        super().stage_progress(key, done, total, text)
        now = self.clock()
        if key in self._last and now - self._last[key] >= LOG_EVERY:
            self._last[key] = now
            self._print(f"running {self._labels.get(key, key)}: {text or f'{done:g}/{total:g}'}")

    def stage_finished(
        self, key: str, kind: str, label: str, status: str, seconds: float, error: str | None = None
    ) -> None:
        super().stage_finished(key, kind, label, status, seconds, error)
        self._last.pop(key, None)
        if status == "done":
            count = f"[{self.estimate.finished_stages}/{self.estimate.total_stages}]"
            self._print(f"{count} {named(kind, label)}: {duration(seconds)}")

    def capacity_changed(self, jobs: int) -> None:
        super().capacity_changed(jobs)
        self._print(f"{count_of(jobs, 'job')} from here on")

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)


class LiveObserver(Observer):
    """An overall bar with what is left, one bar for each running stage, failures above as they happen."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)

        def text(ratio: int) -> Column:
            return Column(no_wrap=True, overflow="ellipsis", ratio=ratio)

        self.progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=text(3)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[text]}", markup=False, table_column=text(2)),
            console=console,
            transient=True,
            expand=True,
        )
        self._overall: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveObserver:
        # Libraries, scenarios and data take seconds before there is a plan.
        self._overall = self.progress.add_task("reading scenarios and data", total=None, text="")
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def plan_ready(self, plan: dict[str, Any]) -> None:
        super().plan_ready(plan)
        self._refresh()

    def stage_started(self, key: str, kind: str, label: str) -> None:
        super().stage_started(key, kind, label)
        width = max(20, self.console.width // 2 - 4)
        name = "  " + shorten(named(kind, label), width)
        self._tasks[key] = self.progress.add_task(name, total=None, text="")
        self._refresh()

    def stage_progress(self, key: str, done: float, total: float, text: str = "") -> None:
        super().stage_progress(key, done, total, text)
        if key in self._tasks:
            shown = text or f"{done:g}/{total:g}"
            self.progress.update(self._tasks[key], completed=done, total=total or None, text=shown)
        self._refresh()

    def stage_finished(
        self, key: str, kind: str, label: str, status: str, seconds: float, error: str | None = None
    ) -> None:
        super().stage_finished(key, kind, label, status, seconds, error)
        if key in self._tasks:
            self.progress.remove_task(self._tasks.pop(key))
        self._refresh()

    def cell_finished(self, record: dict[str, Any]) -> None:
        super().cell_finished(record)
        self._refresh()

    def run_finished(self, result: Any) -> None:
        self.progress.stop()

    def failure(self, line: str) -> None:
        self.progress.console.print(Text(line, style="red"))

    def _refresh(self) -> None:
        if self._overall is None:
            return
        left = self.estimate.seconds_left(self.clock())
        self.progress.update(
            self._overall,
            total=BAR,
            completed=round(self.estimate.share * BAR),
            description=summary(self.estimate),
            text="" if left is None else f"about {duration(left)} left",
        )


def summary(estimate: Estimate) -> str:
    """`stages 12/60 · cells 5/40 · 1 failed`."""
    ended = len(estimate.cells)
    failed = sum(status == "failed" for status in estimate.cells.values())
    parts = [
        f"stages {estimate.finished_stages}/{estimate.total_stages}",
        f"cells {ended}/{max(estimate.total_cells, ended)}",
    ]
    if failed:
        parts.append(f"{failed} failed")
    return " · ".join(parts)


def named(kind: str, label: str) -> str:
    """A stage's kind and label, without saying the kind twice."""
    return label if label.startswith(kind) else f"{kind} {label}"


def first_line(error: str | None) -> str:
    """The first non-empty line of an error, or `no message`."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def make_observer(console: Console, *, quiet: bool = False) -> Observer:
    """Bars on a terminal, else a log; with `quiet`, only failures and problems."""
    if quiet:
        return Observer(console)
    return LiveObserver(console) if console.is_terminal else LogObserver(console)
