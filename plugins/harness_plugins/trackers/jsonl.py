"""A run as lines of JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from harness.api import Field, Tracker, hookimpl
from harness_plugins.trackers._values import finite, outcome

DEFAULT = "events.jsonl"


class JSONLines(Tracker):
    """Appends every event of a run to a file, one JSON object a line, for scripts to follow while it runs.

    Each line has `event` (run_started, round_finished, cell_finished, run_finished), `time` (seconds since 1970)
    and `run` (its id). A round has its stage, round, rounds, clients, and val_loss and val_accuracy where they were
    evaluated; a cell its parameters, status, scores, intervals, guarantee and, where it has no scores, the reason.
    Numbers that are not finite are null. The file is opened and closed for each line, so that a run that is killed
    loses none; several runs may share it.
    """

    name = "jsonl"

    path: str | None = Field(
        None,
        min_length=1,
        description="the file, against the working directory; None: events.jsonl in the store",
    )

    _run: str = PrivateAttr("")
    _file: str = PrivateAttr("")

    @hookimpl
    def harness_run_started(self, run: dict[str, Any]) -> None:
        self._run = str(run["id"])
        file = Path(self.path) if self.path else Path(run["store"]) / DEFAULT
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = str(file)
        self._write("run_started", run)

    @hookimpl
    def harness_round_finished(self, stage: str, round: dict[str, Any]) -> None:
        self._write("round_finished", {"stage": stage, **round})

    @hookimpl
    def harness_cell_finished(self, cell: dict[str, Any], record: dict[str, Any]) -> None:
        self._write("cell_finished", outcome(record))

    @hookimpl
    def harness_run_finished(self, run: dict[str, Any]) -> None:
        self._write("run_finished", run)
        self._run = self._file = ""

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        line = {"event": event, "time": time.time(), "run": self._run, **finite(facts)}
        with open(self._file or self.path or DEFAULT, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False, default=str) + "\n")


PLUGINS = (JSONLines,)
