"""Passes the events of a run to its display, to plugins' observer hooks and to trackers.

An error in any of them does not stop the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.registry import registry

if TYPE_CHECKING:
    from harness.contracts.tracker import Tracker


class Observers:
    """Passes events to a display (or None), to every plugin that implements their hook, and to trackers.

    A hook that raises is not called again in this run; a display that raises, or a tracker whose
    `harness_run_started` does, is not called again at all. `problems` says which and why.
    """

    def __init__(self, display: Any, trackers: Sequence[Tracker] = ()) -> None:
        self._display = display
        self._silenced: set[str] = set()
        self._trackers = [(f"tracker {t.name}", t) for t in trackers]
        self._labels: dict[str, str] = {}
        self.problems: list[str] = []

    def run_started(self, run: dict[str, Any], plan: dict[str, Any]) -> None:
        self._show("plan_ready", plan)
        self._hook("harness_run_started", run=run)

    def run_finished(self, run: dict[str, Any], result: Any) -> None:
        self._hook("harness_run_finished", run=run)
        self._show("run_finished", result)

    def stage_started(self, key: str, kind: str, label: str) -> None:
        self._labels[key] = label
        self._show("stage_started", key, kind, label)

    def stage_beside(self, key: str, label: str) -> None:
        """A stage computed together with another begins: hooks get its rounds, the display is not told of its start."""
        self._labels[key] = label

    def stage_progress(
        self, key: str, done: int, total: int, text: str, round: dict[str, Any] | None = None
    ) -> None:
        self._show("stage_progress", key, done, total, text)
        if round is not None:
            self._hook(
                "harness_round_finished", stage=self._labels.get(key, key), round={**round, "rounds": total}
            )

    def stage_finished(
        self, key: str, kind: str, label: str, status: str, seconds: float, error: str | None
    ) -> None:
        self._show("stage_finished", key, kind, label, status, seconds, error)

    def capacity_changed(self, jobs: int) -> None:
        """From now on at most `jobs` stages run at a time."""
        self._show("capacity_changed", jobs)

    def problem(self, text: str) -> None:
        """Report what the user should know of but what fails no cell; it is shown at once, and again at the end."""
        self.problems.append(text)
        self._show("problem", text)

    def cell_started(self, cell: dict[str, Any]) -> None:
        self._hook("harness_cell_started", cell=cell)

    def cell_finished(self, cell: dict[str, Any], record: dict[str, Any]) -> None:
        self._hook("harness_cell_finished", cell=cell, record=record)
        self._show("cell_finished", record)

    def _show(self, method: str, *arguments: Any) -> None:
        if self._display is not None:
            self._guarded("the display", lambda: getattr(self._display, method)(*arguments), {})

    def _hook(self, name: str, **arguments: Any) -> None:
        for implementation in getattr(registry().manager.hook, name).get_hookimpls():
            wanted = {k: arguments[k] for k in implementation.argnames}
            self._guarded(f"{implementation.plugin_name}.{name}", implementation.function, wanted)
        for label, tracker in self._trackers:
            method = getattr(tracker, name, None)
            if method is not None and f"{label}.harness_run_started" not in self._silenced:
                self._guarded(f"{label}.{name}", method, arguments)

    def _guarded(self, label: str, function: Any, arguments: dict[str, Any]) -> None:
        if label in self._silenced:
            return
        try:
            function(**arguments)
        except (Exception, SystemExit) as error:
            self._silenced.add(label)
            self.problems.append(
                f"{label} raised {type(error).__name__}: {error}; it is not called again in this run"
            )
